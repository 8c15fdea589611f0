//! The memory that a group shares, and nothing that points elsewhere: it could as well be mapped into
//! several processes.
//!
//! ```text
//!  Header │ Line of rank 0 │ Line of rank 1 │ … │ slots of rank 0: even, odd │ slots of rank 1 │ …
//! ```

use std::mem::size_of;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::thread::futex;

use super::sync::{Rendezvous, Word};

/// Threads of one process. Processes that map one region would use the shared kind.
const FUTEX: futex::Flags = futex::Flags::PRIVATE;
/// Slots begin at multiples of this.
const PAGE: usize = 4096;
/// Longest message that a failing rank leaves.
const MESSAGE_BYTES: usize = 1000;

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        self.load(Acquire)
    }
    fn fetch_add(&self, by: u32) -> u32 {
        self.fetch_add(by, AcqRel)
    }
    fn fetch_or(&self, bits: u32) -> u32 {
        self.fetch_or(bits, AcqRel)
    }
    fn fetch_and(&self, bits: u32) -> u32 {
        self.fetch_and(bits, AcqRel)
    }
    fn replace(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, AcqRel, Acquire).is_ok()
    }
    fn sleep(&self, expected: u32, at_most: Option<Duration>) {
        let at_most = at_most.and_then(|d| futex::Timespec::try_from(d).ok());
        // Woken, changed, interrupted, timed out: the caller looks for itself.
        let _ = futex::wait(self, FUTEX, expected, at_most.as_ref());
    }
    fn wake(&self) {
        let _ = futex::wake(self, FUTEX, i32::MAX as u32);
    }
}

/// Why the group failed. Written once, by the rank that claimed the failure word.
#[repr(C, align(128))]
struct Header {
    failure: AtomicU32,
    rank: AtomicU32,
    length: AtomicU32,
    message: [AtomicU8; MESSAGE_BYTES],
}

/// What a rank says about its slot.
#[repr(C)]
#[derive(Default)]
struct Label {
    /// Must be equal on all ranks.
    call: AtomicU64,
    /// May differ.
    length: AtomicU64,
}

/// A rank's word and the labels of its two slots: one cache line, and one more so that the prefetcher
/// of pairs does not touch a neighbour's.
#[repr(C, align(128))]
struct Line {
    epoch: AtomicU32,
    labels: [Label; 2],
}

/// The mapped memory.
pub(super) struct Region {
    base: NonNull<u8>,
    bytes: usize,
    ranks: usize,
    slot_bytes: usize,
}

