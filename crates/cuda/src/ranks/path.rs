//! The ways in which what lies in the memory of GPUs gets to those of other ranks.

use collective::CollectiveError;

use crate::driver::{Address, Fault};
use crate::tensor::Queue;

/// Something that moves words of four bytes between the GPUs of a group's ranks, behind all work of each. All ranks make the same
/// calls in the same order. They enqueue; what goes wrong surfaces in [`DataPath::check`] or where results are read.
///
/// Reductions over it are made of these moves and of [`super::finish`] (`over_moves.rs`). Ranks that read each other's memory
/// need none of it: they have kernels of their own.
#[expect(dead_code, reason = "the library that moves words comes next")]
pub(crate) trait DataPath {
    /// As errors and reports call it.
    fn name(&self) -> &'static str;
    /// All ranks' words, one rank's behind the other's, at `to`.
    ///
    /// # Errors
    /// What was asked for can't be enqueued.
    fn all_gather(
        &self,
        queue: &Queue,
        from: Address,
        words_of_rank: &[usize],
        to: Address,
    ) -> Result<(), Fault>;
    /// Words to every rank and from every rank, in the order of ranks; a rank's own among them.
    fn all_to_all(
        &self,
        queue: &Queue,
        from: Address,
        words_to: &[usize],
        to: Address,
        words_from: &[usize],
    ) -> Result<(), Fault>;
    /// Words to one rank, which receives as many.
    fn send(&self, queue: &Queue, from: Address, words: usize, rank: usize) -> Result<(), Fault>;
    /// Words of one rank, which sends as many.
    fn recv(&self, queue: &Queue, to: Address, words: usize, rank: usize) -> Result<(), Fault>;
    /// Whether it can go on, asked without waiting.
    ///
    /// # Errors
    /// A rank is missing or has failed.
    fn check(&self) -> Result<(), CollectiveError>;
}
