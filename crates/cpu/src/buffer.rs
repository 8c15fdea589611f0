//! Memory: aligned, in huge pages where big, and recycled.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Alignment of everything: a cache line, or the widest vector.
const ALIGN: usize = 64;
/// From this size on memory comes straight from the system, in huge pages.
const MAPPED_FROM: usize = 1 << 20;
const HUGE_PAGE: usize = 2 << 20;
/// Memories that are filled side by side begin so far from each other within a huge page: a golden section of it, so that the
/// borders of however many are spread evenly.
const STAGGER: usize = 316 * 4096;
/// Less than this is not staggered: a page more would be much of it.
const STAGGERED_FROM: usize = 8 * HUGE_PAGE;

/// Types of which any bits are a value.
pub(crate) trait Plain: Copy + Send + Sync + Default + 'static {}
impl Plain for f32 {}
impl Plain for i32 {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u64 {}

/// Zeroed memory. What is never written is never resident, so each page belongs to the NUMA node of the
/// thread that first wrote it.
pub(crate) struct Memory {
    at: NonNull<u8>,
    bytes: usize,
    /// Start and length of the mapping, where there is one.
    mapping: Option<(NonNull<u8>, usize)>,
}

// SAFETY: `Memory` owns its bytes, and lends them by the rules of references.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        match bytes {
            0 => Memory { at: NonNull::<Aligned>::dangling().cast(), bytes: 0, mapping: None },
            MAPPED_FROM.. => Self::mapped(bytes, 0),
            _ => {
                let layout = Self::layout(bytes);
                // SAFETY: the layout is not empty.
                let at = NonNull::new(unsafe { alloc_zeroed(layout) })
                    .unwrap_or_else(|| handle_alloc_error(layout));
                Memory { at, bytes, mapping: None }
            }
        }
    }

    /// The `nth` of several that are filled side by side over a long time. Where the system has to find a new page for one of
    /// them, it does not have to for the others: so many at a time would be felt (16 of them took 80 ms on a virtual machine).
    pub(crate) fn staggered(bytes: usize, nth: usize) -> Self {
        match bytes {
            STAGGERED_FROM.. => Self::mapped(bytes, nth.wrapping_mul(STAGGER) % HUGE_PAGE),
            _ => Self::zeroed(bytes),
        }
    }

    /// Memory that begins `shift` bytes behind the beginning of a huge page.
    fn mapped(bytes: usize, shift: usize) -> Self {
        // One page more than needed, so that there is such a beginning.
        let len = (shift + bytes).next_multiple_of(HUGE_PAGE) + HUGE_PAGE;
        // SAFETY: a fresh, private, anonymous mapping touches nobody's memory.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let base: *mut u8 = base.unwrap_or_else(|_| handle_alloc_error(Self::layout(bytes))).cast();
        let skip = base.align_offset(HUGE_PAGE);
        // SAFETY: `skip` is below HUGE_PAGE, which is the surplus, and `shift + bytes` are within the rest. Without huge pages all
        // works, slower.
        let at = unsafe {
            let at = base.add(skip);
            let _ = madvise(at.cast(), len - HUGE_PAGE, Advice::LinuxHugepage);
            at.add(shift)
        };
        let (at, base) = (NonNull::new(at), NonNull::new(base));
        let at = at.expect("a mapping is not at address 0");
        Memory { at, bytes, mapping: Some((base.expect("a mapping is not at address 0"), len)) }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, ALIGN).expect("fewer bytes than addresses")
    }

    /// The first `len` elements.
    pub(crate) fn slice<T: Plain>(&self, len: usize) -> &[T] {
        assert!(len * size_of::<T>() <= self.bytes, "beyond the memory");
        // SAFETY: in bounds, aligned, initialised (with zeros at first), borrowed like `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), len) }
    }

    /// The first `len` elements, to be written.
    pub(crate) fn slice_mut<T: Plain>(&mut self, len: usize) -> &mut [T] {
        assert!(len * size_of::<T>() <= self.bytes, "beyond the memory");
        // SAFETY: as in `slice`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), len) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[repr(align(64))]
struct Aligned;

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((base, len)) = self.mapping {
            // SAFETY: the mapping is ours alone.
            let _ = unsafe { munmap(base.as_ptr().cast(), len) };
        } else if self.bytes > 0 {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.at.as_ptr(), Self::layout(self.bytes)) };
        }
    }
}

