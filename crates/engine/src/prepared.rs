//! What is decided before any rank starts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use checkpoint::{PackedCheckpoint, WeightSource};
use cpu::{CpuConfig, CpuDevice};
use job::Job;
use model::{Decoder, KeptAs, Loader, ModelConfig, Quantization, Stage};
use tensor::{Cost, DeviceError, KvDType, Timed, WeightSpec};

use crate::groups::Grouping;
use crate::launch::{LaunchOptions, MakeDevice, Setup};
use crate::{EngineError, EngineOptions, Plan, cpus, memory};

/// How long a thread that waits for another spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// Threads of all ranks together: above any machine's cores, below what systems refuse.
const MAX_THREADS: usize = 4096;

/// The ranks of this host.
#[derive(Clone, Copy)]
pub(crate) struct Local {
    /// Those that share its memory.
    pub ranks: usize,
    /// Those that share the cores of this process.
    sharing: usize,
    /// This process's only rank, as one of those; `None`: all ranks are threads of this process.
    only: Option<usize>,
}

impl Local {
    /// Those of a job that are on this host.
    fn of_job(job: &Job) -> Local {
        let sharing = job.ranks_on_my_cores();
        let only = sharing.iter().position(|&rank| rank == job.rank());
        Local { ranks: job.ranks_here().len(), sharing: sharing.len(), only }
    }

    fn index(&self, rank: usize) -> usize {
        self.only.unwrap_or(rank)
    }
}

/// Makes a rank's device of the processor.
pub(crate) struct MakeCpu {
    local: Local,
    /// Ranks of a tensor-parallel group.
    tp: usize,
    threads: usize,
    isa: Option<cpu::Isa>,
    spin: bool,
}

impl MakeDevice for MakeCpu {
    type Device = Timed<CpuDevice>;
    fn make(&self, rank: usize) -> Result<Timed<CpuDevice>, DeviceError> {
        let cores = cpus::of_rank(self.local.index(rank), self.local.sharing, self.threads, self.tp);
        let is_pinned = cores.is_some();
        let config = CpuConfig { threads: self.threads, cores, isa: self.isa, spin: self.spin };
        let cpu = match is_pinned {
            true => CpuDevice::new(config),
            false => cpus::on_all(|| CpuDevice::new(config)),
        };
        let threads = cpu.thread_log();
        Ok(Timed::new(cpu, threads))
    }
}

/// Refuses threads that no system would give.
pub(crate) fn check_threads(threads: usize, ranks: usize) -> Result<(), EngineError> {
    match threads.saturating_mul(ranks) <= MAX_THREADS {
        true => Ok(()),
        false => Err(EngineError::Request(format!(
            "--threads-per-rank {threads} on {} are more than {MAX_THREADS} threads; this machine has {}",
            count(ranks, "rank"),
            count(cpus::available().len(), "core")
        ))),
    }
}

/// A number of things in words.
fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
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
    /// With a type.
    pub kept: KeptAs,
    pub kv_dtype: KvDType,
    pub threads: usize,
    pub max_model_len: usize,
    /// Ranks on the host of this one.
    pub ranks_here: usize,
}

impl Prepared {
    pub fn new(
        config: ModelConfig,
        source: WeightSource,
        options: &EngineOptions,
        job: Option<&Job>,
    ) -> Result<Self, EngineError> {
        let max_positions = config.max_position_embeddings;
        let plan = Plan::new(config, options, job.map(Job::size))?;
        let local = match job {
            Some(job) => Local::of_job(job),
            None => Local { ranks: plan.mesh.size(), sharing: plan.mesh.size(), only: None },
        };
        let ranks = local.ranks;
        let kept = kept_as(&source, options)?;
        let dtype = kept.dtype.unwrap_or_else(|| source.dtype());
        let kv_dtype = options.kv_cache_dtype.unwrap_or(dtype.into());
        let max_model_len = options.max_model_len.unwrap_or(max_positions);
        if max_model_len == 0 || max_model_len > max_positions {
            return Err(EngineError::Request(format!(
                "--max-model-len {max_model_len} must be from 1 to the model's {max_positions} positions"
            )));
        }
        if options.threads_per_rank == Some(0) {
            return Err(EngineError::Request("--threads-per-rank must be at least 1".into()));
        }
        let all = preflight(&plan, &source, kept)? * plan.mesh.dp as u64;
        let total = all / plan.mesh.size() as u64 * ranks as u64;
        if let Some(available) = memory::available_bytes().filter(|&available| total > available) {
            return Err(EngineError::Request(format!(
                "the weights need {total} bytes over {}, but only {available} bytes of memory are available; \
                 --quantization int8 or int4, a smaller --dtype, or a machine with more memory, would work",
                count(ranks, "rank")
            )));
        }
        let threads = options.threads_per_rank.unwrap_or_else(|| cpus::default_threads(local.sharing));
        check_threads(threads, ranks)?;
        // Spinning only makes sense while everyone who spins has a core.
        let spin = local.sharing * threads <= cpus::available().len();
        let launch_options = LaunchOptions {
            kept,
            kv_dtype,
            comm_timeout: options.comm_timeout,
            spin: if spin { SPIN } else { Duration::ZERO },
            host: job.map_or(String::new(), host_name),
            grammars: options.grammars.clone(),
        };
        let setup = Setup {
            grouping: Grouping {
                mesh: plan.mesh,
                context: plan.layout.context_parallel(),
                wire: options.all_reduce_dtype,
            },
            layout: plan.layout,
            stages: plan.stages,
            source,
            options: launch_options,
            make: MakeCpu { local, tp: plan.mesh.tp, threads, isa: options.isa, spin },
            loaded_bytes: AtomicU64::new(0),
            left: job.is_none().then(Default::default),
        };
        Ok(Prepared {
            setup,
            settings: Settings {
                kept: KeptAs { dtype: Some(dtype), ..kept },
                kv_dtype,
                threads,
                max_model_len,
                ranks_here: ranks,
            },
            total,
        })
    }
}

