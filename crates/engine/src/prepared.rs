//! What is decided before any rank starts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use checkpoint::WeightSource;
use cpu::{CpuConfig, CpuDevice};
use model::{Decoder, Loader, ModelConfig};
use tensor::{Cost, DType, Timed};

use crate::launch::{LaunchOptions, MakeDevice, Setup};
use crate::{EngineError, EngineOptions, Plan, cpus, memory};

/// How long a thread that waits for another spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// Threads of all ranks together: above any machine's cores, below what systems refuse.
const MAX_THREADS: usize = 4096;

/// Makes a rank's device of the processor.
pub(crate) struct MakeCpu {
    /// Ranks of this process: the first and how many.
    local: (usize, usize),
    threads: usize,
    isa: Option<cpu::Isa>,
    spin: bool,
}

impl MakeDevice for MakeCpu {
    type Device = Timed<CpuDevice>;
    fn make(&self, rank: usize) -> Timed<CpuDevice> {
        Timed::new(CpuDevice::new(CpuConfig {
            threads: self.threads,
            cores: cpus::of_rank(rank - self.local.0, self.local.1, self.threads),
            isa: self.isa,
            spin: self.spin,
        }))
    }
}

/// What is known before any rank starts.
pub(crate) struct Prepared {
    pub setup: Setup<MakeCpu>,
    pub settings: Settings,
    /// Bytes that the ranks of this process load.
    pub total: u64,
}

/// What the engine is told of it.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub dtype: DType,
    pub kv_dtype: DType,
    pub threads: usize,
    pub max_model_len: usize,
}

impl Prepared {
    pub fn new(
        config: ModelConfig,
        source: WeightSource,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let max_positions = config.max_position_embeddings;
        let plan = Plan::new(config, options, None)?;
        let ranks = plan.mesh.size();
        let dtype = options.dtype.unwrap_or_else(|| source.dtype());
        let kv_dtype = options.kv_cache_dtype.unwrap_or(dtype);
        let max_model_len = options.max_model_len.unwrap_or(max_positions);
        if max_model_len == 0 || max_model_len > max_positions {
            return Err(EngineError::Request(format!(
                "max-model-len {max_model_len} must be from 1 to the model's {max_positions} positions"
            )));
        }
        if options.threads_per_rank == Some(0) {
            return Err(EngineError::Request("threads-per-rank must be at least 1".into()));
        }
        let total = preflight(&plan, &source, options.dtype)? * plan.mesh.dp as u64;
        if let Some(available) = memory::available_bytes().filter(|&available| total > available) {
            return Err(EngineError::Request(format!(
                "the weights need {total} bytes over {ranks} ranks, but only {available} bytes of memory are available; \
                 a smaller --dtype, or a machine with more memory, would work"
            )));
        }
        let threads = options.threads_per_rank.unwrap_or_else(|| cpus::default_threads(ranks));
        if threads.saturating_mul(ranks) > MAX_THREADS {
            return Err(EngineError::Request(format!(
                "threads-per-rank {threads} on {ranks} ranks are more than {MAX_THREADS} threads; this machine has {} cores",
                cpus::available().len()
            )));
        }
        // Spinning only makes sense while everyone who spins has a core.
        let spin = ranks * threads <= cpus::available().len();
        let launch_options = LaunchOptions {
            weight_dtype: options.dtype,
            kv_dtype,
            comm_timeout: options.comm_timeout,
            spin: if spin { SPIN } else { Duration::ZERO },
            host: String::new(),
        };
        let setup = Setup {
            mesh: plan.mesh,
            layout: plan.layout,
            stages: plan.stages,
            source,
            options: launch_options,
            make: MakeCpu { local: (0, ranks), threads, isa: options.isa, spin },
            loaded_bytes: AtomicU64::new(0),
        };
        Ok(Prepared { setup, settings: Settings { dtype, kv_dtype, threads, max_model_len }, total })
    }

    pub fn plan(&self) -> Plan {
        let Setup { mesh, layout, stages, .. } = &self.setup;
        Plan { mesh: *mesh, layout: layout.clone(), stages: stages.clone() }
    }
}

/// Finds what is missing or misshapen in a checkpoint before any rank starts, and how much a replica has to load.
fn preflight(plan: &Plan, source: &WeightSource, dtype: Option<DType>) -> Result<u64, EngineError> {
    let mut total = 0;
    // Random weights lack nothing, and needn't be made to be counted.
    let meta = WeightSource::Meta { dtype: source.dtype() };
    let source = if matches!(source, WeightSource::Random { .. }) { &meta } else { source };
    for stage in &plan.stages {
        for rank in 0..plan.mesh.tp {
            let dev = Cost::new();
            let loader = Loader::new(&dev, source, &plan.layout, rank, dtype, &|_| Ok(()));
            Decoder::load(&loader, stage)?;
            total += loader.stats().weight_bytes;
        }
    }
    Ok(total)
}
