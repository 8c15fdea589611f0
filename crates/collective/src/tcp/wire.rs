//! A rank's end of a group: it drives all connections while it waits.

use std::cell::Cell;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::exchange::Exchange;
use super::frame::{self, Kind};
use super::groups::Local;
use super::shared::{Owner, State};
use super::system;
use super::waker::Waker;
use crate::message::{Buffer, Call, Incoming, Outgoing, Standing, Wire};
use crate::waits::{Idle, note};
use crate::{CollectiveError, Waits};

/// Bytes posted to a peer that a rank need not wait for.
const ROOM: usize = 4 << 20;
/// The longest sleep.
const NAP: Duration = Duration::from_millis(50);
/// How long an end waits for what was sent before to be taken.
const LINGER: Duration = Duration::from_secs(1);

/// Asked from time to time by who waits: an error ends the wait.
type Guard<'a> = &'a dyn Fn() -> Result<(), CollectiveError>;

/// A wire whose waits end also for reasons that it does not see itself.
pub(crate) struct Guarded<'a> {
    pub wire: &'a TcpWire,
    pub guard: Guard<'a>,
}

/// One rank of a group over TCP, as [`Wire`].
pub struct TcpWire {
    owner: Arc<Owner>,
    id: u16,
    rank: usize,
    members: Vec<usize>,
    deadline: Duration,
    standing: Arc<Standing>,
    waker: Arc<Waker>,
    waits: Cell<Waits>,
}

impl TcpWire {
    pub(super) fn join(
        owner: Arc<Owner>,
        id: u16,
        members: &[usize],
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        let me = owner.shared.me;
        let rank = members.iter().position(|&m| m == me).expect("one is a member of one's groups");
        let waker = Arc::new(Waker::new().map_err(|e| system(rank, &e))?);
        let (ours, post) = (waker.clone(), owner.shared.post.clone());
        let standing = Arc::new(Standing::new(move || {
            ours.wake();
            post.wake();
        }));
        let members = members.to_vec();
        let local = Local {
            rank,
            members: members.clone(),
            standing: standing.clone(),
            waker: waker.clone(),
            sleeping: false,
            told: false,
        };
        let mut state = owner.shared.lock();
        for (rank, &member) in members.iter().enumerate() {
            if let Some(why) = state.closed(member) {
                standing.fail(rank, why);
            }
        }
        state.groups.join(id, local);
        drop(state);
        Ok(TcpWire { owner, id, rank, members, deadline, standing, waker, waits: Cell::default() })
    }

    /// The world rank of a member, which must have a connection.
    fn peer(&self, rank: usize) -> usize {
        let peer = self.members[rank];
        let connected = self.owner.shared.sockets[peer].is_some();
        assert!(connected, "rank {} has no connection with rank {rank}", self.rank);
        peer
    }

    /// Goes on until the exchange is done or, if `leave`, what is left of it fits into the room for posted messages.
    ///
    /// Before each sleep `guard` is asked whether it is worth to wait on.
    fn drive(
        &self,
        call: &Call,
        exchange: &mut Exchange<'_>,
        leave: bool,
        guard: Guard<'_>,
    ) -> Result<(), CollectiveError> {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        let mut idle: Option<Idle> = None;
        // Another thread may have put into a queue what this one waits for.
        let mut look = true;
        loop {
            exchange.moved = false;
            // Nobody looks at a clock while nobody is late.
            let looked = idle.as_ref().map(|_| Instant::now());
            let moved = state.pump(shared, Some(exchange));
            if (std::mem::take(&mut look) || moved)
                && let Err(why) = state.groups.settle(exchange, call)
            {
                self.standing.fail(self.rank, &why);
            }
            if exchange.moved {
                note(&self.waits, call.id(), idle.take().zip(looked));
            }
            // What is complete is complete, also if the news of a failure came right behind it.
            if exchange.is_done() {
                return Ok(());
            }
            if let Err(error) = self.standing.check() {
                note(&self.waits, call.id(), idle.zip(looked));
                return Err(self.give_up(state, exchange, error));
            }
            if let Some(peer) = state.groups.gone(exchange) {
                // It may have ended because of what the guard knows.
                match guard() {
                    Err(CollectiveError::Failed { rank, message }) => self.standing.fail(rank, &message),
                    _ => self.standing.fail(self.rank_of(peer), &call.ended()),
                }
                continue;
            }
            if leave && post(&mut state, exchange) {
                shared.post.wake();
                return Ok(());
            }
            let since = idle.get_or_insert_with(|| Idle {
                since: Instant::now(),
                awaits_first_byte: state.groups.awaits_first_byte(exchange),
            });
            if moved {
                continue;
            }
            let waited =
                looked.map_or(Duration::ZERO, |looked| looked.saturating_duration_since(since.since));
            if call.deadline.is_some_and(|d| waited >= d) {
                note(&self.waits, call.id(), idle.zip(looked));
                let missing = exchange.missing().into_iter().map(|p| self.rank_of(p)).collect();
                let error = call.missing(self.rank, missing);
                self.standing.fail(self.rank, &error.to_string());
                return Err(self.give_up(state, exchange, error));
            }
            if waited < shared.spin {
                // Whoever is to answer may want this very core.
                drop(state);
                std::thread::yield_now();
                state = shared.lock();
                look = true;
                continue;
            }
            if let Err(CollectiveError::Failed { rank, message }) = guard() {
                self.standing.fail(rank, &message);
                continue;
            }
            let nap = call.deadline.map_or(NAP, |d| (d - waited).min(NAP));
            let interest = state.interest(Some(exchange));
            state.groups.local(self.id).sleeping = true;
            drop(state);
            shared.sleep(&interest, &self.waker, Some(nap));
            state = shared.lock();
            state.groups.local(self.id).sleeping = false;
            look = true;
        }
    }

