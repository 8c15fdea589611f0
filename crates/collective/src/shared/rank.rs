use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tensor::HostDevice;

use super::channel::{Call, Channel, Op, Outer};
use super::messages::{self, Messages};
use super::region::Region;
use super::sync::Rendezvous;
use super::{exchange, gather, reduce};
use crate::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan, Waits, Watched};

/// One rank of a [`super::SharedGroup`] or a [`super::SharedSegment`].
///
/// When it is dropped, ranks that wait for it, now or later, fail.
pub struct SharedRank {
    channel: RefCell<Channel>,
    scratch: RefCell<reduce::Scratch>,
    messages: RefCell<Messages>,
    stats: Cell<CollectiveStats>,
    deadline: Duration,
}

impl SharedRank {
    /// A rank that nobody else is.
    pub(super) fn new(region: Arc<Region>, rank: usize, spin: Duration, deadline: Duration) -> Self {
        SharedRank {
            messages: RefCell::new(Messages::new(region.ranks(), deadline)),
            channel: RefCell::new(Channel::new(region, rank, spin)),
            scratch: RefCell::default(),
            stats: Cell::default(),
            deadline,
        }
    }

    /// Has errors speak of a call of the larger group whose ranks from `outer.first_rank` on are this group's.
    pub(crate) fn speak_of(&self, outer: Outer) {
        self.channel.borrow_mut().outer = Some(outer);
    }

    pub(crate) fn waits(&self) -> Waits {
        self.channel.borrow().waits
    }

    fn call(&self, op: Op, size: usize) -> Call {
        Call { op, size, deadline: Some(self.deadline) }
    }

    fn count_other(&self) {
        self.count_sent(0);
    }

    fn count_sent(&self, bytes: usize) {
        let mut stats = self.stats.get();
        stats.other_calls += 1;
        stats.sent_bytes += bytes as u64;
        self.stats.set(stats);
    }

    fn count_reduce(&self, bytes: usize, began: Instant) {
        let mut stats = self.stats.get();
        stats.all_reduce_calls += 1;
        stats.all_reduce_bytes += bytes as u64;
        stats.all_reduce_s += began.elapsed().as_secs_f64();
        self.stats.set(stats);
    }

    fn send_message(&self, op: Op, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        self.count_sent(bytes.len());
        self.messages.borrow_mut().send(&mut self.channel.borrow_mut(), op, bytes, to)
    }
}

impl Group for SharedRank {
    fn rank(&self) -> usize {
        self.channel.borrow().rank()
    }

    fn size(&self) -> usize {
        self.channel.borrow().size()
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.count_other();
        gather::all_gather_host(&mut self.channel.borrow_mut(), &self.call(Op::AllGatherHost, 0), part)
    }

    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let bytes: usize = parts.iter().map(Vec::len).sum();
        self.count_sent(bytes - parts[self.rank()].len());
        exchange::all_to_all_host(&mut self.channel.borrow_mut(), &self.call(Op::AllToAllHost, 0), parts)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        self.count_other();
        let first = Call { deadline, ..self.call(Op::Broadcast, 0) };
        gather::broadcast(&mut self.channel.borrow_mut(), &first, &self.call(Op::Broadcast, 0), bytes)
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let mut channel = self.channel.borrow_mut();
        channel.begin(Op::Barrier)?;
        channel.publish(&self.call(Op::Barrier, 0), 0).map(drop)
    }

    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        self.send_message(Op::SendBytes, bytes, to)
    }

    fn recv_bytes(&self, from: usize, deadline: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        self.count_other();
        self.messages.borrow_mut().recv_bytes(&mut self.channel.borrow_mut(), from, deadline)
    }

    fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        let message = self.messages.borrow_mut().try_recv_bytes(&mut self.channel.borrow_mut(), from)?;
        message.iter().for_each(|_| self.count_other());
        Ok(message)
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.channel.borrow().check()
    }

    fn fail(&self, message: &str) {
        let channel = self.channel.borrow();
        channel.fail(channel.rank(), message);
    }

    fn watched(&self) -> Arc<dyn Watched> {
        self.channel.borrow().watch()
    }

    fn stats(&self) -> CollectiveStats {
        self.waits().in_stats(self.stats.get())
    }
}

impl<D: HostDevice> Collective<D> for SharedRank {
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        let began = Instant::now();
        let [have, cols] = dev.shape(&partial);
        let call = self.call(Op::AllReduce, rows * cols);
        let mut channel = self.channel.borrow_mut();
        let out =
            reduce::all_reduce(&mut channel, &call, &mut self.scratch.borrow_mut(), dev, partial, rows, plan);
        self.count_reduce(have * cols * size_of::<f32>(), began);
        out
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        let began = Instant::now();
        let [have, cols] = dev.shape(&partial);
        let call = self.call(Op::ReduceScatter, rows_of_rank.iter().sum::<usize>() * cols);
        let (channel, scratch) = (&mut self.channel.borrow_mut(), &mut self.scratch.borrow_mut());
        let out = reduce::reduce_scatter(channel, &call, scratch, dev, partial, rows_of_rank, plan);
        self.count_reduce(have * cols * size_of::<f32>(), began);
        out
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        self.count_other();
        let [_, cols] = dev.shape(part);
        let call = self.call(Op::AllGather, rows_of_rank.iter().sum::<usize>() * cols);
        gather::all_gather(&mut self.channel.borrow_mut(), &call, dev, part, rows_of_rank)
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let [rows, cols] = dev.shape(x);
        self.count_sent((rows - rows_to[self.rank()]) * cols * size_of::<f32>());
        let call = self.call(Op::AllToAll, cols);
        exchange::all_to_all(&mut self.channel.borrow_mut(), &call, dev, x, rows_to, rows_from)
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        self.send_message(Op::Send, messages::bytes_of(dev, x), to)
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        self.count_other();
        let channel = &mut self.channel.borrow_mut();
        self.messages.borrow_mut().recv(channel, dev, from, [rows, cols], deadline)
    }
}

impl Drop for SharedRank {
    fn drop(&mut self) {
        let channel = self.channel.get_mut();
        if std::thread::panicking() {
            channel.fail(channel.rank(), "panicked");
        }
        channel.end();
    }
}

impl std::fmt::Debug for SharedRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let channel = self.channel.borrow();
        write!(f, "SharedRank({} of {})", channel.rank(), channel.size())
    }
}
