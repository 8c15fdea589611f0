//! What ranks of a group do together, as a part of a step.

use std::time::Duration;

use collective::{Collective, CollectiveError, CollectiveStats, ReducePlan};
use tensor::{Device, Exchanged, Part, RowNorm};

use super::Rank;

impl<'a, D: Device> Rank<'a, D> {
    /// Calls of the tensor-parallel group.
    pub(super) fn calls(&self, part: Part) -> Calls<'a, D> {
        Calls { dev: self.dev, group: self.group, part }
    }
}

/// Calls of a group, each a part of a step. The device hears which it was, what it moved and how long this rank waited in
/// it; of a group of one, in which nothing moves, it hears nothing. They are the methods of [`Collective`] and
/// [`collective::Group`].
pub struct Calls<'a, D: Device> {
    /// Hears of them.
    pub dev: &'a D,
    /// The group.
    pub group: &'a dyn Collective<D>,
    /// What they count for.
    pub part: Part,
}

#[allow(missing_docs)] // see the traits
impl<D: Device> Calls<'_, D> {
    pub fn all_reduce(
        &self,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        self.call("all_reduce", 0, || self.group.all_reduce(self.dev, partial, rows, plan))
    }

    pub fn all_reduce_add_norm(
        &self,
        partial: D::Tensor,
        plan: &ReducePlan,
        x: &mut D::Tensor,
        post: Option<RowNorm<'_, D::Tensor>>,
        norm: RowNorm<'_, D::Tensor>,
    ) -> Result<D::Tensor, CollectiveError> {
        let run = || self.group.all_reduce_add_norm(self.dev, partial, plan, x, post, norm);
        self.call("all_reduce", 0, run)
    }

    pub fn reduce_scatter(
        &self,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        self.call("reduce_scatter", 0, || self.group.reduce_scatter(self.dev, partial, rows_of_rank, plan))
    }

    pub fn all_gather(&self, part: &D::Tensor, rows_of_rank: &[usize]) -> Result<D::Tensor, CollectiveError> {
        let bytes = bytes(self.dev.shape(part));
        self.call("all_gather", bytes, || self.group.all_gather(self.dev, part, rows_of_rank))
    }

    pub fn all_gather_alike(&self, part: &D::Tensor) -> Result<D::Tensor, CollectiveError> {
        let bytes = bytes(self.dev.shape(part));
        self.call("all_gather", bytes, || self.group.all_gather_alike(self.dev, part))
    }

    pub fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.host_call("all_gather_host", size_of_val(part), || self.group.all_gather_host(part))
    }

    pub fn all_to_all(
        &self,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        self.call("all_to_all", 0, || self.group.all_to_all(self.dev, x, rows_to, rows_from))
    }

    pub fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.host_call("all_to_all_host", 0, || self.group.all_to_all_host(parts))
    }

    pub fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        let given = if self.group.rank() == 0 { bytes.len() } else { 0 };
        self.host_call("broadcast", given, || self.group.broadcast(bytes, deadline))
    }

    pub fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        self.host_call("send_bytes", 0, || self.group.send_bytes(bytes, to))
    }

    pub fn send(&self, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        self.call("send", 0, || self.group.send(self.dev, x, to))
    }

    /// Its bytes are those that this rank gets.
    pub fn recv(
        &self,
        from: usize,
        [rows, cols]: [usize; 2],
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        self.call("recv", bytes([rows, cols]), || self.group.recv(self.dev, from, rows, cols, deadline))
    }

    /// A call that does not go through the device. Others may wait for work that this rank has not let begin, and it for them.
    fn host_call<T>(
        &self,
        op: &'static str,
        uncounted: usize,
        run: impl FnOnce() -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        if self.group.size() > 1 {
            self.dev.flush();
        }
        self.call(op, uncounted, run)
    }

    /// `uncounted` are bytes that the group does not count.
    fn call<T>(
        &self,
        op: &'static str,
        uncounted: usize,
        run: impl FnOnce() -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        if self.group.size() == 1 {
            return run();
        }
        self.dev.span(self.part, || {
            let before = self.group.stats();
            let result = run();
            let after = self.group.stats();
            let sent = |stats: &CollectiveStats| stats.all_reduce_bytes + stats.sent_bytes;
            let bytes = sent(&after) - sent(&before) + uncounted as u64;
            let waited = after.waited - before.waited;
            let waited =
                after.waiting_since.filter(|_| after.waits != before.waits).map(|since| (since, waited));
            self.dev.exchanged(Exchanged { op, bytes, waited });
            result
        })
    }
}

fn bytes([rows, cols]: [usize; 2]) -> usize {
    rows * cols * size_of::<f32>()
}
