//! A rank's end of all its ways to the others.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::{Lane, Receiving, Sending, Spare, Unlike};
use super::notice::{NOTICES, Notice, TAGS};
use super::world::{ANYBODY, Transfer, World};
use crate::message::{Buffer, Call, Incoming, Outgoing, Standing, Wire};
use crate::waits::{Idle, note};
use crate::{CollectiveError, Waits};

/// Lanes: their number is their tag among the group's.
const COLLECTIVES: usize = 0;
const MESSAGES: usize = 1;
/// Bytes under way to a peer in each lane, beyond which the sender waits.
const WINDOWS: [usize; 2] = [1 << 20, 8 << 20];

/// How long a rank looks without a pause, and without more than a short one.
const EAGER: Duration = Duration::from_micros(50);
const PATIENT: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// What is known of a peer.
#[derive(Default)]
struct Peer {
    lanes: [Lane; 2],
    /// It has ended, after so many messages in each lane.
    ended: Option<[u64; 2]>,
}

#[derive(Default)]
struct State {
    peers: Vec<Peer>,
    spare: Spare,
    /// Notices whose sender has not ended yet.
    notices: Vec<Transfer>,
    /// Whether the others know of the failure.
    told: bool,
}

/// A [`Wire`] over MPI.
pub struct MpiWire {
    world: Arc<World>,
    /// The first of the group's tags.
    tag: i32,
    /// Processes, in the order of ranks.
    members: Vec<usize>,
    me: usize,
    deadline: Duration,
    standing: Arc<Standing>,
    state: RefCell<State>,
    waits: Cell<Waits>,
}

/// A call's messages.
struct Exchange<'s, 'a, 'b> {
    lane: usize,
    /// `None`: messages may have any.
    tag: Option<u64>,
    sends: Vec<Sending<'s>>,
    receives: Vec<Receiving<'a, 'b>>,
    /// Whether sends are over only once MPI says that they are gone.
    to_the_end: bool,
}

impl MpiWire {
    pub(super) fn new(
        world: Arc<World>,
        id: u16,
        members: Vec<usize>,
        me: usize,
        deadline: Duration,
    ) -> Self {
        let peers = members.iter().map(|_| Peer::default()).collect();
        // Nobody has to be woken: who waits looks by himself.
        let standing = Arc::new(Standing::new(|| ()));
        let state = RefCell::new(State { peers, ..State::default() });
        MpiWire {
            world,
            tag: i32::from(id) * TAGS,
            members,
            me,
            deadline,
            standing,
            state,
            waits: Cell::default(),
        }
    }

    fn peer(&self, rank: usize, lane: usize) -> (&Arc<World>, usize, i32) {
        (&self.world, self.members[rank], self.tag + lane as i32)
    }

    /// Goes on until a call's messages are through.
    fn run(&self, call: &Call, mut exchange: Exchange<'_, '_, '_>) -> Result<(), CollectiveError> {
        let mut idle = None;
        let result = self.go_on(call, &mut exchange, &mut idle);
        // A wait in vain was one, too.
        note(&self.waits, call.id(), idle.map(|idle| (idle, Instant::now())));
        result
    }

    /// The same. `idle` is the time in which nothing moves, also at its end.
    fn go_on(
        &self,
        call: &Call,
        exchange: &mut Exchange<'_, '_, '_>,
        idle: &mut Option<Idle>,
    ) -> Result<(), CollectiveError> {
        let mut state = self.state.borrow_mut();
        loop {
            // Nobody looks at a clock while nobody is late.
            let looked = idle.as_ref().map(|_| Instant::now());
            match self.step(&mut state, call, exchange) {
                Ok(true) => note(&self.waits, call.id(), idle.take().zip(looked)),
                Ok(false) => {}
                Err(error) => return Err(self.give_up(&mut state, error)),
            }
            if exchange.is_done(&state) {
                return Ok(());
            }
            self.look_around(&mut state)?;
            let since = idle.get_or_insert_with(|| Idle {
                since: Instant::now(),
                awaits_first_byte: exchange.awaits_first_byte(&state),
            });
            let time = since.since.elapsed();
            if call.deadline.is_some_and(|deadline| time >= deadline) {
                let error = call.missing(self.me, exchange.missing(&state));
                self.fail_all(&mut state, self.me, &error.to_string());
                return Err(error);
            }
            if let Some(gone) = exchange.gone(&state) {
                self.fail_all(&mut state, gone, &call.ended());
                return self.standing.check();
            }
            pause(time);
        }
    }

