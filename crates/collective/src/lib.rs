//! Collectives: what the ranks of a group do together.
//!
//! Every call has a deadline, and an error names the operation, its sequence number and the ranks that
//! are missing. Results never depend on the number of ranks: `all_reduce` finishes a
//! [`tensor::ReductionTree`], everything else only moves data.

mod boxed;
mod compressed;
pub mod conformance;
mod delegated;
mod error;
mod finish;
mod hierarchical;
mod members;
pub mod mesh;
pub mod message;
#[cfg(feature = "mpi")]
pub mod mpi;
mod secret;
mod shared;
mod sim;
mod solo;
mod staged;
mod tcp;
mod waits;

pub use compressed::{Compressed, WireDType};
pub use error::CollectiveError;
pub use hierarchical::Hierarchical;
pub use members::Members;
pub use mesh::{Coordinates, Mesh};
pub use message::Messages;
pub use secret::{Role, Secret, authenticate};
pub use shared::{SharedConfig, SharedGroup, SharedRank, SharedSegment};
pub use sim::ShapeGroup;
pub use solo::Solo;
pub use staged::Staged;
pub use tcp::{TcpConfig, TcpMesh, TcpRank};
pub use waits::{CallId, Waits};

use std::sync::Arc;
use std::time::{Duration, Instant};
use tensor::{Device, Program, RowNorm};

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
    /// All-reduces. A reduce-scatter counts as one (with the all-gather that follows it).
    pub all_reduce_calls: u64,
    /// Bytes that this rank contributed to all-reduces.
    pub all_reduce_bytes: u64,
    /// Seconds in all-reduces, waiting included.
    pub all_reduce_s: f64,
    /// Other data collectives (the vocabulary's exchanges and the like).
    pub other_calls: u64,
    /// Bytes that this rank sent to other ranks by all-to-all and point to point.
    pub sent_bytes: u64,
    /// Times that this rank waited for others, whom it came before. Over a network it waits for their first byte, how long
    /// that was on its way included, and may do so several times in a call.
    pub waits: u64,
    /// How long it waited for them.
    pub waited: Duration,
    /// When it began to wait in the last call in which it did.
    pub waiting_since: Option<Instant>,
}

/// Where a rank is: what it does now or did last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The operation; empty before the first.
    pub op: &'static str,
    /// Its number since the group began.
    pub sequence: u64,
}

/// A group seen from outside of the rank's thread: whoever watches the ranks tells it that one is lost.
pub trait Watched: Send + Sync {
    /// Ends every call of this rank, now and from now on, with [`CollectiveError::Failed`], and tells the others, like
    /// [`Group::fail`]. The first failure counts.
    fn abort(&self, rank: usize, message: &str);
    /// Where this rank is.
    fn progress(&self) -> Progress;
    /// Whether the group can go on, as far as this rank's end has heard: like [`Group::check`], but whoever asks moves nothing.
    ///
    /// # Errors
    /// A rank has failed.
    fn check(&self) -> Result<(), CollectiveError>;
}

/// One rank's handle on its group: what does not need a device.
///
/// All ranks make the same collective calls in the same order. [`Group::send_bytes`], [`Group::recv_bytes`] and
/// [`Group::try_recv_bytes`] concern two ranks only: messages from one rank to another arrive in the order in which they
/// were sent, whatever collectives happen in between. What a rank sent before it ended still arrives. In errors and in
/// [`Progress`] a collective's number counts this rank's collectives, a message's those of its ordered pair of ranks.
pub trait Group {
    /// This rank.
    fn rank(&self) -> usize;
    /// Ranks in the group.
    fn size(&self) -> usize;
    /// All ranks' numbers in host memory; their lengths may differ.
    ///
    /// # Errors
    /// A rank is missing at the deadline, or has failed; so for all others.
    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError>;
    /// `parts[r]` goes to rank `r`; what came from rank `r` is the result's `r`-th. Lengths may differ, also be 0.
    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError>;
    /// Rank 0's bytes on every rank. `deadline: None` waits for work as long as it takes (a dead or failed
    /// rank still ends it).
    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError>;
    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<(), CollectiveError>;
    /// Sends a message to another rank. Returns as soon as the transport has taken it over, which it does at once
    /// while its buffers (some MiB) have room; else it waits for the receiver, for the group's deadline at most.
    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError>;
    /// The next message of another rank. `deadline: None` waits as long as it takes (a dead or failed rank ends it).
    fn recv_bytes(&self, from: usize, deadline: Option<Duration>) -> Result<Vec<u8>, CollectiveError>;
    /// The next message of another rank, if it has begun to arrive. An error where none can come any more.
    fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, CollectiveError>;
    /// Whether the group can go on, asked without waiting for anyone.
    ///
    /// # Errors
    /// A rank has failed.
    fn check(&self) -> Result<(), CollectiveError>;
    /// Tells the group that this rank cannot go on: every call of every rank fails from now on with this message.
    fn fail(&self, message: &str);
    /// The group, for whoever watches this rank.
    fn watched(&self) -> Arc<dyn Watched>;
    /// Counts so far.
    fn stats(&self) -> CollectiveStats;
}

