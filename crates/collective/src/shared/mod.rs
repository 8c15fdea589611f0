//! The group of the threads of one process, or of processes of one host: ranks exchange through one region of memory,
//! without locks and, while all keep pace, without system calls.
//!
//! An exchange is a *step* (see [`sync`]). Every rank has two slots, used in turn. Two are enough: a rank
//! writes its slot of step `s + 2`, which is the slot of step `s`, only after it has waited for step `s + 1`; by then
//! every rank has published `s + 1`, and no rank does that before it has read what it wants of step `s`.
//!
//! Messages between two ranks have a [`ring`] of their own for each ordered pair, and do not touch the steps.

mod channel;
mod exchange;
mod gather;
mod layout;
mod mapping;
mod messages;
mod rank;
mod reduce;
mod region;
mod ring;
mod segment;
mod shards;
mod sync;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use layout::Layout;
use region::Region;

pub use rank::SharedRank;
pub use segment::SharedSegment;

/// How a [`SharedGroup`] or the ranks of a [`SharedSegment`] exchange and wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedConfig {
    /// A wait that takes longer is an error that names who is missing.
    pub deadline: Duration,
    /// Bytes of a slot; a rank has two. Larger payloads go in pieces.
    pub slot_bytes: usize,
    /// A wait polls for this long before it sleeps. Zero where other threads need the cores; a group with
    /// more ranks than the process has cores never polls.
    pub spin: Duration,
}

impl Default for SharedConfig {
    fn default() -> Self {
        SharedConfig {
            deadline: Duration::from_secs(30),
            slot_bytes: 1 << 20,
            spin: Duration::from_micros(50),
        }
    }
}

/// Makes the ranks of a group.
#[derive(Debug)]
pub struct SharedGroup;

impl SharedGroup {
    /// The group's ranks, to be moved to their threads.
    ///
    /// # Panics
    /// If there are no ranks, or the system has no memory for their slots.
    #[allow(clippy::new_ret_no_self)] // a group is nothing but its ranks
    pub fn new(ranks: usize, config: SharedConfig) -> Vec<SharedRank> {
        let region = Region::for_threads(Layout::new(ranks, config.slot_bytes));
        let region = region.unwrap_or_else(|e| panic!("cannot map memory for a group of {ranks} ranks: {e}"));
        let region = Arc::new(region);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let spin = if ranks > cores { Duration::ZERO } else { config.spin };
        let rank = |rank| {
            assert!(region.claim(rank), "a fresh region's ranks are free");
            SharedRank::new(region.clone(), rank, spin, config.deadline)
        };
        (0..ranks).map(rank).collect()
    }
}
