//! What a thread has still to do, which others may take from.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::kernels::tile::MAX_PANELS;

/// Pieces are multiples of so many, for kernels that take some panels at a time.
const PIECE: usize = MAX_PANELS;

/// A range, start and end in one word. It carries no data besides: what the work reads and writes is handed over by the
/// job's begin and end.
#[derive(Default)]
pub(super) struct Share(AtomicU64);

impl Share {
    pub(super) fn get(&self) -> Range<usize> {
        unpack(self.0.load(Relaxed))
    }

    /// To be called only while it is empty, by the one thread whose it is, or while nobody else looks.
    ///
    /// # Panics
    /// If the range does not fit two times 32 bits.
    pub(super) fn set(&self, range: Range<usize>) {
        self.0.store(pack(range), Relaxed);
    }

    /// The first half of what is there, and where that ends.
    pub(super) fn take_front(&self) -> Option<(Range<usize>, usize)> {
        self.take(|Range { start, end }| {
            let middle = end.min(start + ((end - start) / 2).next_multiple_of(PIECE).max(PIECE));
            ((start..middle, end), middle..end)
        })
    }

    /// The second half of what is there.
    pub(super) fn take_back(&self) -> Option<Range<usize>> {
        self.take(|Range { start, end }| {
            let middle = start + (end - start) / 2;
            (middle..end, start..middle)
        })
    }

    /// Takes a part of what is there, if any: `cut` says which, and what is left.
    fn take<T>(&self, cut: impl Fn(Range<usize>) -> (T, Range<usize>)) -> Option<T> {
        let mut seen = self.0.load(Relaxed);
        loop {
            let range = unpack(seen);
            if range.is_empty() {
                return None;
            }
            let (taken, left) = cut(range);
            // No range comes back once a part of it was taken, so who still finds it here may divide it.
            match self.0.compare_exchange_weak(seen, pack(left), Relaxed, Relaxed) {
                Ok(_) => return Some(taken),
                Err(now) => seen = now,
            }
        }
    }
}

fn pack(range: Range<usize>) -> u64 {
    let word = |at: usize| u64::from(u32::try_from(at).expect("fewer than 2³² parts of a job"));
    word(range.start) << 32 | word(range.end)
}

fn unpack(word: u64) -> Range<usize> {
    (word >> 32) as usize..(word as u32) as usize
}
