//! The memory that a group shares: what lies where is in [`super::layout`], who may touch it when is here.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::*};
use std::time::Duration;

use rustix::thread::futex;

use super::layout::{Header, Layout, Line, MAGIC, MESSAGE_BYTES, Pair, VERSION};
use super::mapping::Mapping;
use super::ring::{Ring, UNIT};
use super::sync::{Rendezvous, Word};

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
}

/// The mapped memory.
pub(super) struct Region {
    map: Mapping,
    layout: Layout,
    /// Private while all ranks are threads of this process, which is a little cheaper.
    futex: futex::Flags,
}

impl Region {
    /// A fresh region for threads. A rank's slots get their pages, and so their NUMA node, when it first writes them.
    pub fn for_threads(layout: Layout) -> io::Result<Self> {
        let region =
            Region { map: Mapping::anonymous(layout.bytes())?, layout, futex: futex::Flags::PRIVATE };
        region.introduce();
        Ok(region)
    }

    /// A fresh region for processes.
    pub fn for_processes(layout: Layout) -> io::Result<Self> {
        let region = Region { map: Mapping::memfd(layout.bytes())?, layout, futex: futex::Flags::empty() };
        region.introduce();
        Ok(region)
    }

    /// The region of another process.
    pub fn open(fd: OwnedFd, layout: Layout) -> io::Result<Self> {
        // First only what every version has, to say what is wrong before a size differs.
        let map = Mapping::open(fd, size_of::<Header>())?;
        let head = Region { map, layout, futex: futex::Flags::empty() };
        head.compare()?;
        let Mapping { fd, .. } = &head.map;
        let fd = fd.as_ref().expect("opened from a descriptor").try_clone()?;
        Ok(Region { map: Mapping::open(fd, layout.bytes())?, layout, futex: futex::Flags::empty() })
    }

    fn introduce(&self) {
        let header = self.header();
        header.version.store(VERSION, Relaxed);
        header.ranks.store(self.layout.ranks as u32, Relaxed);
        header.slot_bytes.store(self.layout.slot_bytes as u64, Relaxed);
        header.magic.store(MAGIC, Release);
    }

    fn compare(&self) -> io::Result<()> {
        let (header, layout) = (self.header(), &self.layout);
        if header.magic.load(Acquire) != MAGIC {
            return Err(io::Error::other("this is no shared segment: it does not begin like one"));
        }
        let same = |what, theirs: u64, ours: u64| match theirs == ours {
            true => Ok(()),
            false => {
                Err(io::Error::other(format!("the shared segment has {what} {theirs}, here it is {ours}")))
            }
        };
        same("version", header.version.load(Relaxed).into(), VERSION.into())?;
        same("size of the group", header.ranks.load(Relaxed).into(), layout.ranks as u64)?;
        same("bytes of a slot", header.slot_bytes.load(Relaxed), layout.slot_bytes as u64)
    }

