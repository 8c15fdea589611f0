//! Which cores the ranks of this host run on.

mod place;

use std::sync::OnceLock;

use place::{Core, place};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores that this process may use, as they were when it was first asked: ranks narrow their own threads down
/// later.
pub fn available() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(|| match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, |n| n.get())).collect(),
    })
}

/// Does something that starts threads, or asks how many cores there are, on a thread that another engine may have pinned to one:
/// that would be inherited, and be the answer. Afterwards the thread is where it was, also if it panics.
pub(crate) fn on_all<T>(work: impl FnOnce() -> T) -> T {
    let mut all = CpuSet::new();
    available().iter().for_each(|&core| all.set(core));
    let before = sched_getaffinity(None).ok().filter(|before| *before != all);
    let _back = before.filter(|_| sched_setaffinity(None, &all).is_ok()).map(Back);
    work()
}

/// Where this thread was, and where it goes back to.
struct Back(CpuSet);

impl Drop for Back {
    fn drop(&mut self) {
        // The system has granted it before.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Threads of a rank if nobody says: the cores, shared out.
pub fn default_threads(ranks: usize) -> usize {
    (available().len() / ranks).max(1)
}

/// A rank's cores, if there is one for every thread of every rank. `group` ranks that follow each other meet most often:
/// they are close together where the machine has a place for them.
pub fn of_rank(rank: usize, ranks: usize, threads: usize, group: usize) -> Option<Vec<usize>> {
    static CORES: OnceLock<Vec<Core>> = OnceLock::new();
    let cores = CORES.get_or_init(|| available().iter().map(|&id| Core::read(id)).collect());
    place(cores, ranks, threads, group).map(|mut of_ranks| of_ranks.swap_remove(rank))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cores that the thread that asks may use. (A quota may let `available_parallelism` say less.)
    fn now() -> u32 {
        sched_getaffinity(None).unwrap().count()
    }

    /// Pins the thread to one core.
    fn pin() {
        let mut one = CpuSet::new();
        one.set(available()[0]);
        sched_setaffinity(None, &one).unwrap();
        assert_eq!(now(), 1);
    }

    #[test]
    fn a_thread_that_is_pinned_has_all_cores_for_a_while() {
        let cores = available().len() as u32;
        pin();
        assert_eq!(on_all(|| (now(), std::thread::spawn(now).join().unwrap())), (cores, cores));
        assert_eq!(now(), 1);
    }

    #[test]
    fn a_thread_that_panics_is_pinned_again() {
        let cores = available().len() as u32;
        pin();
        let panic = std::panic::catch_unwind(|| on_all::<u32>(|| std::panic::resume_unwind(Box::new(now()))));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&cores));
        assert_eq!(now(), 1);
    }
}
