//! A rank's end of the region: steps that the borrow checker keeps in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::region::{Region, RegionRing};
use super::ring::Pipe;
use super::shards::{as_bytes, as_bytes_mut};
use super::sync::{Patience, Rendezvous, Stop};
use super::watch::Watch;
use crate::{CallId, CollectiveError, Waits};

/// An operation of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    AllReduce,
    AllGather,
    AllGatherHost,
    Broadcast,
    Barrier,
    ReduceScatter,
    AllToAll,
    AllToAllHost,
    Send,
    Recv,
    SendBytes,
    RecvBytes,
}

impl Op {
    const ALL: [(Op, &'static str); 12] = [
        (Op::AllReduce, "all_reduce"),
        (Op::AllGather, "all_gather"),
        (Op::AllGatherHost, "all_gather_host"),
        (Op::Broadcast, "broadcast"),
        (Op::Barrier, "barrier"),
        (Op::ReduceScatter, "reduce_scatter"),
        (Op::AllToAll, "all_to_all"),
        (Op::AllToAllHost, "all_to_all_host"),
        (Op::Send, "send"),
        (Op::Recv, "recv"),
        (Op::SendBytes, "send_bytes"),
        (Op::RecvBytes, "recv_bytes"),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The operation that has this number.
    pub fn of_number(number: usize) -> Option<Op> {
        Self::ALL.get(number).map(|(op, _)| *op)
    }
}

/// Elements of a cache line.
const LINE: usize = 16;
/// Elements from which a payload moves through the slot; less costs next to nothing anyway.
const LEAST_ROTATED: usize = 1024;

/// One call of an operation, as every rank must make it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub op: Op,
    /// A size on which all ranks agree.
    pub size: usize,
    pub deadline: Option<Duration>,
}

impl Call {
    /// What ranks compare: the operation above the size.
    fn label(&self) -> u64 {
        (self.op as u64) << 56 | (self.size as u64 & ((1 << 56) - 1))
    }
}

/// The call of a larger group of which this group does a part: errors speak of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outer {
    /// This group's rank 0 there.
    pub first_rank: usize,
    pub call: CallId,
}

/// A rank's end of the region.
pub(super) struct Channel {
    region: Arc<Region>,
    rank: usize,
    /// The step that this rank writes or publishes next. Unless the group has failed, it has waited for
    /// the step before: that is what makes `slot_mut` sound.
    step: u32,
    /// Collectives so far.
    sequence: u64,
    spin: Duration,
    /// Where in its slots every rank begins, in elements.
    offset: usize,
    watch: Arc<Watch>,
    pub outer: Option<Outer>,
    pub waits: Waits,
}

impl Channel {
    /// The end of a rank that nobody else is.
    pub fn new(region: Arc<Region>, rank: usize, spin: Duration) -> Self {
        let watch = Arc::new(Watch::new(region.clone()));
        Channel {
            region,
            rank,
            step: 1,
            sequence: 0,
            spin,
            offset: 0,
            watch,
            outer: None,
            waits: Waits::default(),
        }
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.region.ranks()
    }

    pub fn slot_len(&self) -> usize {
        self.region.slot_len()
    }

