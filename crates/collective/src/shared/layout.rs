//! Where things lie in the memory that a group shares. Nothing in it points elsewhere, so that it can be mapped at
//! different places into several processes.
//!
//! ```text
//!  Header │ Line of each rank │ Pair of each two ranks │ slots │ ring of each two ranks
//! ```

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use super::ring::UNIT;
use super::sync::{slot_of, slots};

/// What the memory begins with: `anysplit`.
pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"anysplit");
/// Changes whenever the layout or the protocol does.
pub(super) const VERSION: u32 = 2;
/// Slots begin at multiples of this.
const PAGE: usize = 4096;
/// Longest message that a failing rank leaves.
pub(super) const MESSAGE_BYTES: usize = 1000;
/// All rings together take this much, as long as each is between the two that follow. Only what is used takes memory.
const RINGS_BYTES: usize = 256 << 20;
const LEAST_RING_BYTES: usize = 64 << 10;
const MOST_RING_BYTES: usize = 4 << 20;

/// What the region is, and why the group failed: written once, by the rank that claimed the failure word.
#[repr(C, align(128))]
pub(super) struct Header {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    pub ranks: AtomicU32,
    pub slot_bytes: AtomicU64,
    pub failure: AtomicU32,
    pub length: AtomicU32,
    pub message: [AtomicU8; MESSAGE_BYTES],
}

/// What a rank says about its slot.
#[repr(C)]
pub(super) struct Label {
    /// Must be equal on all ranks.
    pub call: AtomicU64,
    /// May differ.
    pub length: AtomicU64,
}

/// A rank's word and the labels of its two slots: one cache line, and one more so that the prefetcher
/// of pairs does not touch a neighbour's.
#[repr(C, align(128))]
pub(super) struct Line {
    pub epoch: AtomicU32,
    /// Whether somebody is this rank.
    pub taken: AtomicU32,
    pub labels: [Label; 2],
}

/// A word with cache lines to itself.
#[repr(C, align(128))]
pub(super) struct Padded(pub AtomicU32);

/// The words of the ring from one rank to another.
#[repr(C)]
pub(super) struct Pair {
    pub written: Padded,
    pub taken: Padded,
}

/// The sizes from which all places follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub ranks: usize,
    pub slot_bytes: usize,
    pub ring_bytes: usize,
}

impl Layout {
    pub fn new(ranks: usize, slot_bytes: usize) -> Self {
        assert!(ranks > 0, "a group has at least one rank");
        let slot_bytes = slot_bytes.next_multiple_of(PAGE).max(PAGE);
        let share = (RINGS_BYTES / (ranks * ranks)).clamp(LEAST_RING_BYTES, MOST_RING_BYTES);
        // The largest power of two in it.
        Layout { ranks, slot_bytes, ring_bytes: 1 << share.ilog2() }
    }

    /// Units of a ring.
    pub fn ring_units(&self) -> u32 {
        (self.ring_bytes / UNIT) as u32
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.first_ring() + self.ranks * self.ranks * self.ring_bytes
    }

    pub fn line(&self, rank: usize) -> usize {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        size_of::<Header>() + rank * size_of::<Line>()
    }

    pub fn pair(&self, from: usize, to: usize) -> usize {
        size_of::<Header>() + self.ranks * size_of::<Line>() + self.number(from, to) * size_of::<Pair>()
    }

    pub fn slot(&self, rank: usize, step: u32) -> usize {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        self.first_slot() + slot_of(self.ranks, rank, step) * self.slot_bytes
    }

    pub fn ring(&self, from: usize, to: usize) -> usize {
        self.first_ring() + self.number(from, to) * self.ring_bytes
    }

    fn number(&self, from: usize, to: usize) -> usize {
        assert!(from < self.ranks && to < self.ranks, "ranks {from} and {to} of {}", self.ranks);
        from * self.ranks + to
    }

    fn first_slot(&self) -> usize {
        let pairs = self.ranks * self.ranks * size_of::<Pair>();
        (size_of::<Header>() + self.ranks * size_of::<Line>() + pairs).next_multiple_of(PAGE)
    }

    fn first_ring(&self) -> usize {
        self.first_slot() + slots(self.ranks) * self.slot_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_have_a_bound_and_do_not_overlap() {
        for ranks in [1, 2, 3, 8, 9, 64] {
            let layout = Layout::new(ranks, 5000);
            assert!(layout.ring_bytes.is_power_of_two());
            assert!((LEAST_RING_BYTES..=MOST_RING_BYTES).contains(&layout.ring_bytes));
            assert!(ranks * ranks * layout.ring_bytes <= RINGS_BYTES, "{ranks} ranks");
            let last = ranks - 1;
            assert!(layout.pair(last, last) + size_of::<Pair>() <= layout.slot(0, 0));
            let slots = (0..ranks).flat_map(|rank| [layout.slot(rank, 0), layout.slot(rank, 1)]);
            assert_eq!(slots.max().unwrap() + layout.slot_bytes, layout.ring(0, 0));
            assert_eq!(layout.ring(last, last) + layout.ring_bytes, layout.bytes());
        }
    }
}
