//! Where a rank's memory comes from.

use cudarc::driver::sys::{self, CUresult};

use super::api::check;
use super::driver::NvidiaDriver;
use crate::driver::{Address, Fault};
use crate::memory::in_words;

impl NvidiaDriver {
    /// Memory, of the stream's pool or of the GPU. Taking it of the GPU, and giving it back, may wait for all that runs there: for
    /// ranks, too, that wait for this one.
    pub(super) fn allocated(&self, bytes: usize, of_pool: bool) -> Result<Address, Fault> {
        self.gpu.bind()?;
        let mut at = 0;
        // SAFETY: it writes one number.
        let result = unsafe {
            match of_pool {
                true => sys::cuMemAllocAsync(&mut at, bytes, self.stream),
                false => sys::cuMemAlloc_v2(&mut at, bytes),
            }
        };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.gpu.memory()?;
            return Err(out_of_memory(bytes, free, total));
        }
        check(result).map_err(|Fault(error)| Fault(format!("{bytes} bytes of the GPU's memory: {error}")))?;
        Ok(at)
    }
}

/// A device's memory that is not there.
fn out_of_memory(wanted: usize, free: usize, total: usize) -> Fault {
    let [wanted, free, total] = [wanted, free, total].map(in_words);
    Fault(format!("wanted {wanted}, {free} of {total} free"))
}
