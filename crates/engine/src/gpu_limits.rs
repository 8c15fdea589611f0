//! What the GPUs of this host's ranks do at best.

use cuda::{CubinCache, Fault, Gpu, GpuLimits};
use model::ModelError;
use tensor::DeviceError;

use crate::{Engine, EngineError};

/// GPUs that are alike, of which the first was measured.
#[derive(Clone, Copy, Debug)]
pub struct HostGpus {
    /// How many ranks of this host have theirs among.
    pub count: usize,
    /// What one does.
    pub each: GpuLimits,
}

/// What a GPU does at best, by its number, measured in less than a second beside whatever else runs on it.
///
/// # Errors
/// There is no such GPU, nothing to compile kernels with, or no memory to read.
pub fn gpu_limits(ordinal: u32) -> Result<GpuLimits, EngineError> {
    let limits = Gpu::open(ordinal, &CubinCache::of_user()).and_then(|gpu| gpu.limits());
    Ok(limits.map_err(|fault| failed(&format!("GPU {ordinal}"), fault))?)
}

fn failed(device: &str, Fault(message): Fault) -> ModelError {
    DeviceError { device: device.into(), message }.into()
}

/// Operations per second (an FMA counts as two) of NVIDIA's library of matrix products on a GPU, on large ones of bfloat16.
///
/// # Errors
/// Why there is none, in one line: without the library nothing else fails.
pub fn gpu_library_rate(ordinal: u32) -> Result<f64, String> {
    let rate = Gpu::open(ordinal, &CubinCache::of_user()).and_then(|gpu| cuda::library_rate(&gpu));
    rate.map_err(|Fault(message)| message)
}

impl Engine {
    /// Measures the GPUs of this host's ranks; `None` if ranks are the processor's.
    ///
    /// # Errors
    /// There is no memory left to measure with.
    pub fn host_gpus(&self) -> Result<Option<HostGpus>, EngineError> {
        if !self.is_on_gpus() {
            return Ok(None);
        }
        let first = cuda::usable().map_err(|fault| failed("the GPUs", fault))?.gpus[0].ordinal;
        Ok(Some(HostGpus { count: self.gpus, each: gpu_limits(first)? }))
    }
}
