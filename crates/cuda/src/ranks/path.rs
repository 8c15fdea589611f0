//! The ways in which what lies in the memory of GPUs gets to those of other ranks.

use collective::CallId;

use crate::driver::{Address, Fault};
use crate::tensor::Queue;

/// Words of four bytes, to or from another rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    /// Where they are, or go.
    pub at: Address,
    /// How many.
    pub words: usize,
    /// The other rank.
    pub rank: usize,
}

/// Something that moves words between the GPUs of a group's ranks, behind all work of each. All ranks make the same calls in the same
/// order. They enqueue; what goes wrong surfaces where results are read.
///
/// Collectives over it are made of these moves and of [`super::finish`] (`moves.rs`). Ranks that read each other's memory need none of
/// it: they have kernels of their own.
pub(crate) trait DataPath {
    /// Words to other ranks and from other ranks, all at once: between two ranks in the order of the lists. `call` is what errors call it.
    ///
    /// # Errors
    /// It can't be enqueued.
    fn exchange(&self, queue: &Queue, call: CallId, sends: &[Move], receives: &[Move]) -> Result<(), Fault>;
    /// All ranks' words, as many of each, one rank's behind the other's at `to`, where this rank's own may be already.
    ///
    /// # Errors
    /// It can't be enqueued.
    fn all_gather(
        &self,
        queue: &Queue,
        call: CallId,
        from: Address,
        words: usize,
        to: Address,
    ) -> Result<(), Fault>;
    /// The sums of all ranks' floats in their place, added in whatever order is fastest.
    ///
    /// # Errors
    /// It can't be enqueued.
    fn sum(&self, queue: &Queue, call: CallId, at: Address, count: usize) -> Result<(), Fault>;
    /// The sums of all ranks' floats, of which each rank gets a part of `count`, added likewise.
    ///
    /// # Errors
    /// It can't be enqueued.
    fn sum_scatter(
        &self,
        queue: &Queue,
        call: CallId,
        from: Address,
        count: usize,
        to: Address,
    ) -> Result<(), Fault>;
}
