//! Which cores the ranks of this process run on.

use std::sync::OnceLock;

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

/// A rank's cores, if there is one for every thread of every rank.
pub fn of_rank(rank: usize, ranks: usize, threads: usize) -> Option<Vec<usize>> {
    (ranks * threads <= available().len()).then(|| available()[rank * threads..(rank + 1) * threads].to_vec())
}
