//! The groups of a mesh, and what has arrived for them and is not wanted yet.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::exchange::Exchange;
use super::frame::{Header, Kind, read_fail};
use super::waker::Waker;
use crate::message::{Buffer, Call, Standing};

/// Bytes kept for calls that have not been made. A peer that sends more waits until it is asked for something.
const MAX_QUEUED: usize = 256 << 20;
/// Room that a message gets before its bytes have come.
const TRUSTED: u64 = 1 << 20;

/// A message that came before it was asked for.
struct Message {
    tag: u64,
    total: u64,
    bytes: Vec<u8>,
    filled: usize,
}

/// Where the bytes of the message go that arrives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// The last of the queue.
    Queue,
    /// The buffer of the call that waits for it.
    Buffer,
    /// Nobody waits any more.
    Nowhere,
}

/// What comes from one peer in one lane.
#[derive(Default)]
struct Lane {
    queue: VecDeque<Message>,
    /// Bytes still to come of the message that arrives, and where they go.
    arriving: Option<(u64, To)>,
}

/// What a group knows of one peer.
#[derive(Default)]
struct Peer {
    collectives: Lane,
    messages: Lane,
    ended: bool,
}

impl Peer {
    fn lane(&mut self, kind: Kind) -> &mut Lane {
        if kind == Kind::Message { &mut self.messages } else { &mut self.collectives }
    }
}

/// This process's rank in a group.
pub struct Local {
    pub rank: usize,
    /// World ranks.
    pub members: Vec<usize>,
    pub standing: Arc<Standing>,
    pub waker: Arc<Waker>,
    /// Whether the rank's thread sleeps.
    pub sleeping: bool,
    /// Whether the others have been told of the failure.
    pub told: bool,
}

impl Local {
    pub fn rank_of(&self, peer: usize) -> Option<usize> {
        self.members.iter().position(|&m| m == peer)
    }
}

/// A group; also one that peers have begun and this process has not yet.
#[derive(Default)]
pub struct Group {
    pub local: Option<Local>,
    /// Whether this process's rank has ended.
    pub closed: bool,
    peers: HashMap<usize, Peer>,
    /// A failure that came before the rank.
    early_failure: Option<(usize, String)>,
}

impl Group {
    /// Whether what comes is for nobody.
    fn is_over(&self) -> bool {
        self.closed || self.local.as_ref().is_some_and(|l| l.standing.failure().is_some())
    }
}

/// Where bytes of a frame are to be put.
pub enum Space<'s> {
    Into(&'s mut [u8]),
    /// Nobody wants them.
    Discard,
    /// They are another thread's, or too many wait already.
    Blocked,
}

fn discard<'s>(lane: &mut Lane) -> Space<'s> {
    lane.arriving.as_mut().expect("its message has begun").1 = To::Nowhere;
    Space::Discard
}

/// All groups of a mesh.
#[derive(Default)]
pub struct Groups {
    groups: HashMap<u16, Group>,
    /// Bytes in queues, by peer.
    queued: HashMap<usize, usize>,
}

impl Groups {
    /// Adds this process's rank to a group.
    ///
    /// # Panics
    /// If it has been there before.
    pub fn join(&mut self, id: u16, local: Local) {
        let group = self.groups.entry(id).or_default();
        assert!(group.local.is_none() && !group.closed, "group {id} is used once");
        if let Some((rank, message)) = group.early_failure.take() {
            local.standing.fail(rank, &message);
        }
        group.local = Some(local);
    }

    /// The rank of this process.
    pub fn local(&mut self, id: u16) -> &mut Local {
        self.groups.get_mut(&id).and_then(|g| g.local.as_mut()).expect("a rank's group is there")
    }

    /// Forgets what has come; what comes later is thrown away.
    pub fn close(&mut self, id: u16) {
        let group = self.groups.entry(id).or_default();
        group.closed = true;
        group.local = None;
        for (&peer, held) in &mut group.peers {
            let lanes = [&mut held.collectives, &mut held.messages];
            let bytes: usize = lanes.iter().flat_map(|l| &l.queue).map(|m| m.filled).sum();
            *self.queued.entry(peer).or_default() -= bytes;
            lanes.into_iter().for_each(|lane| lane.queue.clear());
        }
    }

