//! Where the ranks of this host keep weights, caches and activations, and what there is room for.

use std::sync::Arc;

use tensor::KV_BLOCK;

use crate::EngineError;
use crate::memory;
use crate::report::GpuRoom;

/// Of the memory that weights leave free, how much keys and values get if nobody says.
const HOST_SHARE: f64 = 0.5;
/// Of all memory of a GPU, how much its ranks get if nobody says.
const GPU_SHARE: f64 = 0.9;

/// Memory that several ranks share.
#[derive(Clone)]
pub(crate) struct Place {
    /// Ranks of this host that have theirs there.
    pub ranks: usize,
    of: Kind,
}

#[derive(Clone)]
enum Kind {
    /// The host's.
    Host,
    Gpu(GpuMemory),
}

/// A GPU's memory.
#[derive(Clone)]
pub(crate) struct GpuMemory {
    /// Which GPU.
    pub name: String,
    /// Bytes, whoever has them.
    pub total: u64,
    /// Bytes that nobody had when it was last asked: when the weights were there and nothing else; before that, at the start.
    pub free: u64,
    /// Asks.
    pub ask: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// What a rank takes besides its weights, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    /// Of activations, at the most.
    pub activations: u64,
    /// Of one token in its cache.
    pub token: u64,
}

impl Place {
    /// The memory that all ranks of this host share.
    pub fn host(ranks: usize) -> Self {
        Place { ranks, of: Kind::Host }
    }

    /// A GPU's memory.
    pub fn gpu(memory: GpuMemory, ranks: usize) -> Self {
        Place { ranks, of: Kind::Gpu(memory) }
    }

    /// The GPU of a rank elsewhere, as that rank told it when its weights were there and nothing else.
    pub fn gpu_of_rank(rank: usize, room: GpuRoom) -> Self {
        let GpuRoom { total, free, ranks } = room;
        let name = format!("the GPU of rank {rank}");
        Place::gpu(GpuMemory { name, total, free, ask: Arc::new(move || free) }, ranks)
    }

    /// The same, with what is free now.
    pub fn measured(mut self) -> Self {
        if let Kind::Gpu(memory) = &mut self.of {
            memory.free = (memory.ask)();
        }
        self
    }

    pub fn is_gpu(&self) -> bool {
        matches!(self.of, Kind::Gpu(_))
    }

    /// Bytes that the caches of all ranks here may take, at the share that was asked for (`None`: as is usual); `None`: nobody
    /// knows.
    pub fn for_caches(&self, share: Option<f64>, needs: Needs) -> Option<u64> {
        match &self.of {
            Kind::Host => {
                let available = memory::available_bytes()?;
                Some((available as f64 * share.unwrap_or(HOST_SHARE)) as u64)
            }
            Kind::Gpu(gpu) => {
                let activations = needs.activations.saturating_mul(self.ranks as u64);
                Some(gpu.usable(share).saturating_sub(activations))
            }
        }
    }

    /// Bytes that caches can't be larger than.
    pub fn at_most(&self, share: Option<f64>, needs: Needs) -> Option<u64> {
        match self.of {
            Kind::Host => memory::available_bytes(),
            Kind::Gpu(_) => self.for_caches(share, needs),
        }
    }