/// The name of this process's host, with its number where several hosts are called the same.
fn host_name(job: &Job) -> String {
    let (hosts, nodes, rank) = (job.hosts(), job.node_of_rank(), job.rank());
    let is_twin = |other: usize| hosts[other] == hosts[rank] && nodes[other] != nodes[rank];
    match (0..job.size()).any(is_twin) {
        true => format!("{} (node {})", hosts[rank], nodes[rank]),
        false => hosts[rank].to_owned(),
    }
}

/// What the weights of a packed checkpoint are kept in. Nothing else can be `wanted` of it.
///
/// # Errors
/// Something else is.
pub fn packed_as(packed: &PackedCheckpoint, wanted: KeptAs) -> Result<KeptAs, EngineError> {
    let name = packed.info().quantization.as_deref();
    let quantization = Quantization::ALL.into_iter().find(|q| name == Some(q.name()));
    let is = KeptAs { dtype: Some(packed.dtype()), quantization };
    match wanted.dtype.is_none_or(|_| wanted.dtype == is.dtype)
        && wanted.quantization.is_none_or(|_| wanted.quantization == is.quantization)
    {
        true => Ok(is),
        false => Err(EngineError::Request(format!(
            "the checkpoint is packed as {is}, which --dtype and --quantization can't change; leave them out, or give the \
             original"
        ))),
    }
}

/// What weights are kept in. Those of a packed checkpoint are as they are.
fn kept_as(source: &WeightSource, options: &EngineOptions) -> Result<KeptAs, EngineError> {
    let wanted = options.kept_as();
    let WeightSource::Packed(packed) = source else { return Ok(wanted) };
    let info = packed.info();
    if info.layout != cpu::PACKED_LAYOUT {
        return Err(EngineError::Request(format!(
            "the checkpoint is packed for another processor ({}, here it is {}); pack the original again with \
             `anysplit quantize`",
            info.layout,
            cpu::PACKED_LAYOUT
        )));
    }
    let fits = |(_, shape, spec, bytes): &(&str, [usize; 2], WeightSpec, usize)| {
        *bytes == CpuDevice::packed_len(*shape, *spec).next_multiple_of(64)
    };
    if let Some((name, [n, k], ..)) = packed.weights().find(|weight| !fits(weight)) {
        return Err(EngineError::Request(format!(
            "{name} of the packed checkpoint has not as many bytes as [{n}, {k}] takes; pack the original again with \
             `anysplit quantize`"
        )));
    }
    // Its vectors have the types in which they were packed.
    Ok(KeptAs { dtype: None, ..packed_as(packed, wanted)? })
}

/// Finds what is missing or misshapen in a checkpoint before any rank starts, and how much a replica has to load.
fn preflight(plan: &Plan, source: &WeightSource, kept: KeptAs) -> Result<u64, EngineError> {
    // Random weights lack nothing, and needn't be made to be counted.
    let meta = WeightSource::Meta { dtype: source.dtype() };
    let source = if matches!(source, WeightSource::Random { .. }) { &meta } else { source };
    Ok(weight_bytes(plan, source, kept)?.iter().flatten().sum())
}

/// What each rank of each stage loads, in bytes. Loads nothing.
///
/// # Errors
/// Weights that are missing or misshapen.
pub fn weight_bytes(plan: &Plan, source: &WeightSource, kept: KeptAs) -> Result<Vec<Vec<u64>>, EngineError> {
    let of_rank = |stage: &Stage, rank: usize| -> Result<u64, EngineError> {
        let dev = Cost::new();
        let loader = Loader::new(&dev, source, &plan.layout, rank, kept, &|_| Ok(()));
        Decoder::load(&loader, stage)?;
        Ok(loader.stats().weight_bytes)
    };
    plan.stages.iter().map(|stage| (0..plan.mesh.tp).map(|rank| of_rank(stage, rank)).collect()).collect()
}
