//! Host memory that a GPU reads and writes by itself.

use std::ptr::null_mut;

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

    /// Writes bytes from a place on.
    ///
    /// # Safety
    /// No GPU reads or writes them until this returns.
    pub unsafe fn write(&self, place: usize, bytes: &[u8]) {
        assert!(place + bytes.len() <= self.bytes, "bytes that pinned memory has room for");
        // SAFETY: there is room, and nobody else has the memory.
        unsafe { self.at.add(place).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Reads the first bytes.
    ///
    /// # Safety
    /// No GPU writes them until this returns.
    pub unsafe fn read(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.bytes, "bytes that pinned memory has");
        // SAFETY: they are there and initialised.
        unsafe { self.at.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Pinned {
    /// Leaves the memory to a GPU that may use it until the process ends.
    pub fn leave(&mut self) {
        self.at = null_mut();
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.at.is_null() {
            return;
        }
        // SAFETY: it was allocated and is freed once.
        unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}
