//! One rank of a group on GPUs.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use collective::{
    CallId, Collective, CollectiveError, CollectiveStats, Compressed, Group, Staged, Watched, WireDType,
};
use tensor::Reference;

use super::agreed::Refusal;
use super::moves::Moves;
use super::peers::{ALL_TO_ALL, FIRST_OF_MESSAGES, FIRST_SLOT, OPS, Peers, RECV};
use super::rings::RING_BYTES;
use super::setup;
use super::standing::{Ending, Standing, WatchedStanding};
use crate::driver::Fault;
use crate::nccl::NcclPath;
use crate::tensor::{CudaTensor, Queue};

/// Bytes of one of a rank's two slots. A step of a few tokens needs kilobytes; what is more comes in pieces.
const SLOT_BYTES: usize = 8 << 20;

/// Bytes of a GPU's memory that a rank needs for a group by which it exchanges.
pub const GROUP_BYTES: usize = FIRST_SLOT + 2 * SLOT_BYTES + RING_BYTES;

/// What ranks can't do, for reasons that follow.
const NO_PEERS: &str = "GPUs can't use each other's memory";

/// Of a rank that others wait for in vain.
const ENDED: &str = "it has ended";

/// How the GPUs of a group's ranks are to reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// The first of those below that all ranks find to work.
    #[default]
    Shortest,
    /// They use each other's memory.
    Peers,
    /// NVIDIA's library.
    Nccl,
    /// Through the host.
    Host,
}

/// A group of ranks on GPUs over one of their hosts, which has all that is not tensors. Once [prepared](Collective::prepare), tensors
/// go the shortest way that all ranks found to work; before that, and where there is none, through the host.
pub struct CudaGroup<C: Group> {
    pub(super) host: Staged<Compressed<C>>,
    pub(super) wire: WireDType,
    pub(super) deadline: Duration,
    /// Of the last message that was waited for.
    pub(super) patience: Cell<Duration>,
    /// Matrices so far, by what was done and with whom.
    messages: RefCell<HashMap<(&'static str, usize), u64>>,
    slot_bytes: usize,
    way: Way,
    /// What its ranks are called.
    numbers: Vec<usize>,
    /// What ranks share, from [`Collective::share`] until it is known whether that will do.
    mapped: Cell<Option<Result<Peers, Refusal>>>,
    path: OnceCell<Path>,
    pub(super) standing: Arc<Standing>,
    /// What is added to the host's counts, and what is taken off.
    own: Cell<CollectiveStats>,
    prepared: Cell<CollectiveStats>,
    ending: Ending,
}

/// How tensors get to other ranks.
pub(super) enum Path {
    /// Through the host.
    Staged,
    /// Ranks use each other's memory.
    Peers(Box<Peers>),
    /// NVIDIA's library moves what is exchanged.
    Nccl(Moves<NcclPath>),
}

impl<C: Collective<Reference>> CudaGroup<C> {
    /// A group over a host's. The values of all-reduces travel as `wire`; who waits longer than `deadline` gives up. All ranks agree on
    /// both.
    pub fn new(host: C, wire: WireDType, deadline: Duration) -> Self {
        let standing = Arc::new(Standing::default());
        let ending = Ending {
            standing: standing.clone(),
            rank: host.rank(),
            kernels: Cell::default(),
            messages: Cell::default(),
        };
        CudaGroup {
            numbers: (0..host.size()).collect(),
            host: Staged(Compressed::new(host, wire)),
            wire,
            deadline,
            patience: Cell::new(deadline),
            messages: RefCell::default(),
            slot_bytes: SLOT_BYTES,
            way: Way::default(),
            mapped: Cell::default(),
            path: OnceCell::new(),
            standing,
            own: Cell::default(),
            prepared: Cell::default(),
            ending,
        }
    }

