//! Messages between two ranks in one lane, in pieces that MPI carries: so a message of any length takes a bounded number
//! of buffers, and is packed, carried and unpacked at the same time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::world::{Transfer, World};
use crate::CollectiveError;
use crate::message::Buffer;

/// Bytes of a piece: few enough for the second-level cache.
const PIECE: usize = 256 << 10;
/// What the first piece of a message begins with: its tag and length.
const HEAD: usize = 16;
/// Buffers that are kept for later.
const SPARE: usize = 32;

/// Buffers of pieces, used again and again.
#[derive(Default)]
pub(super) struct Spare(Vec<Vec<u8>>);

impl Spare {
    pub fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    pub fn keep(&mut self, buffer: Vec<u8>) {
        if self.0.len() < SPARE && buffer.capacity() > 0 {
            self.0.push(buffer);
        }
    }
}

/// One lane of one peer.
#[derive(Default)]
pub(super) struct Lane {
    /// Pieces of which MPI has not said that they are gone, and all their bytes.
    sending: VecDeque<Transfer>,
    under_way: usize,
    /// Messages that were sent, the last perhaps in part.
    pub sent: u64,
    /// The next piece.
    arriving: Option<Transfer>,
    arrived: Option<Vec<u8>>,
    /// Messages that were received as a whole.
    pub received: u64,
}

/// A message that is sent.
pub(super) struct Sending<'a> {
    pub to: usize,
    bytes: &'a [u8],
    tag: u64,
    /// Whether the first piece is under way.
    begun: bool,
    at: usize,
}

impl<'a> Sending<'a> {
    pub fn new(to: usize, tag: u64, bytes: &'a [u8]) -> Self {
        Sending { to, bytes, tag, begun: false, at: 0 }
    }

    /// Whether all pieces are under way.
    pub fn is_posted(&self) -> bool {
        self.begun && self.at == self.bytes.len()
    }

    /// The next piece.
    fn pack(&mut self, mut piece: Vec<u8>) -> Vec<u8> {
        piece.clear();
        if !self.begun {
            piece.extend(self.tag.to_le_bytes());
            piece.extend((self.bytes.len() as u64).to_le_bytes());
            self.begun = true;
        }
        let end = self.bytes.len().min(self.at + PIECE - piece.len());
        piece.extend_from_slice(&self.bytes[self.at..end]);
        self.at = end;
        piece
    }
}

/// A message that is received.
pub(super) struct Receiving<'a, 'b> {
    pub from: usize,
    into: &'b mut Buffer<'a>,
    /// Its length, once it has begun.
    len: Option<usize>,
    got: usize,
}

/// Why a message is not the one that was expected.
pub(super) enum Unlike {
    /// It has another tag.
    Tag(u64),
    /// It has this length, not that one.
    Length(u64, usize),
    /// It does not end where it said.
    Pieces,
}

impl<'a, 'b> Receiving<'a, 'b> {
    pub fn new(from: usize, into: &'b mut Buffer<'a>) -> Self {
        Receiving { from, into, len: None, got: 0 }
    }

    pub fn has_begun(&self) -> bool {
        self.len.is_some()
    }

    pub fn is_done(&self) -> bool {
        self.len == Some(self.got)
    }

    /// Takes a piece. `tag: None` takes any.
    pub fn unpack(&mut self, tag: Option<u64>, piece: &[u8]) -> Result<(), Unlike> {
        let mut body = piece;
        if self.len.is_none() {
            let (head, rest) = piece.split_first_chunk::<HEAD>().ok_or(Unlike::Pieces)?;
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
            if tag.is_some_and(|tag| tag != word(0)) {
                return Err(Unlike::Tag(word(0)));
            }
            let len = usize::try_from(word(8)).map_err(|_| Unlike::Pieces)?;
            match &mut self.into {
                Buffer::Exact(into) if into.len() != len => return Err(Unlike::Length(word(8), into.len())),
                Buffer::Exact(_) => {}
                Buffer::Any(into) => into.clear(),
            }
            (self.len, body) = (Some(len), rest);
        }
        if self.len.is_none_or(|len| len - self.got < body.len()) {
            return Err(Unlike::Pieces);
        }
        match &mut self.into {
            Buffer::Exact(into) => into[self.got..][..body.len()].copy_from_slice(body),
            Buffer::Any(into) => into.extend_from_slice(body),
        }
        self.got += body.len();
        Ok(())
    }
}

impl Lane {
    /// Sends pieces as long as fewer than `window` bytes are under way. Says whether it sent any.
    pub fn post(
        &mut self,
        sending: &mut Sending<'_>,
        (world, to, tag): (&Arc<World>, usize, i32),
        window: usize,
        spare: &mut Spare,
    ) -> Result<bool, CollectiveError> {
        let before = sending.at;
        let begun = sending.begun;
        while !sending.is_posted() && self.under_way < window {
            self.sent += u64::from(!sending.begun);
            let piece = sending.pack(spare.take());
            self.under_way += piece.len();
            self.sending.push_back(world.send(piece, to, tag)?);
        }
        Ok(sending.at > before || sending.begun && !begun)
    }

    /// Looks which pieces are gone. Says whether any is.
    pub fn settle(&mut self, spare: &mut Spare) -> Result<bool, CollectiveError> {
        let mut any = false;
        while let Some(first) = self.sending.front_mut() {
            let Some(buffer) = first.poll()? else { break };
            self.under_way -= buffer.len();
            spare.keep(buffer);
            self.sending.pop_front();
            any = true;
        }
        Ok(any)
    }

    /// Whether all pieces are gone.
    pub fn is_settled(&self) -> bool {
        self.sending.is_empty()
    }

    /// Whether a piece has begun to arrive.
    pub fn has_begun(
        &mut self,
        (world, from, tag): (&Arc<World>, usize, i32),
        spare: &mut Spare,
    ) -> Result<bool, CollectiveError> {
        if self.arriving.is_none() && self.arrived.is_none() {
            let mut buffer = spare.take();
            self.arriving = world.receive(Some(from), tag, &mut buffer)?.map(|(_, transfer)| transfer);
            spare.keep(buffer);
        }
        Ok(self.holds_a_piece())
    }

    /// Whether a piece is here, or on its way.
    pub fn holds_a_piece(&self) -> bool {
        self.arriving.is_some() || self.arrived.is_some()
    }

    /// The next piece, if it is here.
    pub fn next(
        &mut self,
        peer: (&Arc<World>, usize, i32),
        spare: &mut Spare,
    ) -> Result<Option<Vec<u8>>, CollectiveError> {
        self.has_begun(peer, spare)?;
        if let Some(arriving) = &mut self.arriving
            && let Some(piece) = arriving.poll()?
        {
            (self.arriving, self.arrived) = (None, Some(piece));
        }
        Ok(self.arrived.take())
    }
}
