//! A [`Wire`] as a group.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tensor::HostDevice;

use super::{Buffer, Call, Op, Parallel, Reduce, Scratch, Team, Wire, all_gather, cut};
use crate::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan, Watched};

/// One rank of a group whose ranks pass messages.
///
/// All collectives wait until all ranks have come. When it is dropped, ranks that wait for it, now or later, fail.
pub struct Messages<W: Wire> {
    wire: W,
    ranks: Vec<usize>,
    /// Collectives so far.
    calls: Cell<u64>,
    /// Messages to and from each rank so far.
    sent: Vec<Cell<u64>>,
    received: Vec<Cell<u64>>,
    scratch: RefCell<Scratch>,
    stats: Cell<CollectiveStats>,
}

impl<W: Wire> Messages<W> {
    /// The rank at this end of a wire.
    pub fn new(wire: W) -> Self {
        let size = wire.size();
        Messages {
            wire,
            ranks: (0..size).collect(),
            calls: Cell::new(0),
            sent: vec![Cell::new(0); size],
            received: vec![Cell::new(0); size],
            scratch: RefCell::default(),
            stats: Cell::default(),
        }
    }

    /// The wire.
    pub fn wire(&self) -> &W {
        &self.wire
    }

    fn team(&self) -> Team<'_, W> {
        Team { wire: &self.wire, ranks: &self.ranks, me: self.wire.rank() }
    }

    /// Begins a collective.
    fn begin(&self, op: Op, size: usize) -> Result<Call, CollectiveError> {
        self.calls.set(self.calls.get() + 1);
        let (number, deadline) = (self.calls.get(), Some(self.wire.deadline()));
        let call = Call { op, number, peer: None, size, deadline };
        self.wire.standing().begin(&call).map(|()| call)
    }

    /// Begins a message to or from `peer`.
    fn begin_message(
        &self,
        op: Op,
        peer: usize,
        deadline: Option<Duration>,
    ) -> Result<Call, CollectiveError> {
        assert!(
            peer != self.rank() && peer < self.size(),
            "rank {} and another one, not {peer}",
            self.rank()
        );
        let count = match op {
            Op::Send | Op::SendBytes => &self.sent[peer],
            _ => &self.received[peer],
        };
        count.set(count.get() + 1);
        let call = Call { op, number: count.get(), peer: Some(peer), size: 0, deadline };
        self.wire.standing().begin(&call).map(|()| call)
    }

    fn count(&self, change: impl FnOnce(&mut CollectiveStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    fn count_reduce(&self, bytes: usize, began: Instant) {
        self.count(|stats| {
            stats.all_reduce_calls += 1;
            stats.all_reduce_bytes += bytes as u64;
            stats.all_reduce_s += began.elapsed().as_secs_f64();
        });
    }

    fn count_sent(&self, bytes: usize) {
        self.count(|stats| stats.sent_bytes += bytes as u64);
    }

    fn send_message(&self, op: Op, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        let call = self.begin_message(op, to, Some(self.wire.deadline()))?;
        self.count_sent(bytes.len());
        self.wire.send(&call, to, bytes)
    }
}

impl<W: Wire> Group for Messages<W> {
    fn rank(&self) -> usize {
        self.wire.rank()
    }

    fn size(&self) -> usize {
        self.ranks.len()
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.count(|stats| stats.other_calls += 1);
        let call = self.begin(Op::AllGatherHost, 0)?;
        let all = self.team().swap(&call, |_| bytemuck::cast_slice(part))?;
        all.iter().enumerate().map(|(from, bytes)| self.numbers(&call, from, bytes)).collect()
    }

    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        assert_eq!(parts.len(), self.size(), "a part for each rank");
        self.count(|stats| stats.other_calls += 1);
        let call = self.begin(Op::AllToAllHost, 0)?;
        let total: usize = parts.iter().map(Vec::len).sum();
        self.count_sent(total - parts[self.rank()].len());
        self.team().swap(&call, |r| &parts[r])
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        self.count(|stats| stats.other_calls += 1);
        let call = Call { deadline, ..self.begin(Op::Broadcast, 0)? };
        // Everybody says that it is there; rank 0 says it by what it sends. So whoever waits for work has said it long ago.
        let part: &[u8] = if self.rank() == 0 { bytes } else { &[] };
        let mut all = self.team().swap(&call, |_| part)?;
        if self.rank() != 0 {
            *bytes = std::mem::take(&mut all[0]);
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let call = self.begin(Op::Barrier, 0)?;
        self.team().meet(&call)
    }

    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        self.send_message(Op::SendBytes, bytes, to)
    }

    fn recv_bytes(&self, from: usize, deadline: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        let call = self.begin_message(Op::RecvBytes, from, deadline)?;
        let mut bytes = Vec::new();
        self.wire.receive(&call, from, Buffer::Any(&mut bytes)).map(|()| bytes)
    }

    fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        let number = self.received[from].get() + 1;
        let (op, deadline) = (Op::TryRecvBytes, Some(self.wire.deadline()));
        let call = Call { op, number, peer: Some(from), size: 0, deadline };
        match self.wire.has_begun(&call, from)? {
            true => self.recv_bytes(from, call.deadline).map(Some),
            false => Ok(None),
        }
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.wire.check()
    }

    fn fail(&self, message: &str) {
        self.wire.fail(self.rank(), message);
    }

    fn watched(&self) -> Arc<dyn Watched> {
        self.wire.standing().clone()
    }

    fn stats(&self) -> CollectiveStats {
        self.wire.waits().in_stats(self.stats.get())
    }
}

