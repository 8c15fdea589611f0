//! Host memory that a GPU reads and writes by itself.

use std::ptr::null_mut;
use std::slice;

use cudarc::driver::sys;

use super::api::check;
use crate::driver::Fault;

/// Some of it, of fixed place.
pub(crate) struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    /// So many bytes, all 0. The context is current.
    pub fn new(bytes: usize) -> Result<Self, Fault> {
        let mut at = null_mut();
        // SAFETY: it writes one pointer.
        check(unsafe { sys::cuMemHostAlloc(&mut at, bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) })
            .map_err(|Fault(error)| Fault(format!("{bytes} bytes of pinned host memory: {error}")))?;
        let at: *mut u8 = at.cast();
        // SAFETY: there are as many bytes.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Pinned { at, bytes })
    }

    /// Where a GPU finds the byte of this number.
    pub fn at(&self, byte: usize) -> *mut u8 {
        assert!(byte <= self.bytes, "a place in pinned memory");
        // SAFETY: within the allocation, or one past its end.
        unsafe { self.at.add(byte) }
    }

    /// The bytes, for the host.
    ///
    /// # Safety
    /// No GPU reads or writes those that are read or written now.
    pub unsafe fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: they are initialised, and borrowed with the owner.
        unsafe { slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was allocated and is freed once.
        unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}