    /// Moves what can be moved now. Says whether anything did.
    fn step(
        &self,
        state: &mut State,
        call: &Call,
        exchange: &mut Exchange<'_, '_, '_>,
    ) -> Result<bool, CollectiveError> {
        let mut moved = false;
        let State { peers, spare, .. } = state;
        let lane = exchange.lane;
        for peer in peers.iter_mut() {
            moved |= peer.lanes[MESSAGES].settle(spare)? && lane == MESSAGES;
            moved |= peer.lanes[COLLECTIVES].settle(spare)? && lane == COLLECTIVES;
        }
        for i in 0..exchange.sends.len() {
            let (before, rest) = exchange.sends.split_at_mut(i);
            let sending = &mut rest[0];
            // One message after the other.
            if before.iter().all(|s| s.to != sending.to || s.is_posted()) {
                let to = self.peer(sending.to, lane);
                moved |= peers[sending.to].lanes[lane].post(sending, to, WINDOWS[lane], spare)?;
            }
        }
        for i in 0..exchange.receives.len() {
            let (before, rest) = exchange.receives.split_at_mut(i);
            let receiving = &mut rest[0];
            let from = receiving.from;
            if before.iter().any(|r| r.from == from && !r.is_done()) {
                continue;
            }
            while !receiving.is_done() {
                let Some(piece) = peers[from].lanes[lane].next(self.peer(from, lane), spare)? else { break };
                let taken = receiving.unpack(exchange.tag, &piece);
                spare.keep(piece);
                taken.map_err(|why| self.unlike(call, from, why))?;
                peers[from].lanes[lane].received += u64::from(receiving.is_done());
                moved = true;
            }
        }
        Ok(moved)
    }

    /// The failure of a message that is not the one that was expected.
    fn unlike(&self, call: &Call, from: usize, why: Unlike) -> CollectiveError {
        let message = match why {
            Unlike::Tag(tag) => call.disagreement(self.me, from, tag),
            Unlike::Length(have, expected) => call.wrong_length(from, have, expected),
            Unlike::Pieces => format!("a message of rank {from} does not end where it said"),
        };
        CollectiveError::Failed { rank: self.me, message }
    }

    /// Takes notices, and tells the others of a failure of which they do not know yet.
    ///
    /// # Errors
    /// The group has failed.
    fn look_around(&self, state: &mut State) -> Result<(), CollectiveError> {
        if let Err(error) = self.take_notices(state) {
            return Err(self.give_up(state, error));
        }
        let failed = self.standing.check();
        if let (Err(CollectiveError::Failed { rank, message }), false) = (&failed, state.told) {
            self.fail_all(state, *rank, message);
        }
        failed
    }