    /// A frame begins.
    ///
    /// # Errors
    /// It does not follow from those before.
    pub fn begin(
        &mut self,
        peer: usize,
        header: &Header,
        exchange: Option<&mut Exchange<'_>>,
    ) -> Result<(), String> {
        let group = self.groups.entry(header.group).or_default();
        if group.local.as_ref().is_some_and(|l| l.rank_of(peer).is_none()) {
            return Err(format!("a frame for group {}, of which it is no member", header.group));
        }
        let gone = group.is_over();
        let from = group.peers.entry(peer).or_default();
        if from.ended {
            return Err(format!("a frame for group {}, which it has ended", header.group));
        }
        let lane = from.lane(header.kind);
        match (&mut lane.arriving, header.first) {
            (Some((left, _)), false) if header.len as u64 <= *left => return Ok(()),
            (None, true) => {}
            _ => return Err("a frame that does not continue its message".into()),
        }
        if gone {
            lane.arriving = Some((header.total, To::Nowhere));
            return Ok(());
        }
        let wanted = exchange.filter(|e| e.is(header.group, header.kind) && lane.queue.is_empty());
        let wanted = wanted.and_then(|e| (e.tag == header.tag).then(|| e.next_receive(peer)).flatten());
        let to = match wanted {
            Some(receiving) if receiving.fits(header.total) => To::Buffer,
            _ => {
                let bytes = Vec::with_capacity(header.total.min(TRUSTED) as usize);
                lane.queue.push_back(Message { tag: header.tag, total: header.total, bytes, filled: 0 });
                To::Queue
            }
        };
        lane.arriving = Some((header.total, to));
        Ok(())
    }

