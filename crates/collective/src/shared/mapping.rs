//! Shared memory, mapped: of threads, or of processes that have its file descriptor.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// What `/proc` calls the memory.
const NAME: &CStr = c"anysplit-group";

/// Mapped memory of zeros at first; goes when it is dropped and nobody else has it.
pub(super) struct Mapping {
    pub base: NonNull<u8>,
    pub bytes: usize,
    /// The same memory for other processes, if it may leave this one.
    pub fd: Option<OwnedFd>,
}

// SAFETY: only an address range; who makes references into it sees to what they alias.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

const ACCESS: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Mapping {
    /// For threads of this process.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        // Rings and slots are larger than what is used of them: no promise of memory for all is asked for.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at a place of the kernel's choice aliases nothing.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ACCESS, flags) }?;
        Ok(Mapping { base: NonNull::new(base.cast()).expect("mmap returns no null"), bytes, fd: None })
    }

    /// For processes that get its descriptor. It is in no file system, and its size is sealed: nobody can make an
    /// access to it fail by cutting it short.
    pub fn memfd(bytes: usize) -> io::Result<Self> {
        let fd = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, bytes as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(fd, bytes)
    }

    /// Another process's memory.
    pub fn open(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        let seals = fcntl_get_seals(&fd).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(io::Error::other("this is no shared segment: its size is not sealed"));
        }
        let size = fstat(&fd)?.st_size as u64;
        if size < bytes as u64 {
            let message = format!("this is no shared segment: {size} bytes, at least {bytes} expected");
            return Err(io::Error::other(message));
        }
        Self::map(fd, bytes)
    }

    fn map(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice; its memory is reached only through it, by atomics
        // and by the protocol that they carry.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, ACCESS, MapFlags::SHARED, fd.as_fd(), 0) }?;
        Ok(Mapping { base: NonNull::new(base.cast()).expect("mmap returns no null"), bytes, fd: Some(fd) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length; every borrow of it ends before the last owner drops it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}