impl<W: Wire> Messages<W> {
    /// Bytes of another rank as numbers.
    fn numbers(&self, call: &Call, from: usize, bytes: &[u8]) -> Result<Vec<f32>, CollectiveError> {
        if !bytes.len().is_multiple_of(size_of::<f32>()) {
            let whole = bytes.len() / size_of::<f32>() * size_of::<f32>();
            self.fail(&call.wrong_length(from, bytes.len() as u64, whole));
            self.wire.standing().check()?;
        }
        Ok(bytes.chunks_exact(size_of::<f32>()).map(bytemuck::pod_read_unaligned).collect())
    }
}

impl<D: HostDevice, W: Wire> Collective<D> for Messages<W> {
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
        // A single node has the shape of the sum, which then takes its place.
        let (partial, mut out) = match plan.nodes_of_rank[me] {
            1 => (None, partial),
            _ => (Some(partial), dev.alloc(rows, cols)),
        };
        let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
        let team = self.team();
        let reduce = Reduce { team: &team, call: &call, parallel, plan, elements: rows * cols };
        let own = partial.as_ref().map(|p| dev.as_slice(p));
        let result = reduce.all(&mut self.scratch.borrow_mut(), own, dev.as_mut_slice(&mut out));
        self.count_reduce(have * cols * size_of::<f32>(), began);
        result.map(|()| out)
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
        let ends = rows_of_rank.iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        });
        let slices: Vec<_> =
            ends.zip(rows_of_rank).map(|(end, rows)| (end - rows) * cols..end * cols).collect();
        let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
        let team = self.team();
        let reduce = Reduce { team: &team, call: &call, parallel, plan, elements: rows * cols };
        let mut out = dev.alloc(rows_of_rank[me], cols);
        let (own, to) = (dev.as_slice(&partial), dev.as_mut_slice(&mut out));
        let result = reduce.scatter(&mut self.scratch.borrow_mut(), own, to, &slices);
        self.count_reduce(have * cols * size_of::<f32>(), began);
        result.map(|()| out)
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let me = self.rank();
        let [rows, cols] = dev.shape(part);
        assert_eq!(rows_of_rank.len(), self.size(), "a number of rows for each rank");
        assert_eq!(rows, rows_of_rank[me], "rank {me} brings its rows");
        self.count(|stats| stats.other_calls += 1);
        let all = rows_of_rank.iter().sum();
        let call = self.begin(Op::AllGather, all * cols)?;
        let mut out = dev.alloc(all, cols);
        let mut parts = cut(dev.as_mut_slice(&mut out), rows_of_rank.iter().map(|rows| rows * cols));
        parts[me].copy_from_slice(dev.as_slice(part));
        all_gather(&self.team(), &call, &mut parts)?;
        drop(parts);
        Ok(out)
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let (me, team) = (self.rank(), self.team());
        let [rows, cols] = dev.shape(x);
        assert_eq!([rows_to.len(), rows_from.len()], [self.size(); 2], "a number of rows for each rank");
        assert_eq!(rows, rows_to.iter().sum::<usize>(), "rank {me} brings its rows");
        assert_eq!(rows_to[me], rows_from[me], "what rank {me} keeps is what it gets from itself");
        self.count(|stats| stats.other_calls += 1);
        self.count_sent((rows - rows_to[me]) * cols * size_of::<f32>());
        let call = self.begin(Op::AllToAll, cols)?;
        let mut out = dev.alloc(rows_from.iter().sum(), cols);
        let mut parts = cut(dev.as_mut_slice(&mut out), rows_from.iter().map(|rows| rows * cols));
        let mut rest = dev.as_slice(x);
        let mut sends = Vec::with_capacity(self.size());
        for (r, rows) in rows_to.iter().enumerate() {
            let (part, tail) = rest.split_at(rows * cols);
            rest = tail;
            match r == me {
                true => parts[me].copy_from_slice(part),
                false => sends.push(team.to(r, bytemuck::cast_slice(part))),
            }
        }
        let others = parts.into_iter().enumerate().filter(|(r, _)| *r != me);
        let mut receives: Vec<_> =
            others.map(|(r, part)| team.hear(r, bytemuck::cast_slice_mut(part))).collect();
        team.wire.exchange(&call, &sends, &mut receives)?;
        drop(receives);
        Ok(out)
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        self.send_message(Op::Send, bytemuck::cast_slice(dev.as_slice(x)), to)
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
        let mut out = dev.alloc(rows, cols);
        let bytes = bytemuck::cast_slice_mut(dev.as_mut_slice(&mut out));
        self.wire.receive(&call, from, Buffer::Exact(bytes)).map(|()| out)
    }
}

impl<W: Wire> std::fmt::Debug for Messages<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}
