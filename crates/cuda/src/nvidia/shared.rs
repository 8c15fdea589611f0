//! Memory that ranks share, in a process or between processes of a host.

use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{self, CUresult};

use super::api::check;
use super::gpu::Gpu;
use super::pinned::Pinned;
use crate::driver::{Address, Fault, SharedMemory};

/// Memory of a GPU.
struct OfGpu {
    gpu: Arc<Gpu>,
    at: Address,
    /// Whether other processes may have it.
    is_told: AtomicBool,
}

/// Memory of a GPU, all 0. The GPU is current.
pub(super) fn of_gpu(gpu: &Arc<Gpu>, at: Address, bytes: usize) -> Result<Arc<dyn SharedMemory>, Fault> {
    let memory = OfGpu { gpu: gpu.clone(), at, is_told: AtomicBool::new(false) };
    // SAFETY: there are as many bytes, which nobody else has yet.
    check(unsafe { sys::cuMemsetD8_v2(at, 0, bytes) })?;
    // It may only have begun, in a stream that others don't wait for.
    // SAFETY: the default stream is always there.
    check(unsafe { sys::cuStreamSynchronize(null_mut()) })?;
    Ok(Arc::new(memory))
}

impl SharedMemory for OfGpu {
    fn at(&self) -> Address {
        self.at
    }

    fn handle(&self) -> Result<Vec<u8>, Fault> {
        let mut handle = sys::CUipcMemHandle { reserved: [0; HANDLE_BYTES] };
        self.gpu.bind()?;
        // SAFETY: it writes the handle; the memory is there.
        check(unsafe { sys::cuIpcGetMemHandle(&mut handle, self.at) })
            .map_err(|Fault(why)| Fault(format!("its memory is no other process's: {why}")))?;
        self.is_told.store(true, Ordering::Relaxed);
        Ok(handle.reserved.iter().map(|byte| *byte as u8).collect())
    }
}

impl Drop for OfGpu {
    fn drop(&mut self) {
        if self.is_told.load(Ordering::Relaxed) {
            // Kernels of another process may still read it. It is given back when the process ends.
            return;
        }
        // What can't be given back is gone with the process.
        self.gpu.bind().ok();
        // SAFETY: it was allocated and is freed once; who uses it has it.
        unsafe { sys::cuMemFree_v2(self.at) };
    }
}

/// Bytes by which another process opens memory.
const HANDLE_BYTES: usize = 64;

/// Memory of another process.
struct OfOther {
    gpu: Arc<Gpu>,
    at: Address,
}

/// Another process's memory, by its handle. The GPU is current, and reaches it.
pub(super) fn opened(gpu: &Arc<Gpu>, handle: &[u8]) -> Result<Arc<dyn SharedMemory>, Fault> {
    let bytes = <[u8; HANDLE_BYTES]>::try_from(handle);
    let bytes = bytes.map_err(|_| Fault(format!("{} bytes are no handle of memory", handle.len())))?;
    let (mut at, handle) = (0, sys::CUipcMemHandle { reserved: bytes.map(|byte| byte as _) });
    let flags = sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    // SAFETY: it writes one number.
    check(unsafe { sys::cuIpcOpenMemHandle_v2(&mut at, handle, flags) })
        .map_err(|Fault(why)| Fault(format!("memory of another process: {why}")))?;
    Ok(Arc::new(OfOther { gpu: gpu.clone(), at }))
}

impl SharedMemory for OfOther {
    fn at(&self) -> Address {
        self.at
    }
}

impl Drop for OfOther {
    fn drop(&mut self) {
        self.gpu.bind().ok();
        // SAFETY: it was opened and is closed once.
        unsafe { sys::cuIpcCloseMemHandle(self.at) };
    }
}

/// Memory of the host, at the same place for all GPUs.
struct OfHost {
    memory: Pinned,
    /// Behind it: memory is given back while its context is there.
    gpu: Arc<Gpu>,
}

// SAFETY: its place is fixed, and whoever uses it from several threads does so by atomic words.
unsafe impl Send for OfHost {}
// SAFETY: see above.
unsafe impl Sync for OfHost {}

/// Memory of the host, all 0. The GPU is current.
pub(super) fn of_host(gpu: &Arc<Gpu>, bytes: usize) -> Result<Arc<dyn SharedMemory>, Fault> {
    Ok(Arc::new(OfHost { memory: Pinned::new(bytes)?, gpu: gpu.clone() }))
}

impl SharedMemory for OfHost {
    fn at(&self) -> Address {
        self.memory.at(0) as Address
    }
}

impl Drop for OfHost {
    fn drop(&mut self) {
        // Whoever is the last to have it may be of another GPU, or have none yet. It is given back behind this.
        self.gpu.bind().ok();
    }
}

/// Lets a GPU use another one's memory. The first is current.
pub(super) fn reach(gpu: &Gpu, ordinal: u32) -> Result<(), Fault> {
    let (own, mut other, mut can, mut context) = (gpu.info.ordinal, 0, 0, null_mut());
    // SAFETY: it writes one number.
    check(unsafe { sys::cuDeviceGet(&mut other, ordinal as c_int) })?;
    // SAFETY: it writes one number.
    check(unsafe { sys::cuDeviceCanAccessPeer(&mut can, gpu.device(), other) })?;
    if can == 0 {
        return Err(Fault(format!("GPU {own} does not reach the memory of GPU {ordinal}")));
    }
    // SAFETY: it writes one pointer.
    check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, other) })?;
    // SAFETY: both contexts are there.
    let enabled = unsafe { sys::cuCtxEnablePeerAccess(context, 0) };
    // The rank whose GPU it is keeps it.
    // SAFETY: it was retained once more.
    unsafe { sys::cuDevicePrimaryCtxRelease_v2(other) };
    match enabled {
        // Another rank of this GPU did so, or another group.
        CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
        result => check(result).map_err(|Fault(why)| {
            Fault(format!("GPU {own} does not reach the memory of GPU {ordinal}: {why}"))
        }),
    }
}