    fn rank_of(&self, peer: usize) -> usize {
        self.members.iter().position(|&m| m == peer).expect("peers are members")
    }

    /// Leaves an exchange without success: the group has failed, and the others are told.
    fn give_up(
        &self,
        mut state: MutexGuard<'_, State>,
        exchange: &mut Exchange<'_>,
        error: CollectiveError,
    ) -> CollectiveError {
        state.abandon(exchange);
        state.flush(&self.owner.shared);
        state.groups.wake_others(self.id);
        self.owner.shared.post.wake();
        error
    }

    /// Looks at all connections without waiting.
    fn look(&self) -> MutexGuard<'_, State> {
        let mut state = self.owner.shared.lock();
        state.pump(&self.owner.shared, None);
        state
    }
}

/// Takes over what is left of messages, if there is room.
fn post(state: &mut State, exchange: &mut Exchange<'_>) -> bool {
    (0..exchange.sends.len()).all(|send| {
        let sending = &exchange.sends[send];
        let left = sending.bytes.len() - sending.sent;
        let fits =
            state.link(sending.peer).filter(|link| link.closed.is_none() && link.queued + left <= ROOM);
        fits.map(|link| link.take_over(exchange, send)).is_some()
    })
}

impl Wire for TcpWire {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn exchange(
        &self,
        call: &Call,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), CollectiveError> {
        Guarded { wire: self, guard: &|| Ok(()) }.exchange(call, sends, receives)
    }

    fn send(&self, call: &Call, to: usize, bytes: &[u8]) -> Result<(), CollectiveError> {
        Guarded { wire: self, guard: &|| Ok(()) }.send(call, to, bytes)
    }

    fn receive(&self, call: &Call, from: usize, into: Buffer<'_>) -> Result<(), CollectiveError> {
        Guarded { wire: self, guard: &|| Ok(()) }.receive(call, from, into)
    }

    fn has_begun(&self, call: &Call, from: usize) -> Result<bool, CollectiveError> {
        let (peer, state) = (self.peer(from), self.look());
        self.standing.check()?;
        if state.groups.has_begun(self.id, peer) {
            return Ok(true);
        }
        if state.groups.has_ended(self.id, peer) {
            self.standing.fail(from, &call.ended());
        }
        drop(state);
        self.standing.check().map(|()| false)
    }

    fn check(&self) -> Result<(), CollectiveError> {
        drop(self.look());
        self.standing.check()
    }

    fn fail(&self, rank: usize, message: &str) {
        self.standing.fail(rank, message);
        self.owner.shared.lock().flush(&self.owner.shared);
    }

    fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    fn waits(&self) -> Waits {
        self.waits.get()
    }
}

impl Wire for Guarded<'_> {
    fn rank(&self) -> usize {
        self.wire.rank
    }

    fn size(&self) -> usize {
        self.wire.members.len()
    }

    fn deadline(&self) -> Duration {
        self.wire.deadline
    }

    fn exchange(
        &self,
        call: &Call,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), CollectiveError> {
        let mut exchange = Exchange::new(self.wire.id, Kind::Collective, call);
        sends.iter().for_each(|s| exchange.send(self.wire.peer(s.to), s.bytes));
        receives.iter_mut().for_each(|r| exchange.receive(self.wire.peer(r.from), &mut r.into));
        self.wire.drive(call, &mut exchange, false, self.guard)
    }

    fn send(&self, call: &Call, to: usize, bytes: &[u8]) -> Result<(), CollectiveError> {
        let mut exchange = Exchange::new(self.wire.id, Kind::Message, call);
        exchange.send(self.wire.peer(to), bytes);
        self.wire.drive(call, &mut exchange, true, self.guard)
    }

    fn receive(&self, call: &Call, from: usize, mut into: Buffer<'_>) -> Result<(), CollectiveError> {
        let mut exchange = Exchange::new(self.wire.id, Kind::Message, call);
        exchange.receive(self.wire.peer(from), &mut into);
        self.wire.drive(call, &mut exchange, false, self.guard)
    }

    fn has_begun(&self, call: &Call, from: usize) -> Result<bool, CollectiveError> {
        self.wire.has_begun(call, from)
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.wire.check()
    }

    fn fail(&self, rank: usize, message: &str) {
        self.wire.fail(rank, message);
    }

    fn standing(&self) -> &Arc<Standing> {
        &self.wire.standing
    }

    fn waits(&self) -> Waits {
        self.wire.waits()
    }
}

impl Drop for TcpWire {
    fn drop(&mut self) {
        let shared = &self.owner.shared;
        if std::thread::panicking() {
            self.standing.fail(self.rank, "panicked");
        }
        let mut state = shared.lock();
        state.flush(shared);
        let others: Vec<_> = self.members.iter().copied().filter(|&m| m != shared.me).collect();
        for &member in &others {
            if let Some(link) = state.link(member).filter(|l| l.closed.is_none()) {
                link.push(frame::end(self.id));
            }
        }
        state.groups.close(self.id);
        let until = Instant::now() + LINGER;
        loop {
            state.pump(shared, None);
            let mut outputs = state.outputs();
            outputs.retain(|(peer, _)| others.contains(peer));
            let left = until.saturating_duration_since(Instant::now());
            if outputs.is_empty() || left.is_zero() {
                return;
            }
            // Whoever does not read because it waits for room itself is read from.
            let interest = state.interest(None);
            drop(state);
            shared.sleep(&interest, &self.waker, Some(left.min(NAP)));
            state = shared.lock();
        }
    }
}