/// A group whose ranks exchange a device's tensors.
pub trait Collective<D: Device>: Group {
    /// Allocates and maps what the ranks' devices share, before any of their work waits for that of others: to ask a device for memory
    /// may wait for work that waits. All ranks of a device's groups call it, and then [`Collective::prepare`] once all have.
    ///
    /// # Errors
    /// A rank is missing, or has failed. That there is nothing to share is no error.
    fn share(&self, _dev: &D) -> Result<(), CollectiveError> {
        Ok(())
    }
    /// Finds out how the ranks' devices reach each other, with what they [share](Collective::share), which is done now if it was not
    /// before. All ranks call it once, before anything else and when all are ready; groups whose tensors are host memory know already.
    /// Gives why tensors have to take a long way, if they have to.
    ///
    /// # Errors
    /// A rank is missing, or has failed. That devices don't reach each other is no error.
    fn prepare(&self, _dev: &D) -> Result<Option<String>, CollectiveError> {
        Ok(None)
    }
    /// Finishes a reduction tree on every rank.
    ///
    /// # Shapes
    /// `partial [nodes_of_rank[rank] · t, n]`, node-major → `[t, n]`. A rank without nodes passes `[0, n]`.
    ///
    /// # Errors
    /// A rank is missing, or has failed; so for all others.
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError>;
    /// Whether [`Collective::all_reduce_add_norm`] is more than its two steps, so that it is worth to put an all-reduce off until its
    /// norm is known.
    fn fuses_norm(&self) -> bool {
        false
    }
    /// An all-reduce whose sum is added to a residual stream, which is then normed: [`Device::add_norm`] of it, with the same bits.
    ///
    /// # Shapes
    /// `x [t, n]` → `[t, n]`; the rest as of [`Collective::all_reduce`]
    fn all_reduce_add_norm(
        &self,
        dev: &D,
        partial: D::Tensor,
        plan: &ReducePlan,
        x: &mut D::Tensor,
        post: Option<RowNorm<'_, D::Tensor>>,
        norm: RowNorm<'_, D::Tensor>,
    ) -> Result<D::Tensor, CollectiveError> {
        let sum = self.all_reduce(dev, partial, dev.shape(x)[0], plan)?;
        Ok(dev.add_norm(x, &sum, post, norm))
    }
    /// Finishes a reduction tree; each rank gets only its own rows of the sum. The bits of [`Collective::all_reduce`].
    ///
    /// # Shapes
    /// `partial [nodes_of_rank[rank] · t, n]`, node-major, with `t = Σ rows_of_rank` → `[rows_of_rank[rank], n]`
    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
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
    /// The same of ranks that all bring as many rows, for what reads the result by the numbers of rows: [`Device::gather_rows`],
    /// [`Device::regroup`], [`Device::download`]. It is for nothing else, so that a device may leave room between the ranks' rows.
    ///
    /// # Shapes
    /// `part [t, n]` → `[ranks · t, n]`
    ///
    /// # Errors
    /// A rank is missing, or has failed.
    fn all_gather_alike(&self, dev: &D, part: &D::Tensor) -> Result<D::Tensor, CollectiveError> {
        self.all_gather(dev, part, &vec![dev.shape(part)[0]; self.size()])
    }
    /// Rows to every rank and from every rank: first those for (from) rank 0, then rank 1 and so on, a rank's own
    /// among them. `rows_from[r]` is what rank `r` has in its `rows_to` for this rank.
    ///
    /// # Shapes
    /// `x [Σ rows_to, n]` → `[Σ rows_from, n]`
    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError>;
    /// Whether how much ranks exchange may follow from numbers at hand. Where devices run behind their hosts, those would have to be
    /// waited for.
    fn sizes_by_numbers(&self) -> bool {
        true
    }
    /// Sends a matrix to another rank; returns like [`Group::send_bytes`] and keeps its place among those messages.
    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError>;
    /// The matrix that another rank sent. `deadline: None` waits as long as it takes, or as long as a device may be kept waiting.
    ///
    /// # Shapes
    /// → `[rows, cols]`, as sent
    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError>;
}
