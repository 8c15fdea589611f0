//! The group of the threads of one process: ranks exchange through one region of memory, without locks and,
//! while all keep pace, without system calls.
//!
//! An exchange is a *step* (see [`sync`]). Every rank has two slots, used in turn. Two are enough: a rank
//! writes its slot of step `s + 2`, which is the slot of step `s`, only after it has waited for step `s + 1`; by then
//! every rank has published `s + 1`, and no rank does that before it has read what it wants of step `s`.

mod channel;
mod gather;
mod reduce;
mod region;
mod sync;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tensor::HostDevice;

use crate::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan, Watched};
use channel::{Call, Channel, Op};
use region::Region;

/// How a [`SharedGroup`] exchanges and waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedConfig {
    /// A wait that takes longer is an error that names who is missing.
    pub deadline: Duration,
    /// Bytes of a slot; a rank has two. Larger payloads go in pieces.
    pub slot_bytes: usize,
    /// A wait polls for this long before it sleeps. Zero where other threads need the cores; a group with
    /// more ranks than the process has cores never polls.
    pub spin: Duration,
}

impl Default for SharedConfig {
    fn default() -> Self {
        SharedConfig {
            deadline: Duration::from_secs(30),
            slot_bytes: 1 << 20,
            spin: Duration::from_micros(50),
        }
    }
}

/// Makes the ranks of a group.
#[derive(Debug)]
pub struct SharedGroup;

impl SharedGroup {
    /// The group's ranks, to be moved to their threads.
    ///
    /// # Panics
    /// If there are no ranks, or the system has no memory for their slots.
    #[allow(clippy::new_ret_no_self)] // a group is nothing but its ranks
    pub fn new(ranks: usize, config: SharedConfig) -> Vec<SharedRank> {
        let region = Arc::new(Region::new(ranks, config.slot_bytes));
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let spin = if ranks > cores { Duration::ZERO } else { config.spin };
        let rank = |rank| SharedRank {
            channel: RefCell::new(Channel::new(region.clone(), rank, spin)),
            scratch: RefCell::default(),
            stats: Cell::default(),
            deadline: config.deadline,
        };
        (0..ranks).map(rank).collect()
    }
}

/// One rank of a [`SharedGroup`].
///
/// When it is dropped, ranks that wait for it, now or later, fail.
pub struct SharedRank {
    channel: RefCell<Channel>,
    scratch: RefCell<reduce::Scratch>,
    stats: Cell<CollectiveStats>,
    deadline: Duration,
}

impl SharedRank {
    fn call(&self, op: Op, size: usize) -> Call {
        Call { op, size, deadline: Some(self.deadline) }
    }

    fn count_other(&self) {
        let mut stats = self.stats.get();
        stats.other_calls += 1;
        self.stats.set(stats);
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

    fn all_to_all_host(&self, _: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        unimplemented!()
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        self.count_other();
        let first = Call { deadline, ..self.call(Op::Broadcast, 0) };
        gather::broadcast(&mut self.channel.borrow_mut(), &first, &self.call(Op::Broadcast, 0), bytes)
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let mut channel = self.channel.borrow_mut();
        channel.begin()?;
        channel.publish(&self.call(Op::Barrier, 0), 0).map(drop)
    }

    fn send_bytes(&self, _: &[u8], _: usize) -> Result<(), CollectiveError> {
        unimplemented!()
    }

    fn recv_bytes(&self, _: usize, _: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        unimplemented!()
    }

    fn try_recv_bytes(&self, _: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        unimplemented!()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.channel.borrow().check()
    }

    fn fail(&self, message: &str) {
        let channel = self.channel.borrow();
        channel.fail(channel.rank(), message);
    }

    fn watched(&self) -> Arc<dyn Watched> {
        unimplemented!()
    }

    fn stats(&self) -> CollectiveStats {
        self.stats.get()
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
        let mut stats = self.stats.get();
        stats.all_reduce_calls += 1;
        stats.all_reduce_bytes += (have * cols * size_of::<f32>()) as u64;
        stats.all_reduce_s += began.elapsed().as_secs_f64();
        self.stats.set(stats);
        out
    }

    fn reduce_scatter(
        &self,
        _: &D,
        _: D::Tensor,
        _: &[usize],
        _: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        unimplemented!()
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
        _: &D,
        _: &D::Tensor,
        _: &[usize],
        _: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        unimplemented!()
    }

    fn send(&self, _: &D, _: &D::Tensor, _: usize) -> Result<(), CollectiveError> {
        unimplemented!()
    }

    fn recv(
        &self,
        _: &D,
        _: usize,
        _: usize,
        _: usize,
        _: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        unimplemented!()
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