    /// Room for up to `left` bytes of a frame that has begun.
    pub fn space<'s>(
        &'s mut self,
        peer: usize,
        header: &Header,
        left: usize,
        exchange: Option<&'s mut Exchange<'_>>,
    ) -> Space<'s> {
        let group = self.groups.get_mut(&header.group).expect("its frame has begun");
        let gone = group.is_over();
        let lane = group.peers.get_mut(&peer).expect("its frame has begun").lane(header.kind);
        let mine = exchange.filter(|e| e.is(header.group, header.kind));
        match lane.arriving {
            Some((_, To::Buffer)) => match mine.and_then(|e| e.next_receive(peer)) {
                Some(receiving) => {
                    let rest = receiving.rest();
                    let len = rest.len().min(left);
                    Space::Into(&mut rest[..len])
                }
                None if gone => discard(lane),
                None => Space::Blocked,
            },
            Some((_, To::Nowhere)) => Space::Discard,
            _ if gone => discard(lane),
            _ if self.queued.get(&peer).is_some_and(|q| *q > MAX_QUEUED)
                && !mine.is_some_and(|e| e.awaits(peer)) =>
            {
                Space::Blocked
            }
            _ => {
                let message = lane.queue.back_mut().expect("what arrives is the last");
                message.bytes.resize(message.filled + left, 0);
                Space::Into(&mut message.bytes[message.filled..])
            }
        }
    }

    /// `len` bytes of a frame have come.
    pub fn advance(&mut self, peer: usize, header: &Header, len: usize, exchange: Option<&mut Exchange<'_>>) {
        let group = self.groups.get_mut(&header.group).expect("its frame has begun");
        let lane = group.peers.get_mut(&peer).expect("its frame has begun").lane(header.kind);
        let (left, to) = lane.arriving.as_mut().expect("its message has begun");
        *left -= len as u64;
        let complete = *left == 0;
        let mine = exchange.filter(|e| e.is(header.group, header.kind));
        if let Some(exchange) = mine {
            exchange.moved |= exchange.awaits(peer);
            if *to == To::Buffer
                && let Some(receiving) = exchange.next_receive(peer)
            {
                receiving.got += len;
                receiving.done = complete;
            }
        }
        if *to == To::Queue
            && let Some(message) = lane.queue.back_mut()
        {
            message.filled += len;
            *self.queued.entry(peer).or_default() += len;
        }
        if complete {
            lane.arriving = None;
        }
        if let Some(local) = group.local.as_ref().filter(|l| l.sleeping) {
            local.waker.wake();
        }
    }

    /// A rank's last frame in a group.
    pub fn control(&mut self, peer: usize, header: &Header, bytes: &[u8]) -> Result<(), String> {
        let group = self.groups.entry(header.group).or_default();
        if group.local.as_ref().is_some_and(|l| l.rank_of(peer).is_none()) {
            return Err(format!("a frame for group {}, of which it is no member", header.group));
        }
        match header.kind {
            Kind::Fail => {
                let (rank, message) = read_fail(bytes)?;
                match &mut group.local {
                    // Passed on once: whoever says it may have no connection with all others.
                    Some(local) => local.standing.fail(rank, &message),
                    None => {
                        group.early_failure.get_or_insert((rank, message));
                    }
                }
            }
            _ => {
                group.peers.entry(peer).or_default().ended = true;
                if let Some(local) = group.local.as_ref().filter(|l| l.sleeping) {
                    local.waker.wake();
                }
            }
        }
        Ok(())
    }

    /// Gives an exchange what has come for it before.
    ///
    /// # Errors
    /// It cannot be what the call waits for.
    pub fn settle(&mut self, exchange: &mut Exchange<'_>, call: &Call) -> Result<(), String> {
        let group = self.groups.get_mut(&exchange.group).expect("a rank's group is there");
        let local = group.local.as_ref().expect("this rank is there");
        for at in 0..exchange.receives.len() {
            let (before, rest) = exchange.receives.split_at_mut(at);
            let receiving = &mut rest[0];
            // One after the other, and not what goes straight to its buffer.
            let later = before.iter().any(|r| r.peer == receiving.peer && !r.done);
            if receiving.done || receiving.got > 0 || later {
                continue;
            }
            let Some(lane) = group.peers.get_mut(&receiving.peer).map(|p| p.lane(exchange.kind)) else {
                continue;
            };
            let Some(message) = lane.queue.front() else { continue };
            let from = local.rank_of(receiving.peer).expect("frames come from members");
            if message.tag != exchange.tag {
                return Err(call.disagreement(local.rank, from, message.tag));
            }
            if let Buffer::Exact(bytes) = &receiving.into
                && bytes.len() as u64 != message.total
            {
                return Err(call.wrong_length(from, message.total, bytes.len()));
            }
            if (message.filled as u64) < message.total {
                continue;
            }
            let message = lane.queue.pop_front().expect("it is there");
            *self.queued.entry(receiving.peer).or_default() -= message.filled;
            match &mut receiving.into {
                Buffer::Exact(bytes) => bytes.copy_from_slice(&message.bytes),
                Buffer::Any(bytes) => **bytes = message.bytes,
            }
            receiving.done = true;
            exchange.moved = true;
        }
        Ok(())
    }

    /// Whether there is a peer of whom nothing that an exchange waits for has begun to come.
    pub fn awaits_first_byte(&self, exchange: &Exchange<'_>) -> bool {
        let peers = self.groups.get(&exchange.group).map(|group| &group.peers);
        let heard = |peer: usize| {
            let of = exchange.receives.iter().filter(|r| r.peer == peer);
            let held = peers.and_then(|peers| peers.get(&peer)).map(|peer| match exchange.kind {
                Kind::Message => &peer.messages,
                _ => &peer.collectives,
            });
            of.into_iter().any(|r| r.done || r.got > 0)
                || held.is_some_and(|lane| lane.arriving.is_some() || !lane.queue.is_empty())
        };
        exchange.receives.iter().any(|r| !heard(r.peer))
    }

    /// Whether a message of a peer has begun to arrive.
    pub fn has_begun(&self, id: u16, peer: usize) -> bool {
        let peer = self.groups.get(&id).and_then(|g| g.peers.get(&peer));
        peer.is_some_and(|p| !p.messages.queue.is_empty())
    }

    /// Whether a peer has ended.
    pub fn has_ended(&self, id: u16, peer: usize) -> bool {
        self.groups.get(&id).and_then(|g| g.peers.get(&peer)).is_some_and(|p| p.ended)
    }

    /// A peer that an exchange waits for and that has ended, with nothing left of it that could come.
    pub fn gone(&self, exchange: &Exchange<'_>) -> Option<usize> {
        let receives = exchange.receives.iter().filter(|r| !r.done).map(|r| r.peer);
        let sends = exchange.sends.iter().filter(|s| !s.done).map(|s| s.peer);
        // Whatever it sent came before its end, and is settled.
        receives.chain(sends).find(|&peer| self.has_ended(exchange.group, peer))
    }

    /// A connection is lost: groups that need it fail.
    pub fn lose(&mut self, peer: usize, why: &str) {
        for group in self.groups.values_mut() {
            let ended = group.peers.get(&peer).is_some_and(|p| p.ended);
            if let Some(local) = group.local.as_ref().filter(|_| !ended)
                && let Some(rank) = local.rank_of(peer)
            {
                local.standing.fail(rank, why);
            }
        }
    }

    /// Groups whose failure the others have to be told of, once: their members, and the failure.
    pub fn untold(&mut self) -> Vec<(u16, Vec<usize>, usize, String)> {
        let untold = self.groups.iter_mut().filter_map(|(&id, group)| {
            let local = group.local.as_mut().filter(|l| !l.told)?;
            let (rank, message) = local.standing.failure()?.clone();
            local.told = true;
            Some((id, local.members.clone(), rank, message))
        });
        untold.collect()
    }

    /// Wakes everyone but `id`: a connection that they had to leave alone may be free.
    pub fn wake_others(&self, id: u16) {
        let others =
            self.groups.iter().filter(|(other, _)| **other != id).filter_map(|(_, g)| g.local.as_ref());
        others.filter(|l| l.sleeping).for_each(|l| l.waker.wake());
    }
}
