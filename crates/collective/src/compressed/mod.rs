//! All-reduces whose values travel in fewer bits. Who asks for it gives up the promise of equal bits on any split; all
//! ranks of a group still end with the same bits.
//!
//! Every rank sums a slice of the elements: it gets the others' nodes of that slice, compressed, widens them, and
//! finishes the tree in f32. Then the sums travel, compressed once more, and all ranks go on with what arrived. A
//! rank's own nodes don't travel and stay exact. (A single step, in which every rank sums everything, would send all
//! nodes to all ranks; compression is for links on which that costs most.)

mod codec;
mod exchange;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::{Duration, Instant};

use tensor::HostDevice;

use crate::finish::Finish;
use crate::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan};
pub use codec::WireDType;
use exchange::Exchange;

/// A group whose [`Collective::all_reduce`] and [`Collective::reduce_scatter`] send compressed values. Everything else
/// is the inner group's.
#[derive(Debug)]
pub struct Compressed<C> {
    inner: C,
    dtype: WireDType,
    finish: RefCell<Finish>,
    /// What is added to the inner group's counts.
    own: Cell<CollectiveStats>,
    /// What is taken off them: the inner calls that reductions are made of.
    inside: Cell<CollectiveStats>,
}

impl<C: Group> Compressed<C> {
    /// `inner`, with values that travel as `dtype`. All ranks must agree on it.
    pub fn new(inner: C, dtype: WireDType) -> Self {
        let (own, inside) = Default::default();
        Compressed { inner, dtype, finish: RefCell::default(), own, inside }
    }

    /// What values travel as.
    pub fn dtype(&self) -> WireDType {
        self.dtype
    }

    /// Whether there is nothing to compress.
    fn passes_on(&self) -> bool {
        self.dtype == WireDType::Float32 || self.inner.size() == 1
    }

    /// One reduction: `work` gives its result and the words that it sent.
    fn reduce<D: HostDevice, T>(
        &self,
        dev: &D,
        partial: &D::Tensor,
        slices: impl FnOnce(usize) -> Vec<Range<usize>>,
        rows: usize,
        plan: &ReducePlan,
        work: impl FnOnce(&Exchange<'_, D, C>) -> Result<(T, usize), CollectiveError>,
    ) -> Result<T, CollectiveError>
    where
        C: Collective<D>,
    {
        let (began, before, rank) = (Instant::now(), self.inner.stats(), self.inner.rank());
        let [have, cols] = dev.shape(partial);
        assert_eq!(plan.nodes_of_rank.len(), self.inner.size(), "a plan for the group's ranks");
        assert_eq!(have, plan.nodes_of_rank[rank] * rows, "rank {rank} brings the nodes that it owns");
        let mut finish = self.finish.borrow_mut();
        finish.set(&plan.finish);
        let slices = slices(cols);
        let (inner, dtype, elements) = (&self.inner, self.dtype, rows * cols);
        let (result, words) = work(&Exchange { inner, dev, dtype, plan, finish: &finish, elements, slices })?;
        let after = self.inner.stats();
        let mut inside = self.inside.get();
        inside.other_calls += after.other_calls - before.other_calls;
        inside.sent_bytes += after.sent_bytes - before.sent_bytes;
        self.inside.set(inside);
        let mut own = self.own.get();
        own.all_reduce_calls += 1;
        own.all_reduce_bytes += (words * size_of::<f32>()) as u64;
        own.all_reduce_s += began.elapsed().as_secs_f64();
        self.own.set(own);
        Ok(result)
    }
}

impl<C: Group> Group for Compressed<C> {
    crate::delegated::delegated!(own => own.inner);

    fn stats(&self) -> CollectiveStats {
        let (inner, own, inside) = (self.inner.stats(), self.own.get(), self.inside.get());
        CollectiveStats {
            all_reduce_calls: inner.all_reduce_calls + own.all_reduce_calls,
            all_reduce_bytes: inner.all_reduce_bytes + own.all_reduce_bytes,
            all_reduce_s: inner.all_reduce_s + own.all_reduce_s,
            other_calls: inner.other_calls - inside.other_calls,
            sent_bytes: inner.sent_bytes - inside.sent_bytes,
            ..inner
        }
    }
}

impl<D: HostDevice, C: Collective<D>> Collective<D> for Compressed<C> {
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        if self.passes_on() {
            return self.inner.all_reduce(dev, partial, rows, plan);
        }
        let slices = |cols| WireDType::slices(rows * cols, self.inner.size());
        self.reduce(dev, &partial, slices, rows, plan, |exchange| {
            let mut out = dev.alloc(rows, dev.shape(&partial)[1]);
            let sums = dev.as_mut_slice(&mut out);
            let own = exchange.slices[self.inner.rank()].clone();
            let sent = exchange.sum_own_slice(&partial, &mut sums[own])?;
            let shared = exchange.share_sums(sums)?;
            Ok((out, sent + shared))
        })
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        if self.passes_on() {
            return self.inner.reduce_scatter(dev, partial, rows_of_rank, plan);
        }
        assert_eq!(rows_of_rank.len(), self.inner.size(), "a number of rows for each rank");
        let slices = |cols: usize| {
            let end = |rank: usize| rows_of_rank[..rank].iter().sum::<usize>() * cols;
            (0..rows_of_rank.len()).map(|rank| end(rank)..end(rank + 1)).collect()
        };
        let rows = rows_of_rank.iter().sum();
        self.reduce(dev, &partial, slices, rows, plan, |exchange| {
            let mut out = dev.alloc(rows_of_rank[self.inner.rank()], dev.shape(&partial)[1]);
            let sent = exchange.sum_own_slice(&partial, dev.as_mut_slice(&mut out))?;
            Ok((out, sent))
        })
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        self.inner.all_gather(dev, part, rows_of_rank)
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        self.inner.all_to_all(dev, x, rows_to, rows_from)
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        self.inner.send(dev, x, to)
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        self.inner.recv(dev, from, rows, cols, deadline)
    }
}