    /// The same with slots of so many bytes, a multiple of 16: what is larger comes in pieces. All ranks agree on it.
    pub fn with_slots(self, slot_bytes: usize) -> Self {
        assert!(slot_bytes >= 1024 && slot_bytes.is_multiple_of(16), "slots of {slot_bytes} bytes");
        CudaGroup { slot_bytes, ..self }
    }

    /// The same by one way and no other, for which [`Collective::prepare`] then is an error. All ranks agree on it.
    pub fn by(self, way: Way) -> Self {
        CudaGroup { way, ..self }
    }

    /// The same, of ranks that the job has other numbers for: what one rank says of another calls it by that. All ranks agree on them.
    pub fn called(self, numbers: &[usize]) -> Self {
        assert_eq!(self.size(), numbers.len(), "a number for every rank");
        CudaGroup { numbers: numbers.into(), ..self }
    }

    /// How tensors get to other ranks, in a word or two.
    pub fn path(&self) -> &'static str {
        match self.path.get() {
            Some(Path::Peers(_)) => "peer memory",
            Some(Path::Nccl(_)) => "nccl",
            Some(Path::Staged) | None => "through the host",
        }
    }

    /// All-reduces of at most so many bytes of a rank are done in one shot from now on, larger ones in two: the bits are the same.
    /// All ranks agree on it. Without peer memory it changes nothing.
    pub fn set_one_shot_bytes(&self, bytes: usize) {
        if let Some(peers) = self.peers() {
            peers.one_shot_bytes.set(bytes);
        }
    }

    pub(super) fn peers(&self) -> Option<&Peers> {
        match self.path.get() {
            Some(Path::Peers(peers)) => Some(&**peers),
            _ => None,
        }
    }

    pub(super) fn nccl(&self) -> Option<&Moves<NcclPath>> {
        match self.path.get() {
            Some(Path::Nccl(moves)) => Some(moves),
            _ => None,
        }
    }

    /// As [`Collective::share`].
    pub(super) fn map(&self, queue: &Queue) -> Result<(), CollectiveError> {
        if self.size() > 1 && matches!(self.way, Way::Shortest | Way::Peers) {
            self.mapped.set(Some(self.peers_mapped(queue)?));
        }
        Ok(())
    }

    fn peers_mapped(&self, queue: &Queue) -> Result<Result<Peers, Refusal>, CollectiveError> {
        setup::map(&self.host, &self.numbers, queue, self.slot_bytes, self.deadline)
    }

    /// As [`Collective::prepare`].
    pub(super) fn find_path(&self, queue: &Queue) -> Result<Option<String>, CollectiveError> {
        if self.size() == 1 || self.path.get().is_some() {
            return Ok(None);
        }
        queue.0.driver.meets_others();
        let mut long_way = None;
        let path = match self.way {
            Way::Host => Path::Staged,
            Way::Shortest | Way::Peers => match self.found_peers(queue)? {
                Ok(peers) => Path::Peers(Box::new(peers)),
                Err(no_peers) if self.way == Way::Shortest => {
                    self.by_nccl(queue)?.unwrap_or_else(|no_nccl| {
                        long_way = Some(self.long_way(&no_peers, &no_nccl));
                        Path::Staged
                    })
                }
                Err(Refusal { rank, why }) => {
                    return Err(self.refused(rank, &format!("{NO_PEERS}: {why}")));
                }
            },
            Way::Nccl => self.by_nccl(queue)?.map_err(|Refusal { rank, why }| self.refused(rank, &why))?,
        };
        if let Path::Peers(peers) = &path {
            self.ending.kernels.set(peers.calls.get());
            self.standing.set_words(peers.words.clone());
            // The ranks' memory stays for as long as this rank's kernels may use it: until the queue is gone.
            let held = (peers.own_words().clone(), peers.regions.clone(), self.numbers.clone());
            // What was read behind a kernel that gave up is nothing.
            queue.0.watch(Box::new(move || {
                let (words, _regions, numbers) = &held;
                words.report().map_or(Ok(()), |report| Err(report.fault(numbers)))
            }));
        }
        self.path.set(path).ok();
        self.standing.enter_host(self.host.watched().progress().sequence);
        self.prepared.set(self.host.stats());
        Ok(long_way)
    }

