//! Ranks on NVIDIA GPUs.

use std::sync::Arc;
use std::time::Duration;

use checkpoint::PackedCheckpoint;
use collective::{Collective, Solo, WireDType};
use cuda::{CubinCache, CudaDevice, CudaGroup, Fault, Gpu, Reduction};
use tensor::{DeviceError, Reference, WeightFormat};

use crate::groups::RankDevice;
use crate::launch::MakeDevice;
use crate::places::{GpuMemory, Place};
use crate::prepared::{Local, Machine};
use crate::{EngineError, EngineOptions};

impl RankDevice for CudaDevice {
    type Host = Reference;

    /// What is alone exchanges nothing.
    fn over(
        group: Box<dyn Collective<Reference> + Send>,
        ranks: &[usize],
        wire: WireDType,
        deadline: Duration,
    ) -> Box<dyn Collective<Self> + Send> {
        match group.size() {
            1 => Box::new(Solo::default()),
            _ => Box::new(CudaGroup::new(group, wire, deadline).called(ranks)),
        }
    }

    fn slowed_by(&self, format: WeightFormat) -> Option<String> {
        let why = self.missing_library(format)?;
        Some(format!("--reduction fast: {why}; 512 rows or more take the kernels that canonical sums have"))
    }
}

/// Makes ranks' devices of this host's GPUs. Each rank has one of its own while there are enough; ranks that are more than
/// GPUs share them, neighbours the same. GPUs that can't run models are passed over.
pub(crate) struct MakeCuda {
    local: Local,
    enforce_eager: bool,
    times_parts: bool,
    reduction: Reduction,
    /// Those that ranks of this process use.
    gpus: Vec<Arc<Gpu>>,
    /// By their numbers, those that there are for the ranks of this host.
    usable: Vec<u32>,
    /// How many ranks of this host have this process's GPU, where each is a process and has said which GPU is its own.
    together: Option<usize>,
}

impl MakeCuda {
    fn gpu_of(&self, index: usize) -> u32 {
        self.usable[gpu_of(index, self.local.ranks, self.usable.len())]
    }

    /// Ranks of this host that have a GPU.
    fn ranks_on(&self, gpu: &Gpu) -> usize {
        let has = |index: &usize| self.gpu_of(*index) == gpu.info.ordinal;
        self.together.unwrap_or_else(|| (0..self.local.ranks).filter(has).count())
    }

    fn say_shares(&self) -> Result<(), EngineError> {
        let said = self.gpus.iter().try_for_each(|gpu| {
            let ranks = self.ranks_on(gpu);
            gpu.shared_by(ranks, if self.local.are_processes() { ranks } else { 1 })
        });
        said.map_err(|Fault(message)| EngineError::Request(message))
    }
}

/// Which of `gpus` is that of a host's rank.
fn gpu_of(index: usize, ranks: usize, gpus: usize) -> usize {
    match ranks <= gpus {
        true => index,
        false => index * gpus / ranks,
    }
}

impl MakeDevice for MakeCuda {
    type Device = CudaDevice;
    fn make(&self, rank: usize) -> Result<CudaDevice, DeviceError> {
        let ordinal = self.gpu_of(self.local.here(rank));
        let gpu = self.gpus.iter().find(|gpu| gpu.info.ordinal == ordinal);
        let gpu = gpu.expect("GPUs of all ranks of this process are open");
        let made = gpu.load(&cuda::kernels_for(self.local.kv_dtype, self.local.head_dim, self.local.replica));
        let made = made.and_then(|()| gpu.driver(self.enforce_eager));
        match made {
            Ok(driver) => {
                let dev = CudaDevice::with(Box::new(driver), self.reduction);
                Ok(if self.times_parts { dev.watched() } else { dev })
            }
            Err(Fault(message)) => Err(DeviceError { device: gpu.info.name.clone(), message }),
        }
    }
}

impl Machine for MakeCuda {
    fn new(local: Local, options: &EngineOptions) -> Result<Self, EngineError> {
        let refused = |Fault(why): Fault| EngineError::NotOnGpus {
            why,
            would_work: "--device cpu needs none of that".into(),
        };
        let usable = cuda::usable().map_err(refused)?.gpus;
        let usable: Vec<u32> = usable.iter().map(|gpu| gpu.ordinal).collect();
        if local.heads > cuda::MOST_HEADS {
            let (most, heads) = (cuda::MOST_HEADS, local.heads);
            return Err(refused(Fault(format!(
                "GPUs take models of {most} heads at most, this one has {heads}"
            ))));
        }
        let mut own: Vec<usize> =
            local.of_process().map(|index| gpu_of(index, local.ranks, usable.len())).collect();
        own.dedup();
        let cache = CubinCache::of_user();
        let open = |which: usize| Gpu::open(usable[which], &cache).map_err(refused);
        let gpus = own.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let EngineOptions { enforce_eager, times_parts, reduction, .. } = *options;
        let make = MakeCuda { local, enforce_eager, times_parts, reduction, gpus, usable, together: None };
        make.say_shares()?;
        Ok(make)
    }

    const MEETS: bool = true;

    fn devices(&self) -> Vec<u64> {
        self.gpus.iter().map(|gpu| gpu.number()).collect()
    }

    fn hear(&mut self, others: &[Vec<u64>]) -> Result<(), EngineError> {
        // A launcher may give each rank a GPU that is number 0 to it.
        if let [own] = &self.gpus[..] {
            let number = own.number();
            self.together = Some(others.iter().filter(|of| of.contains(&number)).count());
        }
        self.say_shares()
    }

    fn gpus(&self) -> usize {
        self.usable.len().min(self.local.ranks)
    }

    fn places(&self) -> Vec<Place> {
        let place = |gpu: &Arc<Gpu>| {
            let ranks = self.ranks_on(gpu);
            let asked = gpu.clone();
            // A GPU that doesn't answer has nothing to give; the first who uses it says why.
            let ask = move || asked.free_bytes().unwrap_or(0);
            let name = format!("GPU {} ({})", gpu.info.ordinal, gpu.info.name);
            Place::gpu(
                GpuMemory { name, total: gpu.info.memory_bytes, free: ask(), ask: Arc::new(ask) },
                ranks,
            )
        };
        self.gpus.iter().map(place).collect()
    }

    fn check_packed(packed: &PackedCheckpoint) -> Result<(), EngineError> {
        let layout = packed.info().layout.as_str();
        Err(EngineError::NotOnGpus {
            why: format!(
                "the checkpoint is packed for a processor ({layout}), and GPUs have a layout of their own"
            ),
            would_work: "give the original with --quantization, or use --device cpu".into(),
        })
    }
}

#[cfg(test)]
mod tests;