/// Buffers that tensors gave back, by power of two. A buffer's unused tail is never touched, so rounding up
/// costs addresses, not memory.
#[derive(Default)]
pub(crate) struct Recycler {
    free: RefCell<Vec<Vec<Memory>>>,
    fresh: Cell<usize>,
    in_use: [Cell<InUse>; 2],
}

/// What a buffer is for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// A matrix of activations.
    Activations,
    /// An operation's own needs.
    Scratch,
}

/// Bytes of buffers that are in use.
#[derive(Clone, Copy, Default)]
struct InUse {
    now: u64,
    most: u64,
}

impl Recycler {
    /// A buffer of at least `len` elements, of unspecified content.
    pub(crate) fn take<T: Plain>(self: &Rc<Self>, len: usize, purpose: Purpose) -> Buffer<T> {
        if len == 0 {
            let memory = Some(Memory::zeroed(0));
            return Buffer { memory, len, purpose, home: self.clone(), of: PhantomData };
        }
        let in_use = &self.in_use[purpose as usize];
        let now = in_use.get().now + (len * size_of::<T>()) as u64;
        in_use.set(InUse { now, most: in_use.get().most.max(now) });
        let bytes = (len * size_of::<T>()).next_power_of_two().max(1024);
        let recycled = self.free.borrow_mut().get_mut(bytes.trailing_zeros() as usize).and_then(Vec::pop);
        let memory = recycled.unwrap_or_else(|| {
            self.fresh.set(self.fresh.get() + 1);
            Memory::zeroed(bytes)
        });
        Buffer { memory: Some(memory), len, purpose, home: self.clone(), of: PhantomData }
    }

    /// The most bytes that were in use for something at a time.
    pub(crate) fn most_in_use(&self, purpose: Purpose) -> u64 {
        self.in_use[purpose as usize].get().most
    }

    /// How often a buffer had to come from the system.
    pub(crate) fn fresh_allocations(&self) -> usize {
        self.fresh.get()
    }
}

/// Memory that goes back to its [`Recycler`].
pub(crate) struct Buffer<T: Plain> {
    memory: Option<Memory>,
    len: usize,
    purpose: Purpose,
    home: Rc<Recycler>,
    of: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        self.memory.as_ref().expect("taken only by drop").slice(self.len)
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        self.memory.as_mut().expect("taken only by drop").slice_mut(self.len)
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take().filter(|m| m.bytes() > 0) else { return };
        let in_use = &self.home.in_use[self.purpose as usize];
        let InUse { now, most } = in_use.get();
        in_use.set(InUse { now: now - (self.len * size_of::<T>()) as u64, most });
        let class = memory.bytes().trailing_zeros() as usize;
        let mut free = self.home.free.borrow_mut();
        if free.len() <= class {
            free.resize_with(class + 1, Vec::new);
        }
        free[class].push(memory);
    }
}

/// A slice of which threads write parts that do not overlap.
pub(crate) struct Disjoint<'a, T> {
    at: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: like `&mut [T]`; the parts that threads get do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(of: &'a mut [T]) -> Self {
        Disjoint { at: of.as_mut_ptr(), len: of.len(), of: PhantomData }
    }

    /// # Safety
    /// No two live parts may overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "beyond the slice");
        // SAFETY: in bounds; not aliased, by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(range.start), range.len()) }
    }

    /// Where an element lies. Writing there is the caller's responsibility.
    #[inline(always)]
    pub(crate) fn address(&self, index: usize) -> *mut T {
        assert!(index < self.len, "beyond the slice");
        // SAFETY: in bounds.
        unsafe { self.at.add(index) }
    }

    /// # Safety
    /// No other thread may access this element, and nobody may hold a part that includes it.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, index: usize, value: T) {
        assert!(index < self.len, "beyond the slice");
        // SAFETY: in bounds; nobody else is there, by the caller's word.
        unsafe { self.at.add(index).write(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn big_memories_that_are_filled_side_by_side_reach_new_pages_one_after_the_other() {
        let mut all: Vec<Memory> = (0..16).map(|nth| Memory::staggered(STAGGERED_FROM, nth)).collect();
        let mut starts: Vec<usize> =
            all.iter().map(|memory| memory.at.as_ptr() as usize % HUGE_PAGE).collect();
        starts.sort();
        let least = starts.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(least > Some(HUGE_PAGE / 64), "{starts:?}");
        for memory in &mut all {
            let bytes = memory.slice_mut::<u8>(STAGGERED_FROM);
            (bytes[0], bytes[STAGGERED_FROM - 1]) = (1, 1);
        }
    }
}
