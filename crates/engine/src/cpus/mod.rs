//! Which cores the ranks of this host run on.

mod place;

use std::sync::OnceLock;

use place::{Core, place};

/// The cores that this process may use, as they were when it was first asked: ranks narrow their own threads down
/// later.
pub fn available() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(|| match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, |n| n.get())).collect(),
    })
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