    pub fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }

    /// Counts a collective.
    pub fn begin(&mut self, op: Op) -> Result<(), CollectiveError> {
        self.sequence += 1;
        self.offset = 0;
        self.watch.set(op, self.sequence);
        self.check()
    }

    /// Begins a message that has its own number.
    pub fn begin_message(&mut self, op: Op, number: u64) -> Result<(), CollectiveError> {
        self.watch.set(op, number);
        self.check()
    }

    /// This rank's end of the ring to another rank.
    pub fn pipe_to(&self, to: usize) -> Pipe<'_, Region, RegionRing<'_>> {
        assert!(to != self.rank && to < self.size(), "rank {} sends to another rank, not to {to}", self.rank);
        Pipe { group: &*self.region, ring: self.region.ring(self.rank, to), peer: to }
    }

    /// This rank's end of the ring from another rank.
    pub fn pipe_from(&self, from: usize) -> Pipe<'_, Region, RegionRing<'_>> {
        assert!(from != self.rank && from < self.size(), "rank {} hears others, not {from}", self.rank);
        Pipe { group: &*self.region, ring: self.region.ring(from, self.rank), peer: from }
    }

    /// Lets this and the following steps, which need `len` elements of a slot, go through all of it in turn, instead
    /// of writing the same lines again while the readers' caches still have them: to take a line away from
    /// another cache costs more than to fetch it from the one that both share.
    /// Two ranks swap their slots, and lines come back to them.
    pub fn rotate(&mut self, len: usize) {
        let len = len.next_multiple_of(LINE).max(LINE);
        self.offset = match self.slot_len() / len {
            places if places > 1 && len >= LEAST_ROTATED && self.size() > 2 => {
                self.step as usize / 2 % places * len
            }
            _ => 0,
        };
    }

    pub fn patience(&self, deadline: Option<Duration>) -> Patience {
        Patience { spin: self.spin, deadline }
    }

    /// Whether the group can go on.
    pub fn check(&self) -> Result<(), CollectiveError> {
        if self.region.has_failed() { Err(self.failure()) } else { Ok(()) }
    }

    /// This rank's slot, to be filled before [`Channel::publish`].
    pub fn slot(&mut self) -> Result<&mut [f32], CollectiveError> {
        self.check()?;
        // SAFETY: we are `rank`, we have waited for the step before (see the field; a failed wait fails the
        // group, and then we do not get here), have not published this one, and `&mut self` is held.
        let slot = unsafe { self.region.slot_mut(self.rank, self.step) };
        Ok(&mut slot[self.offset..])
    }

    /// This rank's slot, as bytes.
    pub fn bytes(&mut self) -> Result<&mut [u8], CollectiveError> {
        self.slot().map(as_bytes_mut)
    }

    /// Publishes the slot and waits for those of all ranks. `length` may differ between ranks.
    pub fn publish(&mut self, call: &Call, length: usize) -> Result<Peers<'_>, CollectiveError> {
        self.check()?;
        let step = self.step;
        self.region.set_label(self.rank, step, call.label(), length as u64);
        self.region.publish(self.rank);
        self.step = step.wrapping_add(1);
        if !self.region.are_there(self.rank, step) {
            let began = Instant::now();
            let come = self.region.wait(self.rank, step, &self.patience(call.deadline));
            self.waits.add(self.id(call.op, self.sequence, None), began, Instant::now());
            come.map_err(|stop| self.stopped(call, self.sequence, stop))?;
        }
        for rank in 0..self.size() {
            let (label, _) = self.region.label(rank, step);
            if label != call.label() {
                return Err(self.disagree(call, rank, label));
            }
        }
        Ok(Peers { region: &self.region, rank: self.rank, step, offset: self.offset })
    }

    /// Fails the group, unless it has failed already.
    pub fn fail(&self, rank: usize, message: &str) {
        self.region.fail_with(self.named(rank), message);
    }

    /// The number of a rank in errors.
    pub fn named(&self, rank: usize) -> usize {
        rank + self.outer.map_or(0, |outer| outer.first_rank)
    }

    /// Says that this rank is gone.
    pub fn end(&self) {
        self.region.end(self.rank);
    }

    pub fn failure(&self) -> CollectiveError {
        let (rank, message) = self.region.explanation();
        CollectiveError::Failed { rank, message }
    }

    /// What a call is called, or the larger one of which it is a part. A message has a `peer`.
    pub fn id(&self, op: Op, number: u64, peer: Option<usize>) -> CallId {
        self.outer.map_or(CallId { op: op.name(), number, peer }, |outer| outer.call)
    }

    /// Every wait that does not succeed fails the group: this rank could not go on with the others.
    #[cold]
    pub fn stopped(&self, call: &Call, sequence: u64, stop: Stop) -> CollectiveError {
        let CallId { op, number: sequence, .. } = self.id(call.op, sequence, None);
        match stop {
            Stop::Failed => self.failure(),
            Stop::Ended(gone) => {
                self.fail(gone, &format!("ended before {op} number {sequence}"));
                self.failure()
            }
            Stop::Missing(missing) => {
                let waited_s = call.deadline.unwrap_or_default().as_secs_f64().ceil() as u64;
                let missing = missing.into_iter().map(|rank| self.named(rank)).collect();
                let rank = self.named(self.rank);
                let error = CollectiveError::Missing { op, sequence, rank, missing, waited_s };
                self.fail(self.rank, &error.to_string());
                error
            }
        }
    }

    #[cold]
    fn disagree(&self, call: &Call, rank: usize, label: u64) -> CollectiveError {
        let (theirs, size) = (label >> 56, label & ((1 << 56) - 1));
        let theirs = Op::of_number(theirs as usize).map_or("nothing known", Op::name);
        let message = format!(
            "operation number {} is {} of {} on rank {}, but {theirs} of {size} on rank {}",
            self.sequence,
            call.op.name(),
            call.size,
            self.named(self.rank),
            self.named(rank)
        );
        self.refuse(&message)
    }

    /// Fails the group because of what this rank found, and returns why the group has failed.
    #[cold]
    pub fn refuse(&self, message: &str) -> CollectiveError {
        self.fail(self.rank, message);
        self.failure()
    }
}

/// The slots of one step. Gone before the next can be published, as it borrows the channel.
pub(super) struct Peers<'a> {
    region: &'a Region,
    rank: usize,
    step: u32,
    offset: usize,
}

impl Peers<'_> {
    /// Another rank's slot.
    pub fn slot(&self, rank: usize) -> &[f32] {
        assert_ne!(rank, self.rank, "a rank knows what it wrote, and others may write there now");
        // SAFETY: it is another's. `publish` has waited for this step, and the channel can neither be written nor publish
        // again while we borrow it.
        let slot = unsafe { self.region.slot(rank, self.step) };
        &slot[self.offset..]
    }

    /// Another rank's slot, as bytes.
    pub fn bytes(&self, rank: usize) -> &[u8] {
        as_bytes(self.slot(rank))
    }

    /// The length that a rank published.
    pub fn length(&self, rank: usize) -> usize {
        self.region.label(rank, self.step).1 as usize
    }
}