    /// The descriptor of a region for processes.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.map.fd.as_ref().map(|fd| std::os::fd::AsFd::as_fd(fd))
    }

    /// Takes a rank; only one can.
    pub fn claim(&self, rank: usize) -> bool {
        self.line(rank).taken.swap(1, AcqRel) == 0
    }

    /// f32 elements of a slot.
    pub fn slot_len(&self) -> usize {
        self.layout.slot_bytes / size_of::<f32>()
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.map.bytes, "inside the mapping");
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.map.base.add(offset) }
    }

    fn header(&self) -> &Header {
        // SAFETY: inside the mapping, aligned to a page, and any bits are valid atomics.
        unsafe { self.at(0).cast().as_ref() }
    }

    fn line(&self, rank: usize) -> &Line {
        // SAFETY: inside the mapping by the layout, aligned as headers, lines and pairs have multiples of 128 bytes,
        // and any bits are valid atomics.
        unsafe { self.at(self.layout.line(rank)).cast().as_ref() }
    }

    fn pair(&self, from: usize, to: usize) -> &Pair {
        // SAFETY: as for `line`.
        unsafe { self.at(self.layout.pair(from, to)).cast().as_ref() }
    }

    /// The ring from one rank to another.
    pub fn ring(&self, from: usize, to: usize) -> RegionRing<'_> {
        let base = self.at(self.layout.ring(from, to));
        RegionRing { pair: self.pair(from, to), base, units: self.layout.ring_units() }
    }

    /// The slot of `rank` in `step`, to be read.
    ///
    /// # Safety
    /// The caller is another rank and has waited for `step`, and the result is gone before it writes or publishes in
    /// `step + 1`.
    pub unsafe fn slot(&self, rank: usize, step: u32) -> &[f32] {
        let base = self.at(self.layout.slot(rank, step)).cast();
        // SAFETY: a page-aligned slot of any bits. `rank` wrote it before it published `step`, and writes it again
        // in `step + 2`, before which it waits until all, the caller too, have published `step + 1`. Of two ranks the
        // other one writes it next, in `step + 1`: that is the caller.
        unsafe { NonNull::slice_from_raw_parts(base, self.slot_len()).as_ref() }
    }

    /// The slot of `rank` in `step`, to be written.
    ///
    /// # Safety
    /// The caller is `rank`, has waited for `step − 1`, has not published `step`, and holds this slot once.
    #[allow(clippy::mut_from_ref)] // the contract makes it exclusive
    pub unsafe fn slot_mut(&self, rank: usize, step: u32) -> &mut [f32] {
        let base = self.at(self.layout.slot(rank, step)).cast();
        // SAFETY: only `rank` writes it. Others read it in `step − 2`, and all of them have published
        // `step − 1`, which they do only when they have done with `step − 2`. Of two ranks the other one wrote it in
        // `step − 1`, before it published that, and only `rank` has read it.
        unsafe { NonNull::slice_from_raw_parts(base, self.slot_len()).as_mut() }
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

    /// Fails the group because of a rank, unless it has failed already.
    pub fn fail_with(&self, rank: usize, message: &str) {
        let message = &message[..floor_char_boundary(message, MESSAGE_BYTES)];
        self.fail(rank, || {
            let header = self.header();
            header.length.store(message.len() as u32, Relaxed);
            header.message.iter().zip(message.bytes()).for_each(|(to, from)| to.store(from, Relaxed));
        });
    }

    /// The rank because of which the group failed, and the message.
    pub fn explanation(&self) -> (usize, String) {
        let (rank, explained) = self.await_explanation();
        if !explained {
            return (rank, "failed, and its process was gone before it could say why".into());
        }
        let header = self.header();
        let length = (header.length.load(Relaxed) as usize).min(MESSAGE_BYTES);
        let bytes: Vec<u8> = header.message[..length].iter().map(|b| b.load(Relaxed)).collect();
        (rank, String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The longest prefix of at most `most` bytes that ends between two characters.
fn floor_char_boundary(s: &str, most: usize) -> usize {
    (0..=most.min(s.len())).rev().find(|&i| s.is_char_boundary(i)).unwrap_or(0)
}

impl Rendezvous for Region {
    type Word = AtomicU32;
    fn ranks(&self) -> usize {
        self.layout.ranks
    }
    fn epoch(&self, rank: usize) -> &AtomicU32 {
        &self.line(rank).epoch
    }
    fn failure(&self) -> &AtomicU32 {
        &self.header().failure
    }
    fn message_words(&self, rank: usize) -> impl Iterator<Item = &AtomicU32> {
        let pairs = (0..self.ranks()).flat_map(move |other| [self.pair(rank, other), self.pair(other, rank)]);
        pairs.flat_map(|pair| [&pair.written.0, &pair.taken.0])
    }
    fn sleep(&self, word: &AtomicU32, expected: u32, at_most: Option<Duration>) {
        let at_most = at_most.and_then(|d| futex::Timespec::try_from(d).ok());
        // Woken, changed, interrupted, timed out: the caller looks for itself.
        let _ = futex::wait(word, self.futex, expected, at_most.as_ref());
    }
    fn wake(&self, word: &AtomicU32) {
        let _ = futex::wake(word, self.futex, i32::MAX as u32);
    }
}

/// A ring of the region.
pub(super) struct RegionRing<'a> {
    pair: &'a Pair,
    base: NonNull<u8>,
    units: u32,
}

impl RegionRing<'_> {
    /// Where bytes from a unit on lie.
    fn place(&self, at: u32, len: usize) -> NonNull<u8> {
        let at = at as usize * UNIT;
        assert!(at + len <= self.units as usize * UNIT, "inside the ring");
        // SAFETY: inside the ring by the assertion.
        unsafe { self.base.add(at) }
    }
}

impl Ring<AtomicU32> for RegionRing<'_> {
    fn written(&self) -> &AtomicU32 {
        &self.pair.written.0
    }
    fn taken(&self) -> &AtomicU32 {
        &self.pair.taken.0
    }
    fn units(&self) -> u32 {
        self.units
    }
    unsafe fn put(&self, at: u32, bytes: &[u8]) {
        // SAFETY: inside the ring, and by the contract nobody else reads or writes those units now.
        unsafe { self.place(at, bytes.len()).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
    unsafe fn get(&self, at: u32, len: usize, sink: &mut dyn FnMut(&[u8])) {
        // SAFETY: inside the ring, and by the contract nobody writes those units while the slice lives.
        sink(unsafe { NonNull::slice_from_raw_parts(self.place(at, len), len).as_ref() });
    }
}
