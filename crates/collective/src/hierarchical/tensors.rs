//! What exchanges a device's tensors.

use std::time::{Duration, Instant};

use tensor::HostDevice;

use super::{Hierarchical, nodes};
use crate::message::{Buffer, Call, Op, Parallel, Reduce, Wire, all_gather, cut};
use crate::{Collective, CollectiveError, Group, ReducePlan};

impl Hierarchical {
    /// The sums of this node, on its leader: `[sums · rows, cols]`, as numbers. The others get none.
    fn sum_here<D: HostDevice>(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        sums: &[ReducePlan],
    ) -> Result<Vec<f32>, CollectiveError> {
        let (local, cols) = (self.local.rank(), dev.shape(&partial)[1]);
        let rows_of_rank: Vec<_> = (0..self.here().len()).map(|r| if r == 0 { rows } else { 0 }).collect();
        if sums.is_empty() {
            // Nothing to add, but all must be there.
            self.told(self.local.barrier())?;
        }
        let mut all = Vec::new();
        let mut at = 0;
        for plan in sums {
            let own = plan.nodes_of_rank[local] * rows;
            let part = &dev.as_slice(&partial)[at * cols..(at + own) * cols];
            at += own;
            let part = dev.upload(part, own, cols);
            let sum = self.told(self.local.reduce_scatter(dev, part, &rows_of_rank, plan))?;
            all.extend_from_slice(dev.as_slice(&sum));
        }
        Ok(all)
    }

    /// The leader's matrix on all ranks of the node.
    fn share_rows<D: HostDevice>(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows: usize,
    ) -> Result<D::Tensor, CollectiveError> {
        self.wait_for_leader()?;
        let rows_of_rank: Vec<_> = (0..self.here().len()).map(|r| if r == 0 { rows } else { 0 }).collect();
        self.told(self.local.all_gather(dev, part, &rows_of_rank))
    }

    fn count_reduce(&self, bytes: usize, began: Instant) {
        self.count(|stats| {
            stats.all_reduce_calls += 1;
            stats.all_reduce_bytes += bytes as u64;
            stats.all_reduce_s += began.elapsed().as_secs_f64();
        });
    }

    fn reduce_all<D: HostDevice>(
        &self,
        dev: &D,
        call: &Call,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        if self.nodes.len() == 1 {
            return self.told(self.local.all_reduce(dev, partial, rows, plan));
        }
        let cols = dev.shape(&partial)[1];
        let split = nodes::split(plan, &self.nodes);
        let own = self.sum_here(dev, partial, rows, &split.of_node[self.node])?;
        let mut out = dev.alloc(if self.leads() { rows } else { 0 }, cols);
        if self.leads() {
            let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
            let (scratch, to) = (&mut self.scratch.borrow_mut(), dev.as_mut_slice(&mut out));
            self.across(|team| {
                let reduce = Reduce { team, call, parallel, plan: &split.across, elements: rows * cols };
                reduce.all(scratch, Some(&own), to)
            })?;
        }
        self.share_rows(dev, &out, rows)
    }

    fn reduce_own<D: HostDevice>(
        &self,
        dev: &D,
        call: &Call,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        if self.nodes.len() == 1 {
            return self.told(self.local.reduce_scatter(dev, partial, rows_of_rank, plan));
        }
        let (cols, rows) = (dev.shape(&partial)[1], rows_of_rank.iter().sum::<usize>());
        let split = nodes::split(plan, &self.nodes);
        let own = self.sum_here(dev, partial, rows, &split.of_node[self.node])?;
        let until = |rank: usize| rows_of_rank[..rank].iter().sum::<usize>() * cols;
        let slices: Vec<_> = self.nodes.iter().map(|n| until(n.start)..until(n.end)).collect();
        let here = &rows_of_rank[self.here()];
        let mut out = dev.alloc(if self.leads() { here.iter().sum() } else { 0 }, cols);
        if self.leads() {
            let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
            let (scratch, to) = (&mut self.scratch.borrow_mut(), dev.as_mut_slice(&mut out));
            self.across(|team| {
                let reduce = Reduce { team, call, parallel, plan: &split.across, elements: rows * cols };
                reduce.scatter(scratch, &own, to, &slices)
            })?;
        }
        self.wait_for_leader()?;
        let rows_to = if self.leads() { here.to_vec() } else { vec![0; here.len()] };
        let mut rows_from = vec![0; here.len()];
        rows_from[0] = here[self.local.rank()];
        self.told(self.local.all_to_all(dev, &out, &rows_to, &rows_from))
    }
}

