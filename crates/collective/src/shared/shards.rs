//! Slices that several threads write, and slices as bytes.

use std::ops::Range;
use std::ptr::NonNull;

/// A slice that several threads write, each its own ranges.
pub(super) struct Shards<'a, T> {
    base: NonNull<T>,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the ranges given out do not overlap (contract of `range`), so threads share no element.
unsafe impl<T: Send> Sync for Shards<'_, T> {}

impl<'a, T> Shards<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Shards { len: slice.len(), base: NonNull::from(slice).cast(), slice: std::marker::PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No two ranges that are alive at once overlap.
    #[allow(clippy::mut_from_ref)] // the contract makes it exclusive
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
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