    /// What ranks share, if that works.
    fn found_peers(&self, queue: &Queue) -> Result<Result<Peers, Refusal>, CollectiveError> {
        let mapped = match self.mapped.take() {
            Some(mapped) => mapped,
            None => self.peers_mapped(queue)?,
        };
        match mapped {
            Ok(peers) => setup::tried(&self.host, &self.numbers, queue, peers),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn by_nccl(&self, queue: &Queue) -> Result<Result<Path, Refusal>, CollectiveError> {
        let (rank, ranks) = (self.rank(), self.size());
        let path = NcclPath::new(queue, &self.host, self.deadline)?;
        Ok(path.map(|path| Path::Nccl(Moves { path, rank, ranks })))
    }

    /// Why there is no way but through the host.
    fn long_way(&self, no_peers: &Refusal, no_nccl: &Refusal) -> String {
        let said = |Refusal { rank, why }: &Refusal| format!("rank {}: {why}", self.numbers[*rank]);
        match no_peers == no_nccl {
            true => format!("{NO_PEERS}, nor NCCL: {}", said(no_peers)),
            false => format!("{NO_PEERS}: {}; nor NCCL: {}", said(no_peers), said(no_nccl)),
        }
    }

    /// What a rank can't do: none of them goes on.
    fn refused(&self, rank: usize, why: &str) -> CollectiveError {
        self.watched().abort(rank, why);
        CollectiveError::Failed { rank, message: why.into() }
    }

    /// One call over NVIDIA's library. How it ended is known where results are read.
    pub(super) fn call_nccl(
        &self,
        op: &'static str,
        count: impl FnOnce(&mut CollectiveStats),
        run: impl FnOnce(CallId) -> Result<CudaTensor, Fault>,
    ) -> Result<CudaTensor, CollectiveError> {
        let call = self.standing.enter(op, self.host.watched().progress());
        self.check()?;
        let made = run(call).map_err(|Fault(why)| self.refused(self.rank(), &why))?;
        let mut own = self.own.get();
        count(&mut own);
        self.own.set(own);
        Ok(made)
    }

    /// One message over NVIDIA's library, with the rank of this number, likewise.
    pub(super) fn message_nccl<T>(
        &self,
        op: &'static str,
        with: usize,
        count: impl FnOnce(&mut CollectiveStats),
        run: impl FnOnce(CallId) -> Result<T, Fault>,
    ) -> Result<T, CollectiveError> {
        let call = self.enter_message(op, with);
        self.check()?;
        let made = run(call).map_err(|Fault(why)| self.refused(self.rank(), &why))?;
        let mut own = self.own.get();
        count(&mut own);
        self.own.set(own);
        Ok(made)
    }

    /// One call over peers' memory, which brings `counted` to the counts.
    pub(super) fn call(
        &self,
        op: usize,
        peers: &Peers,
        count: impl FnOnce(&mut CollectiveStats),
        run: impl FnOnce() -> CudaTensor,
    ) -> Result<CudaTensor, CollectiveError> {
        self.standing.enter(OPS[op], self.host.watched().progress());
        self.check()?;
        let made = run();
        self.ending.kernels.set(peers.calls.get());
        match op {
            ALL_TO_ALL => self.standing.leave_exchange(peers.rings.exchanges.get()),
            _ => self.standing.leave(peers.calls.get()),
        }
        self.launched(peers, count)?;
        Ok(made)
    }

    /// One message over peers' memory, with the rank of this number.
    pub(super) fn message<T>(
        &self,
        op: usize,
        peers: &Peers,
        with: usize,
        count: impl FnOnce(&mut CollectiveStats),
        run: impl FnOnce() -> T,
    ) -> Result<T, CollectiveError> {
        self.enter_message(OPS[op], with);
        self.check()?;
        let made = run();
        self.launched(peers, count)?;
        Ok(made)
    }

    /// A matrix of two ranks begins. Its number counts those to the other one, or of it, that do not go through the host.
    fn enter_message(&self, op: &'static str, with: usize) -> CallId {
        let mut messages = self.messages.borrow_mut();
        let number = messages.entry((op, with)).or_default();
        *number += 1;
        self.standing.enter_message(op, *number, self.host.watched().progress());
        CallId { op, number: *number, peer: Some(with) }
    }

    fn launched(
        &self,
        peers: &Peers,
        count: impl FnOnce(&mut CollectiveStats),
    ) -> Result<(), CollectiveError> {
        self.ending.messages.set(peers.rings.counts.get());
        let mut own = self.own.get();
        count(&mut own);
        self.own.set(own);
        // Where kernels run as they are launched, it is known by now how that ended.
        self.check()
    }

    /// A collective of the host's group, which counts those alone.
    pub(super) fn of_host<T>(&self, call: impl FnOnce(&Staged<Compressed<C>>) -> T) -> T {
        self.standing.enter_host(1);
        call(&self.host)
    }

    /// What this rank's kernels have found out.
    fn reported(&self) -> Result<(), CollectiveError> {
        let Some(report) = self.peers().and_then(Peers::report) else { return Ok(()) };
        let (rank, missing) = (self.rank(), report.missing_ranks());
        // What the host's group knows is the cause.
        self.host.check()?;
        if let Some(message) = report.other_size(&self.numbers) {
            self.fail(&message);
            return Err(CollectiveError::Failed { rank, message });
        }
        if !report.is_late {
            let ended = missing.first().copied().unwrap_or(rank);
            return Err(CollectiveError::Failed { rank: ended, message: ENDED.into() });
        }
        let op = OPS.get(report.op).copied().unwrap_or("a collective");
        let sequence = match report.op {
            ALL_TO_ALL => self.standing.number_of_exchange(report.epoch),
            FIRST_OF_MESSAGES.. => u64::from(report.epoch),
            _ => self.standing.number_of(report.epoch),
        };
        let waited = if report.op == RECV { self.patience.get() } else { self.deadline };
        let waited_s = waited.as_secs();
        let error = CollectiveError::Missing { op, sequence, rank, missing, waited_s };
        self.fail(&error.to_string());
        Err(error)
    }
}

impl<C: Collective<Reference>> Group for CudaGroup<C> {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.of_host(|host| host.all_gather_host(part))
    }

    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.of_host(|host| host.all_to_all_host(parts))
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        self.of_host(|host| host.broadcast(bytes, deadline))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.of_host(|host| host.barrier())
    }

    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        self.host.send_bytes(bytes, to)
    }

    fn recv_bytes(&self, from: usize, deadline: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        self.host.recv_bytes(from, deadline)
    }

    fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        self.host.try_recv_bytes(from)
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.reported()?;
        self.host.check()
    }

    fn fail(&self, message: &str) {
        self.host.fail(message);
        self.standing.stop_all();
    }

    fn watched(&self) -> Arc<dyn Watched> {
        Arc::new(WatchedStanding { host: self.host.watched(), standing: self.standing.clone() })
    }

    fn stats(&self) -> CollectiveStats {
        let (host, own, before) = (self.host.stats(), self.own.get(), self.prepared.get());
        CollectiveStats {
            all_reduce_calls: host.all_reduce_calls + own.all_reduce_calls,
            all_reduce_bytes: host.all_reduce_bytes + own.all_reduce_bytes,
            all_reduce_s: host.all_reduce_s + own.all_reduce_s,
            other_calls: host.other_calls + own.other_calls - before.other_calls,
            sent_bytes: host.sent_bytes + own.sent_bytes - before.sent_bytes,
            waits: host.waits - before.waits,
            waited: host.waited - before.waited,
            waiting_since: host.waiting_since,
        }
    }
}