impl<D: HostDevice> Collective<D> for Hierarchical {
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        let (began, me) = (Instant::now(), self.rank());
        let [have, cols] = dev.shape(&partial);
        assert_eq!(plan.nodes_of_rank.len(), self.size(), "a plan for the group's ranks");
        assert_eq!(have, plan.nodes_of_rank[me] * rows, "rank {me} brings the nodes that it owns");
        let call = self.begin(Op::AllReduce, rows * cols)?;
        let sum = self.reduce_all(dev, &call, partial, rows, plan);
        self.count_reduce(have * cols * size_of::<f32>(), began);
        sum
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        let (began, me) = (Instant::now(), self.rank());
        let [have, cols] = dev.shape(&partial);
        let rows: usize = rows_of_rank.iter().sum();
        assert_eq!(rows_of_rank.len(), self.size(), "a number of rows for each rank");
        assert_eq!(have, plan.nodes_of_rank[me] * rows, "rank {me} brings the nodes that it owns");
        let call = self.begin(Op::ReduceScatter, rows * cols)?;
        let sum = self.reduce_own(dev, &call, partial, rows_of_rank, plan);
        self.count_reduce(have * cols * size_of::<f32>(), began);
        sum
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let [_, cols] = dev.shape(part);
        assert_eq!(rows_of_rank.len(), self.size(), "a number of rows for each rank");
        self.count(|stats| stats.other_calls += 1);
        let rows = rows_of_rank.iter().sum();
        let call = self.begin(Op::AllGather, rows * cols)?;
        let here = self.told(self.local.all_gather(dev, part, &rows_of_rank[self.here()]))?;
        if self.nodes.len() == 1 {
            return Ok(here);
        }
        let mut out = dev.alloc(if self.leads() { rows } else { 0 }, cols);
        if self.leads() {
            let of_node = |n: &std::ops::Range<usize>| rows_of_rank[n.clone()].iter().sum::<usize>() * cols;
            let mut parts = cut(dev.as_mut_slice(&mut out), self.nodes.iter().map(of_node));
            parts[self.node].copy_from_slice(dev.as_slice(&here));
            self.across(|team| all_gather(team, &call, &mut parts))?;
        }
        self.share_rows(dev, &out, rows)
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let [rows, cols] = dev.shape(x);
        assert_eq!([rows_to.len(), rows_from.len()], [self.size(); 2], "a number of rows for each rank");
        let width = cols * size_of::<f32>();
        self.count(|stats| {
            stats.other_calls += 1;
            stats.sent_bytes += ((rows - rows_to[self.rank()]) * width) as u64;
        });
        let call = self.begin(Op::AllToAll, cols)?;
        let mut rest: &[u8] = bytemuck::cast_slice(dev.as_slice(x));
        let parts = rows_to.iter().map(|rows| {
            let (part, tail) = rest.split_at(rows * width);
            rest = tail;
            part
        });
        let all = self.exchange(&call, &parts.collect::<Vec<_>>())?;
        let mut out = dev.alloc(rows_from.iter().sum(), cols);
        let mut to: &mut [u8] = bytemuck::cast_slice_mut(dev.as_mut_slice(&mut out));
        for (from, (part, rows)) in all.iter().zip(rows_from).enumerate() {
            if part.len() != rows * width {
                let what = call.wrong_length(from, part.len() as u64, rows * width);
                return self.garbled(&call, &what);
            }
            let (place, tail) = std::mem::take(&mut to).split_at_mut(part.len());
            place.copy_from_slice(part);
            to = tail;
        }
        Ok(out)
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        let call = self.begin_message(Op::Send, to, Some(self.patience(0)))?;
        let bytes: &[u8] = bytemuck::cast_slice(dev.as_slice(x));
        self.count(|stats| stats.sent_bytes += bytes.len() as u64);
        match self.neighbour(to) {
            Some(to) => self.told(self.local.send(dev, x, to)),
            None => self.on_wire(|wire| wire.send(&call, to, bytes)),
        }
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        let call = self.begin_message(Op::Recv, from, deadline)?;
        if let Some(from) = self.neighbour(from) {
            return self.told(self.local.recv(dev, from, rows, cols, deadline));
        }
        let mut out = dev.alloc(rows, cols);
        let bytes = bytemuck::cast_slice_mut(dev.as_mut_slice(&mut out));
        self.on_wire(|wire| wire.receive(&call, from, Buffer::Exact(bytes))).map(|()| out)
    }
}
