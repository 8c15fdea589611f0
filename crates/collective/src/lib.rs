//! Collectives: what the ranks of a group do together.
//!
//! Every call has a deadline, and an error names the operation, its sequence number and the ranks that
//! are missing. Results never depend on the number of ranks: `all_reduce` finishes a
//! [`tensor::ReductionTree`], everything else only moves data.

pub mod conformance;
mod error;
mod finish;
mod shared;
mod sim;
mod solo;

pub use error::CollectiveError;
pub use shared::{SharedConfig, SharedGroup, SharedRank};
pub use sim::ShapeGroup;
pub use solo::Solo;

use std::time::Duration;
use tensor::{Device, Program};

/// How the nodes of all ranks become one sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReducePlan {
    /// How many nodes each rank contributes; may be 0.
    pub nodes_of_rank: Vec<usize>,
    /// What finishes the tree: item `i` is the `i`-th of all nodes in the order of ranks.
    pub finish: Program,
}

/// What a rank has spent on collectives so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CollectiveStats {
    /// All-reduces.
    pub all_reduce_calls: u64,
    /// Bytes that this rank contributed to all-reduces.
    pub all_reduce_bytes: u64,
    /// Seconds in all-reduces, waiting included.
    pub all_reduce_s: f64,
    /// Other data collectives (the vocabulary's exchanges and the like).
    pub other_calls: u64,
}

/// One rank's handle on its group.
///
/// All ranks make the same calls in the same order.
pub trait Collective<D: Device> {
    /// This rank.
    fn rank(&self) -> usize;
    /// Ranks in the group.
    fn size(&self) -> usize;
    /// Finishes a reduction tree on every rank.
    ///
    /// # Shapes
    /// `partial [nodes_of_rank[rank] · t, n]`, node-major → `[t, n]`. A rank without nodes passes `[0, n]`.
    ///
    /// # Errors
    /// A rank is missing at the deadline, or has failed.
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError>;
    /// All ranks' rows, one rank's after the other's.
    ///
    /// # Shapes
    /// `part [rows_of_rank[rank], n]` → `[Σ rows_of_rank, n]`
    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError>;
    /// All ranks' numbers in host memory; their lengths may differ.
    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError>;
    /// Rank 0's bytes on every rank. `deadline: None` waits for work as long as it takes (a dead or failed
    /// rank still ends it).
    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError>;
    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<(), CollectiveError>;
    /// Whether the group can go on, asked without waiting for anyone.
    ///
    /// # Errors
    /// A rank has failed.
    fn check(&self) -> Result<(), CollectiveError>;
    /// Tells the group that this rank cannot go on: every call of every rank fails from now on with this message.
    fn fail(&self, message: &str);
    /// Counts so far.
    fn stats(&self) -> CollectiveStats;
}