    /// Refuses a plan for which there is no room, before anything is loaded: weights, and what ranks exchange
    /// by, of so many bytes on each rank, and as much besides as the first token takes.
    ///
    /// # Errors
    /// What is needed, and what there is.
    pub fn check_plan(&self, share: Option<f64>, held: u64, needs: Needs) -> Result<(), EngineError> {
        let Kind::Gpu(gpu) = &self.of else { return Ok(()) };
        let ranks = self.ranks as u64;
        let block = needs.token * KV_BLOCK as u64;
        let each = held.saturating_add(needs.activations).saturating_add(block);
        let (needed, usable) = (ranks.saturating_mul(each), gpu.usable(share));
        if needed <= usable {
            return Ok(());
        }
        let who = match ranks {
            1 => "a rank on it needs".to_owned(),
            ranks => format!("{ranks} ranks on it need"),
        };
        let gb = |bytes: u64| gigabytes(ranks.saturating_mul(bytes));
        let why = format!(
            "the model does not fit: {} has {} for it (--gpu-memory-utilization {} of {}, {} free), and {who} {}: weights and buffers {}, \
             activations {}, keys and values of {KV_BLOCK} tokens {}",
            gpu.name,
            gigabytes(usable),
            share.unwrap_or(GPU_SHARE),
            gigabytes(gpu.total),
            gigabytes(gpu.free),
            gigabytes(needed),
            gb(held),
            gb(needs.activations),
            gb(block),
        );
        let more = if needed <= gpu.free { "more --gpu-memory-utilization, " } else { "" };
        let would_work = format!(
            "{more}--tp or --pp over more GPUs, --quantization int8 or int4, fewer --max-num-batched-tokens, or --device cpu \
             would help"
        );
        Err(EngineError::NotOnGpus { why, would_work })
    }
}

impl GpuMemory {
    /// What is free, but for the share that is not to be used.
    fn usable(&self, share: Option<f64>) -> u64 {
        let all = (self.total as f64 * share.unwrap_or(GPU_SHARE)) as u64;
        all.saturating_sub(self.total - self.free.min(self.total))
    }
}

/// Bytes as people read them.
fn gigabytes(bytes: u64) -> String {
    match bytes {
        ..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn gpu(free: u64, ranks: usize) -> Place {
        let memory =
            GpuMemory { name: "GPU 0 (Test)".into(), total: 80 * GB, free, ask: Arc::new(move || free - GB) };
        Place::gpu(memory, ranks)
    }

    #[test]
    fn caches_get_what_weights_and_activations_leave_of_the_share() {
        let needs = Needs { activations: GB, token: 1000 };
        // Of 70 GB that are free 8 are not to be used.
        assert_eq!(gpu(70 * GB, 1).for_caches(Some(0.9), needs), Some(61 * GB));
        assert_eq!(gpu(70 * GB, 3).for_caches(Some(1.0), needs), Some(67 * GB));
        assert_eq!(gpu(70 * GB, 3).measured().for_caches(Some(1.0), needs), Some(66 * GB));
        assert_eq!(gpu(7 * GB, 1).for_caches(None, needs), Some(0));
    }

    #[test]
    fn a_gpu_elsewhere_has_what_its_rank_said() {
        let needs = Needs { activations: GB, token: 1000 };
        let place = Place::gpu_of_rank(3, GpuRoom { total: 24 * GB, free: 20 * GB, ranks: 2 });
        assert!(place.is_gpu());
        assert_eq!(place.measured().for_caches(Some(1.0), needs), Some(18 * GB));
    }

    #[test]
    fn a_plan_without_room_is_refused_with_its_figures() {
        let needs = Needs { activations: GB, token: 1_000_000 };
        assert!(gpu(70 * GB, 2).check_plan(None, 29 * GB, needs).is_ok());
        let error = gpu(70 * GB, 2).check_plan(None, 30 * GB, needs).unwrap_err().to_string();
        assert_eq!(
            error,
            "the model does not fit: GPU 0 (Test) has 62.0 GB for it (--gpu-memory-utilization 0.9 of 80.0 GB, 70.0 GB \
             free), and 2 ranks on it need 62.0 GB: weights and buffers 60.0 GB, activations 2.0 GB, keys and values of 16 tokens 32 \
             MB; more --gpu-memory-utilization, --tp or --pp over more GPUs, --quantization int8 or int4, fewer --max-num-batched-tokens, or --device cpu would help"
        );
        assert!(Place::host(2).check_plan(None, u64::MAX / 4, needs).is_ok());
        // A larger share of what is free would not be enough.
        let error = gpu(70 * GB, 2).check_plan(None, 35 * GB, needs).unwrap_err().to_string();
        assert!(error.contains("need 72.0 GB") && error.contains("32 MB; --tp or --pp over"), "{error}");
        let countless = Needs { activations: u64::MAX, ..needs };
        assert!(gpu(70 * GB, 2).check_plan(None, GB, countless).is_err());
    }
}
