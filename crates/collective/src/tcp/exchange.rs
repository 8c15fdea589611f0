//! What a call sends and receives, while it waits.

use super::frame::Kind;
use crate::message::{Buffer, Call};

/// Bytes that a call sends.
pub struct Sending<'a> {
    /// World rank.
    pub peer: usize,
    pub bytes: &'a [u8],
    /// Bytes in frames that have been written.
    pub sent: usize,
    pub done: bool,
}

/// A message that a call waits for.
pub struct Receiving<'a> {
    /// World rank.
    pub peer: usize,
    pub into: Buffer<'a>,
    /// Bytes that have come.
    pub got: usize,
    pub done: bool,
}

/// All of a call's messages.
pub struct Exchange<'a> {
    pub group: u16,
    pub kind: Kind,
    pub tag: u64,
    pub sends: Vec<Sending<'a>>,
    pub receives: Vec<Receiving<'a>>,
    /// Whether bytes have moved for it since this was last set to false.
    pub moved: bool,
}

impl<'a> Exchange<'a> {
    pub fn new(group: u16, kind: Kind, call: &Call) -> Self {
        // Messages are matched by their order alone.
        let tag = if kind == Kind::Message { 0 } else { call.tag() };
        Exchange { group, kind, tag, sends: Vec::new(), receives: Vec::new(), moved: false }
    }

    pub fn send(&mut self, peer: usize, bytes: &'a [u8]) {
        self.sends.push(Sending { peer, bytes, sent: 0, done: false });
    }

    pub fn receive(&mut self, peer: usize, into: &'a mut Buffer<'_>) {
        let into = match into {
            Buffer::Exact(bytes) => Buffer::Exact(bytes),
            Buffer::Any(bytes) => Buffer::Any(bytes),
        };
        self.receives.push(Receiving { peer, into, got: 0, done: false });
    }

    /// Whether frames of this group and kind are this exchange's.
    pub fn is(&self, group: u16, kind: Kind) -> bool {
        self.group == group && self.kind == kind
    }

    /// The next message that is to be written to a peer.
    pub fn next_send(&self, peer: usize) -> Option<usize> {
        self.sends.iter().position(|s| s.peer == peer && !s.done)
    }

    /// The next message that is waited for from a peer.
    pub fn next_receive(&mut self, peer: usize) -> Option<&mut Receiving<'a>> {
        self.receives.iter_mut().find(|r| r.peer == peer && !r.done)
    }

    /// Whether something is waited for from a peer.
    pub fn awaits(&self, peer: usize) -> bool {
        self.receives.iter().any(|r| r.peer == peer && !r.done)
    }

    pub fn is_done(&self) -> bool {
        self.receives.iter().all(|r| r.done) && self.sends.iter().all(|s| s.done)
    }

    /// Peers from whom, or else to whom, something has not come through.
    pub fn missing(&self) -> Vec<usize> {
        let mut missing: Vec<_> = self.receives.iter().filter(|r| !r.done).map(|r| r.peer).collect();
        if missing.is_empty() {
            missing = self.sends.iter().filter(|s| !s.done).map(|s| s.peer).collect();
        }
        missing.sort();
        missing.dedup();
        missing
    }
}

impl Receiving<'_> {
    /// The rest of the buffer, if the message has a known length.
    pub fn rest(&mut self) -> &mut [u8] {
        match &mut self.into {
            Buffer::Exact(bytes) => &mut bytes[self.got..],
            Buffer::Any(_) => &mut [],
        }
    }

    /// Whether a message of this length can go straight to the buffer.
    pub fn fits(&self, total: u64) -> bool {
        matches!(&self.into, Buffer::Exact(bytes) if bytes.len() as u64 == total)
    }
}
