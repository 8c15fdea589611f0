//! Messages from one rank to another: a ring of memory with one writer and one reader.
//!
//! The writer counts what it has written, the reader what it has taken, each in a word of the form that [`super::sync`]
//! describes, in *units* of eight bytes. So both wait, sleep, and hear of failures and ends as ranks do in a step. A
//! message is its length, one unit, and its bytes, padded to whole units. One that is larger than the ring streams
//! through it.
//!
//! This file knows nothing of memory, so that the model checker can run it on its own atomics.

use super::sync::{EPOCHS, Patience, Rendezvous, Stop, Word, count};

/// Bytes of a unit.
pub const UNIT: usize = 8;
/// A large message is handed over in parts of this many units, so that the reader begins before the writer is done.
const PART: u32 = 64 << 10 >> 3;

/// The memory of a ring.
pub trait Ring<W: Word> {
    /// Units written so far; 0 at the start.
    fn written(&self) -> &W;
    /// Units taken so far; 0 at the start.
    fn taken(&self) -> &W;
    /// Its size, a power of two that is less than [`EPOCHS`].
    fn units(&self) -> u32;
    /// Writes bytes from unit `at` on.
    ///
    /// # Safety
    /// The caller is the writer, and the reader has taken those units.
    unsafe fn put(&self, at: u32, bytes: &[u8]);
    /// Reads bytes from unit `at` on.
    ///
    /// # Safety
    /// The caller is the reader, and the writer has written those units.
    unsafe fn get(&self, at: u32, len: usize, sink: &mut dyn FnMut(&[u8]));
}

/// One rank's end of a ring.
pub struct Pipe<'a, G, R> {
    /// The ring's group.
    pub group: &'a G,
    /// The ring.
    pub ring: R,
    /// The rank at the other end.
    pub peer: usize,
}

impl<G: Rendezvous, R: Ring<G::Word>> Pipe<'_, G, R> {
    /// Writes a message. Waits only while the ring is full.
    pub fn send(&self, message: &[u8], patience: &Patience) -> Result<(), Stop> {
        let (mut header, mut rest) = (1, message);
        while header > 0 || !rest.is_empty() {
            let at = count(self.ring.written().load());
            let free = self.await_room(at, patience)?.min(PART);
            if header > 0 {
                self.put(at, &(message.len() as u64).to_le_bytes());
            }
            let (now, later) = rest.split_at(rest.len().min((free - header) as usize * UNIT));
            self.put(at + header, now);
            self.group.advance(self.ring.written(), header + units(now.len()));
            (header, rest) = (0, later);
        }
        Ok(())
    }

    /// Whether a message has begun to arrive. Does not wait.
    pub fn has_begun(&self) -> Result<bool, Stop> {
        let begun = || self.there(self.ring.written().load()) > 0;
        match self.group.look_at(self.peer) {
            Err(Stop::Ended(_)) if begun() => Ok(true),
            Err(stop) => Err(stop),
            Ok(()) => Ok(begun()),
        }
    }

    /// Waits for a message to begin and returns its length. [`Pipe::take`] must follow.
    pub fn begin(&self, patience: &Patience) -> Result<usize, Stop> {
        self.await_units(1, patience)?;
        let mut length = [0; UNIT];
        let at = count(self.ring.taken().load());
        self.get(at, UNIT, &mut |bytes| length.copy_from_slice(bytes));
        Ok(u64::from_le_bytes(length) as usize)
    }

    /// Takes the message of `len` bytes that has begun, in parts as they arrive.
    pub fn take(&self, len: usize, patience: &Patience, sink: &mut dyn FnMut(&[u8])) -> Result<(), Stop> {
        let (mut header, mut left) = (1, len);
        while header > 0 || left > 0 {
            let there = self.await_units(header + u32::from(left > 0), patience)?;
            let at = count(self.ring.taken().load());
            let now = left.min((there - header).min(PART) as usize * UNIT);
            self.get(at + header, now, sink);
            self.group.advance(self.ring.taken(), header + units(now));
            (header, left) = (0, left - now);
        }
        Ok(())
    }

    /// Waits until the writer, who is at unit `at`, can go on, and returns how many units are free.
    fn await_room(&self, at: u32, patience: &Patience) -> Result<u32, Stop> {
        let free = |taken: u32| self.ring.units() - at.wrapping_sub(count(taken)) % EPOCHS;
        let missing = || vec![self.peer];
        let look = || self.group.look_at(self.peer);
        self.group.wait_on(self.ring.taken(), |taken| free(taken) > 0, patience, look, missing)?;
        Ok(free(self.ring.taken().load()))
    }

    /// Waits until the reader has so many units before it, and returns how many there are.
    fn await_units(&self, wanted: u32, patience: &Patience) -> Result<u32, Stop> {
        let enough = |written: u32| self.there(written) >= wanted;
        let missing = || vec![self.peer];
        let look = || match self.group.look_at(self.peer) {
            // What was written before the end still counts: only now is there certainly no more.
            Err(Stop::Ended(_)) if enough(self.ring.written().load()) => Ok(()),
            other => other,
        };
        self.group.wait_on(self.ring.written(), enough, patience, look, missing)?;
        Ok(self.there(self.ring.written().load()))
    }

    /// Units that lie before the reader.
    fn there(&self, written: u32) -> u32 {
        count(written).wrapping_sub(count(self.ring.taken().load())) % EPOCHS
    }

    fn put(&self, at: u32, bytes: &[u8]) {
        let at = at % self.ring.units();
        let (to_end, from_start) = bytes.split_at(bytes.len().min(self.until_end(at)));
        // SAFETY: only called for units that `await_room` has found free, by the only writer.
        unsafe {
            self.ring.put(at, to_end);
            if !from_start.is_empty() {
                self.ring.put(0, from_start);
            }
        }
    }

    fn get(&self, at: u32, len: usize, sink: &mut dyn FnMut(&[u8])) {
        let at = at % self.ring.units();
        let to_end = len.min(self.until_end(at));
        // SAFETY: only called for units that `await_units` has found written, by the only reader.
        unsafe {
            self.ring.get(at, to_end, sink);
            if len > to_end {
                self.ring.get(0, len - to_end, sink);
            }
        }
    }

    /// Bytes from a unit to the end of the ring.
    fn until_end(&self, at: u32) -> usize {
        (self.ring.units() - at) as usize * UNIT
    }
}

fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT) as u32
}