    fn take_notices(&self, state: &mut State) -> Result<(), CollectiveError> {
        let mut buffer = Vec::new();
        let tag = self.tag + NOTICES;
        while let Some((from, mut transfer)) = self.world.receive(ANYBODY, tag, &mut buffer)? {
            // It is small, and here.
            let bytes = loop {
                match transfer.poll()? {
                    Some(bytes) => break bytes,
                    None => std::hint::spin_loop(),
                }
            };
            let rank = self.members.iter().position(|&m| m == from);
            match (Notice::parse(&bytes), rank) {
                (Some(Notice::Ended { sent }), Some(rank)) => state.peers[rank].ended = Some(sent),
                (Some(Notice::Failed { rank, message }), _) => {
                    // Whoever says it tells all others as well.
                    state.told |= self.standing.failure().is_none();
                    self.standing.fail(rank, &message);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What a call says whose transport failed: the group's failure, or this one from now on.
    fn give_up(&self, state: &mut State, error: CollectiveError) -> CollectiveError {
        let message = match &error {
            CollectiveError::Failed { message, .. } => message.clone(),
            other => other.to_string(),
        };
        self.fail_all(state, self.me, &message);
        self.standing.check().err().unwrap_or(error)
    }

    /// Fails the group for all ranks, unless it has failed already.
    fn fail_all(&self, state: &mut State, rank: usize, message: &str) {
        self.standing.fail(rank, message);
        if !std::mem::replace(&mut state.told, true)
            && let Some((rank, message)) = self.standing.failure()
        {
            self.tell(state, |_| Notice::Failed { rank: *rank, message: message.clone() });
        }
    }

    /// Sends a notice to all others that can still want it.
    fn tell(&self, state: &mut State, notice: impl Fn(&Peer) -> Notice) {
        for (rank, peer) in state.peers.iter().enumerate() {
            if rank != self.me && peer.ended.is_none() {
                let bytes = notice(peer).to_bytes();
                // Who cannot be told will notice by himself.
                let sent = self.world.send(bytes, self.members[rank], self.tag + NOTICES);
                state.notices.extend(sent);
            }
        }
    }
}

impl Exchange<'_, '_, '_> {
    fn is_done(&self, state: &State) -> bool {
        let peers = &state.peers;
        let gone = |to: usize| peers[to].ended.is_some() || peers[to].lanes[self.lane].is_settled();
        self.receives.iter().all(Receiving::is_done)
            && self.sends.iter().all(|s| s.is_posted() && (!self.to_the_end || gone(s.to)))
    }

    /// Whether there is a peer of whom nothing has come.
    fn awaits_first_byte(&self, state: &State) -> bool {
        let heard = |from: usize| {
            let begun = self.receives.iter().any(|r| r.from == from && r.has_begun());
            begun || state.peers[from].lanes[self.lane].holds_a_piece()
        };
        self.receives.iter().any(|r| !heard(r.from))
    }

    /// Peers from whom, or else to whom, something has not come through.
    fn missing(&self, state: &State) -> Vec<usize> {
        let mut missing: Vec<_> = self.receives.iter().filter(|r| !r.is_done()).map(|r| r.from).collect();
        if missing.is_empty() {
            let settled = |to: usize| state.peers[to].lanes[self.lane].is_settled();
            let sends = self.sends.iter().filter(|s| !s.is_posted() || !settled(s.to));
            missing = sends.map(|s| s.to).collect();
        }
        missing.sort();
        missing.dedup();
        missing
    }

    /// A peer that has ended without what the call wants of it.
    fn gone(&self, state: &State) -> Option<usize> {
        let ended = |rank: usize| state.peers[rank].ended;
        let nothing_comes = |from: usize| {
            ended(from).is_some_and(|sent| state.peers[from].lanes[self.lane].received >= sent[self.lane])
        };
        let receives = self.receives.iter().filter(|r| !r.is_done() && nothing_comes(r.from)).map(|r| r.from);
        let sends = self.sends.iter().filter(|s| !s.is_posted() && ended(s.to).is_some()).map(|s| s.to);
        receives.chain(sends).next()
    }
}

impl Wire for MpiWire {
    fn rank(&self) -> usize {
        self.me
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
        let sends = sends.iter().map(|s| Sending::new(s.to, call.tag(), s.bytes)).collect();
        let receives = receives.iter_mut().map(|r| Receiving::new(r.from, &mut r.into)).collect();
        let tag = Some(call.tag());
        self.run(call, Exchange { lane: COLLECTIVES, tag, sends, receives, to_the_end: true })
    }

    fn send(&self, call: &Call, to: usize, bytes: &[u8]) -> Result<(), CollectiveError> {
        self.check()?;
        if self.state.borrow().peers[to].ended.is_some() {
            self.fail(to, &call.ended());
            return self.standing.check();
        }
        let sends = vec![Sending::new(to, 0, bytes)];
        let (lane, receives) = (MESSAGES, Vec::new());
        self.run(call, Exchange { lane, tag: None, sends, receives, to_the_end: false })
    }

    fn receive(&self, call: &Call, from: usize, mut into: Buffer<'_>) -> Result<(), CollectiveError> {
        let receives = vec![Receiving::new(from, &mut into)];
        let (lane, sends) = (MESSAGES, Vec::new());
        self.run(call, Exchange { lane, tag: None, sends, receives, to_the_end: false })
    }

    fn has_begun(&self, call: &Call, from: usize) -> Result<bool, CollectiveError> {
        let mut state = self.state.borrow_mut();
        self.look_around(&mut state)?;
        let State { peers, spare, .. } = &mut *state;
        let peer = &mut peers[from];
        match peer.lanes[MESSAGES].has_begun(self.peer(from, MESSAGES), spare) {
            Ok(false) if peer.ended.is_some_and(|sent| peer.lanes[MESSAGES].received >= sent[MESSAGES]) => {
                self.fail_all(&mut state, from, &call.ended());
                self.standing.check().map(|()| false)
            }
            Ok(begun) => Ok(begun),
            Err(error) => Err(self.give_up(&mut state, error)),
        }
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.look_around(&mut self.state.borrow_mut())
    }

    fn fail(&self, rank: usize, message: &str) {
        self.fail_all(&mut self.state.borrow_mut(), rank, message);
    }

    fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    fn waits(&self) -> Waits {
        self.waits.get()
    }
}

impl Drop for MpiWire {
    fn drop(&mut self) {
        let state = &mut *self.state.borrow_mut();
        if std::thread::panicking() {
            self.fail_all(state, self.me, "panicked");
        }
        match self.standing.failure() {
            // What is under way goes on by itself.
            None => self.tell(state, |peer| Notice::Ended { sent: [0, 1].map(|lane| peer.lanes[lane].sent) }),
            Some((rank, message)) => self.fail_all(state, *rank, message),
        }
        self.world.note_end(self.standing.failure().is_some());
    }
}

/// Looks again soon, and less often the longer nothing has come.
fn pause(idle: Duration) {
    match idle {
        _ if idle < EAGER => std::hint::spin_loop(),
        _ if idle < PATIENT => std::thread::yield_now(),
        _ => std::thread::sleep((idle / 32).min(PAUSE_MAX)),
    }
}
