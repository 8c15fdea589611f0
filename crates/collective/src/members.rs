//! A group whose errors call ranks by their numbers in the whole job.

use std::sync::Arc;
use std::time::Duration;

use tensor::{Device, RowNorm};

use crate::{Collective, CollectiveError, CollectiveStats, Group, Progress, ReducePlan, Watched};

/// Between the number of the rank that is the cause and its message.
const BEHIND_RANK: char = '\u{1f}';

/// A group and the job's numbers of its ranks. A failure keeps the number of the rank that caused it, through
/// however many groups it is passed on.
pub struct Members<D: Device> {
    inner: Box<dyn Collective<D> + Send>,
    ranks: Arc<[usize]>,
}

impl<D: Device> Members<D> {
    /// `ranks[i]` is the job's number of the group's rank `i`.
    pub fn new(inner: Box<dyn Collective<D> + Send>, ranks: &[usize]) -> Self {
        assert_eq!(inner.size(), ranks.len(), "a number for every rank");
        Members { inner, ranks: ranks.into() }
    }

    /// The job's numbers of its ranks.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// Fails the group because of another group's failure: `rank` is the job's number of the culprit.
    pub fn pass_on(&self, rank: usize, message: &str) {
        self.inner.fail(&encode(rank, message));
    }

    fn named<T>(&self, result: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        result.map_err(|error| name(error, &self.ranks))
    }
}

fn encode(rank: usize, message: &str) -> String {
    format!("{rank}{BEHIND_RANK}{message}")
}

#[cold]
fn name(error: CollectiveError, ranks: &[usize]) -> CollectiveError {
    let number = |rank: usize| ranks.get(rank).copied().unwrap_or(rank);
    match error {
        CollectiveError::Missing { op, sequence, rank, missing, waited_s } => CollectiveError::Missing {
            op,
            sequence,
            rank: number(rank),
            missing: missing.into_iter().map(number).collect(),
            waited_s,
        },
        CollectiveError::Failed { rank, message } => {
            let culprit = message.split_once(BEHIND_RANK).and_then(|(n, text)| Some((n.parse().ok()?, text)));
            match culprit {
                Some((rank, text)) => CollectiveError::Failed { rank, message: text.into() },
                None => CollectiveError::Failed { rank: number(rank), message },
            }
        }
        other => other,
    }
}

/// Whoever watches speaks of the job's ranks.
struct WatchedMembers {
    inner: Arc<dyn Watched>,
    ranks: Arc<[usize]>,
}

impl Watched for WatchedMembers {
    fn abort(&self, rank: usize, message: &str) {
        // The culprit need not be in this group.
        self.inner.abort(0, &encode(rank, message));
    }

    fn progress(&self) -> Progress {
        self.inner.progress()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.inner.check().map_err(|error| name(error, &self.ranks))
    }
}

impl<D: Device> Group for Members<D> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.named(self.inner.all_gather_host(part))
    }

    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.named(self.inner.all_to_all_host(parts))
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        self.named(self.inner.broadcast(bytes, deadline))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.named(self.inner.barrier())
    }

    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        self.named(self.inner.send_bytes(bytes, to))
    }

    fn recv_bytes(&self, from: usize, deadline: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        self.named(self.inner.recv_bytes(from, deadline))
    }

    fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        self.named(self.inner.try_recv_bytes(from))
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.named(self.inner.check())
    }

    fn fail(&self, message: &str) {
        self.pass_on(self.ranks[self.inner.rank()], message);
    }

    fn watched(&self) -> Arc<dyn Watched> {
        Arc::new(WatchedMembers { inner: self.inner.watched(), ranks: self.ranks.clone() })
    }

    fn stats(&self) -> CollectiveStats {
        self.inner.stats()
    }
}

impl<D: Device> Collective<D> for Members<D> {
    fn share(&self, dev: &D) -> Result<(), CollectiveError> {
        self.named(self.inner.share(dev))
    }

    fn prepare(&self, dev: &D) -> Result<Option<String>, CollectiveError> {
        self.named(self.inner.prepare(dev))
    }

    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        self.named(self.inner.all_reduce(dev, partial, rows, plan))
    }

    fn fuses_norm(&self) -> bool {
        self.inner.fuses_norm()
    }

    fn all_reduce_add_norm(
        &self,
        dev: &D,
        partial: D::Tensor,
        plan: &ReducePlan,
        x: &mut D::Tensor,
        post: Option<RowNorm<'_, D::Tensor>>,
        norm: RowNorm<'_, D::Tensor>,
    ) -> Result<D::Tensor, CollectiveError> {
        self.named(self.inner.all_reduce_add_norm(dev, partial, plan, x, post, norm))
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        self.named(self.inner.reduce_scatter(dev, partial, rows_of_rank, plan))
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        self.named(self.inner.all_gather(dev, part, rows_of_rank))
    }

    fn all_gather_alike(&self, dev: &D, part: &D::Tensor) -> Result<D::Tensor, CollectiveError> {
        self.named(self.inner.all_gather_alike(dev, part))
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        self.named(self.inner.all_to_all(dev, x, rows_to, rows_from))
    }

    fn sizes_by_numbers(&self) -> bool {
        self.inner.sizes_by_numbers()
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        self.named(self.inner.send(dev, x, to))
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        self.named(self.inner.recv(dev, from, rows, cols, deadline))
    }
}