// SAFETY: the header and the lines are atomics; a slot is reached only through the unsafe functions
// below, whose contracts rule out a write beside any other access.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A fresh region. A rank's slots get their pages, and so their NUMA node, when it first writes them.
    pub fn new(ranks: usize, slot_bytes: usize) -> Self {
        assert!(ranks > 0, "a group has at least one rank");
        let slot_bytes = slot_bytes.next_multiple_of(PAGE).max(PAGE);
        let bytes = Self::first_slot(ranks) + ranks * 2 * slot_bytes;
        // SAFETY: a new anonymous mapping at a place of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
        };
        let base =
            base.unwrap_or_else(|e| panic!("cannot map {bytes} bytes for a group of {ranks} ranks: {e}"));
        Region { base: NonNull::new(base.cast()).expect("mmap returns no null"), bytes, ranks, slot_bytes }
    }

    fn first_slot(ranks: usize) -> usize {
        (size_of::<Header>() + ranks * size_of::<Line>()).next_multiple_of(PAGE)
    }

    /// f32 elements of a slot.
    pub fn slot_len(&self) -> usize {
        self.slot_bytes / size_of::<f32>()
    }

    fn header(&self) -> &Header {
        // SAFETY: inside the mapping, aligned to a page, and zeros are valid atomics.
        unsafe { self.base.cast().as_ref() }
    }

    fn line(&self, rank: usize) -> &Line {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        // SAFETY: inside the mapping by the assertion, aligned as `Header` and `Line` have multiples of 128
        // bytes, and zeros are valid atomics.
        unsafe { self.base.add(size_of::<Header>() + rank * size_of::<Line>()).cast().as_ref() }
    }

    fn slot_at(&self, rank: usize, step: u32) -> NonNull<f32> {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        let slot = rank * 2 + step as usize % 2;
        // SAFETY: the slot lies inside the mapping by the assertion.
        unsafe { self.base.add(Self::first_slot(self.ranks) + slot * self.slot_bytes).cast() }
    }

    /// The slot of `rank` in `step`, to be read.
    ///
    /// # Safety
    /// The caller has waited for `step`, and the result is gone before its rank publishes `step + 1`.
    pub unsafe fn slot(&self, rank: usize, step: u32) -> &[f32] {
        // SAFETY: a page-aligned slot of any bits. Its owner wrote it before it published `step`, and writes
        // it again in `step + 2`, before which it waits until all, the caller too, have published `step + 1`.
        unsafe { NonNull::slice_from_raw_parts(self.slot_at(rank, step), self.slot_len()).as_ref() }
    }

    /// The slot of `rank` in `step`, to be written.
    ///
    /// # Safety
    /// The caller is `rank`, has waited for `step − 1`, has not published `step`, and holds this slot once.
    #[allow(clippy::mut_from_ref)] // the contract makes it exclusive
    pub unsafe fn slot_mut(&self, rank: usize, step: u32) -> &mut [f32] {
        // SAFETY: only `rank` writes it. Others read it in `step − 2`, and all of them have published
        // `step − 1`, which they do only when they have done with `step − 2`.
        unsafe { NonNull::slice_from_raw_parts(self.slot_at(rank, step), self.slot_len()).as_mut() }
    }

    /// Labels the slot of `rank` in `step`, before it publishes it.
    pub fn set_label(&self, rank: usize, step: u32, call: u64, length: u64) {
        let label = &self.line(rank).labels[step as usize % 2];
        label.call.store(call, Relaxed);
        label.length.store(length, Relaxed);
    }

    /// `(call, length)` of the slot of `rank` in `step`, after the wait for it.
    pub fn label(&self, rank: usize, step: u32) -> (u64, u64) {
        let label = &self.line(rank).labels[step as usize % 2];
        (label.call.load(Relaxed), label.length.load(Relaxed))
    }

    /// Fails the group with a rank's message, unless it has failed already.
    pub fn fail_with(&self, rank: usize, message: &str) {
        let message = &message[..floor_char_boundary(message, MESSAGE_BYTES)];
        self.fail(|| {
            let header = self.header();
            header.rank.store(rank as u32, Relaxed);
            header.length.store(message.len() as u32, Relaxed);
            header.message.iter().zip(message.bytes()).for_each(|(to, from)| to.store(from, Relaxed));
        });
    }

    /// The rank that failed and its message. Blocks until there is one.
    pub fn explanation(&self) -> (usize, String) {
        self.await_explanation();
        let header = self.header();
        let length = (header.length.load(Relaxed) as usize).min(MESSAGE_BYTES);
        let bytes: Vec<u8> = header.message[..length].iter().map(|b| b.load(Relaxed)).collect();
        (header.rank.load(Relaxed) as usize, String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The longest prefix of at most `most` bytes that ends between two characters.
fn floor_char_boundary(s: &str, most: usize) -> usize {
    (0..=most.min(s.len())).rev().find(|&i| s.is_char_boundary(i)).unwrap_or(0)
}

impl Rendezvous for Region {
    type Word = AtomicU32;
    fn ranks(&self) -> usize {
        self.ranks
    }
    fn epoch(&self, rank: usize) -> &AtomicU32 {
        &self.line(rank).epoch
    }
    fn failure(&self) -> &AtomicU32 {
        &self.header().failure
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; every borrow of it ends before the last owner drops it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}

/// A slice that several threads write, each its own ranges.
pub(super) struct Shards<'a> {
    base: NonNull<f32>,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the ranges given out do not overlap (contract of `range`), so threads share no element.
unsafe impl Sync for Shards<'_> {}

impl<'a> Shards<'a> {
    pub fn new(slice: &'a mut [f32]) -> Self {
        Shards { len: slice.len(), base: NonNull::from(slice).cast(), slice: std::marker::PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No two ranges that are alive at once overlap.
    #[allow(clippy::mut_from_ref)] // the contract makes it exclusive
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice by the assertion, exclusive by the contract.
        unsafe { NonNull::slice_from_raw_parts(self.base.add(range.start), range.len()).as_mut() }
    }
}

/// The bytes of f32 elements.
pub(super) fn as_bytes(floats: &[f32]) -> &[u8] {
    // SAFETY: every f32 is four initialised bytes, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) }
}

/// The bytes of f32 elements, to be written.
pub(super) fn as_bytes_mut(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and four bytes of any bits are an f32.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
}
