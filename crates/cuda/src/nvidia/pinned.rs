//! Host memory that a GPU reads and writes by itself.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::null_mut;
use std::rc::Rc;

use cudarc::driver::sys;

use super::api::check;
use crate::driver::Fault;

/// For all GPUs, which find it where the host does.
const FLAGS: u32 = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;

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
        check(unsafe { sys::cuMemHostAlloc(&mut at, bytes.max(1), FLAGS) })
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

/// Pinned memory in parts. It is had all at once: to ask for more may wait for all that runs on a GPU, kernels of other ranks among it
/// that wait for this one.
pub(crate) struct PinnedPool {
    memory: Pinned,
    /// What was never given away begins here.
    next: Cell<usize>,
    /// What came back, by size.
    free: RefCell<HashMap<usize, Vec<usize>>>,
}

/// A part, until it is dropped.
pub(crate) struct PinnedPart {
    pool: Rc<PinnedPool>,
    at: usize,
    bytes: usize,
}

/// Sizes of parts are multiples of it.
const PART: usize = 1 << 10;

impl PinnedPool {
    /// Of so many bytes. The context is current.
    pub fn new(bytes: usize) -> Result<Rc<Self>, Fault> {
        Ok(Rc::new(PinnedPool { memory: Pinned::new(bytes)?, next: Cell::new(0), free: RefCell::default() }))
    }

    /// A part of so many bytes.
    ///
    /// # Errors
    /// There is no room.
    pub fn part(self: &Rc<Self>, bytes: usize) -> Result<PinnedPart, Fault> {
        let bytes = bytes.max(1).next_multiple_of(PART);
        let came_back = self.free.borrow_mut().get_mut(&bytes).and_then(Vec::pop);
        let at = match came_back {
            Some(at) => at,
            None if self.next.get() + bytes <= self.memory.bytes => {
                self.next.replace(self.next.get() + bytes)
            }
            None => return Err(Fault(format!("no {bytes} bytes of pinned host memory are left"))),
        };
        Ok(PinnedPart { pool: self.clone(), at, bytes })
    }

    /// As [`Pinned::leave`].
    pub fn leave(self: &Rc<Self>) {
        std::mem::forget(self.clone());
    }
}

impl PinnedPart {
    /// Where a GPU finds its first byte.
    pub fn start(&self) -> *mut u8 {
        self.pool.memory.at(self.at)
    }

    /// Writes bytes from its first on.
    ///
    /// # Safety
    /// As of [`Pinned::write`].
    pub unsafe fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes, "bytes that a part of pinned memory has room for");
        // SAFETY: as whoever calls it says.
        unsafe { self.pool.memory.write(self.at, bytes) };
    }
}

impl Drop for PinnedPart {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().entry(self.bytes).or_default().push(self.at);
    }
}
