//! What is decided before any rank starts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use checkpoint::{PackedCheckpoint, WeightSource};
use collective::{CollectiveError, Group};
use job::Job;
use model::{Decoder, KeptAs, Loader, ModelConfig, Quantization, Stage};
use tensor::{Cost, KvDType};

use crate::groups::Grouping;
use crate::launch::{LaunchOptions, MakeDevice, Setup};
use crate::places::{Needs, Place};
use crate::{EngineError, EngineOptions, Plan, cpus, memory};

/// How long a thread that waits for another spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// Threads of all ranks together: above any machine's cores, below what systems refuse.
const MAX_THREADS: usize = 4096;

/// The ranks of this host, and what their devices are to know.
#[derive(Clone, Copy)]
pub(crate) struct Local {
    /// Those that share its memory.
    pub ranks: usize,
    /// Those that share the cores of this process.
    pub sharing: usize,
    /// This process's only rank, as one of those; `None`: all ranks are threads of this process.
    only: Option<usize>,
    /// The same, as one of those that share its memory.
    only_here: Option<usize>,
    /// Ranks of a tensor-parallel group.
    pub tp: usize,
    /// Ranks of a replica.
    pub replica: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Threads of each rank.
    pub threads: usize,
    /// Whether threads that wait spin.
    pub spin: bool,
    /// What keys and values are kept in.
    pub kv_dtype: KvDType,
    /// Numbers in a key.
    pub head_dim: usize,
}

impl Local {
    fn new(plan: &Plan, options: &EngineOptions, job: Option<&Job>, kv_dtype: KvDType) -> Local {
        let all = Local {
            ranks: plan.mesh.size(),
            sharing: plan.mesh.size(),
            only: None,
            only_here: None,
            tp: plan.mesh.tp,
            replica: plan.mesh.tp * plan.mesh.pp,
            heads: plan.layout.config.num_heads,
            threads: 1,
            spin: false,
            kv_dtype,
            head_dim: plan.layout.config.head_dim,
        };
        let local = match job {
            Some(job) => {
                let (sharing, here) = (job.ranks_on_my_cores(), job.ranks_here());
                let at = |ranks: &[usize]| ranks.iter().position(|&rank| rank == job.rank());
                let (only, only_here) = (at(&sharing), at(&here));
                Local { ranks: here.len(), sharing: sharing.len(), only, only_here, ..all }
            }
            None => all,
        };
        let threads = options.threads_per_rank.unwrap_or_else(|| cpus::default_threads(local.sharing));
        // Spinning only makes sense while everyone who spins has a core.
        let spin = local.sharing.saturating_mul(threads) <= cpus::available().len();
        Local { threads, spin, ..local }
    }

    /// A rank of this process, as one of those that share its cores.
    pub fn index(&self, rank: usize) -> usize {
        self.only.unwrap_or(rank)
    }

    /// A rank of this process, as one of those of this host.
    pub fn here(&self, rank: usize) -> usize {
        self.only_here.unwrap_or(rank)
    }

    /// Whether each rank of this host is a process; else all are threads of this one.
    pub fn are_processes(&self) -> bool {
        self.only_here.is_some()
    }

    /// The ranks of this process, as those of this host.
    pub fn of_process(&self) -> std::ops::Range<usize> {
        self.only_here.map_or(0..self.ranks, |only| only..only + 1)
    }
}

/// What a host's ranks are made of.
pub(crate) trait Machine: MakeDevice + Sized {
    /// # Errors
    /// There is no such hardware here, or it can't be used.
    fn new(local: Local, options: &EngineOptions) -> Result<Self, EngineError>;
    /// Where the ranks of this host have what they have; of a process with one rank, where that has it.
    fn places(&self) -> Vec<Place>;
    /// GPUs that the ranks of this host have, of all its processes.
    fn gpus(&self) -> usize {
        0
    }
    /// Whether the ranks of a host, if they are processes, are to hear of each other's devices.
    const MEETS: bool = false;
    /// What this process's devices are called, the same in all processes of a host.
    fn devices(&self) -> Vec<u64> {
        Vec::new()
    }
    /// Hears what the ranks of this host have, each a process.
    ///
    /// # Errors
    /// A device can't be used that way.
    fn hear(&mut self, _devices: &[Vec<u64>]) -> Result<(), EngineError> {
        Ok(())
    }
    /// # Errors
    /// A packed checkpoint is for other hardware, or not whole.
    fn check_packed(packed: &PackedCheckpoint) -> Result<(), EngineError>;
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
pub(crate) struct Prepared<M> {
    pub setup: Setup<M>,
    pub settings: Settings,
    /// Bytes that the ranks of this process load.
    pub total: u64,
}

/// What the engine is told of it.
#[derive(Clone)]
pub(crate) struct Settings {
    /// With a type.
    pub kept: KeptAs,
    pub kv_dtype: KvDType,
    pub threads: usize,
    pub max_model_len: usize,
    /// Ranks on the host of this one.
    pub ranks_here: usize,
    /// GPUs that they have.
    pub gpus: usize,
    /// Where they have their memory.
    pub places: Vec<Place>,
    /// What each rank needs besides weights, at the most.
    pub needs: Needs,
}

/// Hardware on which there is room for a model that is still to be loaded.
pub(crate) struct Planned<M> {
    plan: Plan,
    kept: KeptAs,
    local: Local,
    make: M,
    settings: Settings,
    total: u64,
}

impl<M: Machine> Planned<M> {
    /// # Errors
    /// A plan or options that can't be, weights that are missing or misshapen, hardware that is not there or has no room.
    pub fn new(
        config: ModelConfig,
        source: &WeightSource,
        options: &EngineOptions,
        job: Option<&Job>,
    ) -> Result<Self, EngineError> {
        let max_positions = config.max_position_embeddings;
        let plan = Plan::new(config, options, job.map(Job::size))?;
        let kept = kept_as::<M>(source, options)?;
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
        let local = Local::new(&plan, options, job, kv_dtype);
        let Local { ranks, threads, .. } = local;
        let weights = preflight(&plan, source, kept)?;
        let all = weights.iter().flatten().sum::<u64>() * plan.mesh.dp as u64;
        let total = all / plan.mesh.size() as u64 * ranks as u64;
        let make = met(M::new(local, options), options, job)?;
        let (gpus, places, needs) = (make.gpus(), make.places(), needs(&plan, options, kv_dtype));
        check_room(&places, options, &weights, total, needs)?;
        check_threads(threads, ranks)?;
        let settings = Settings {
            kept: KeptAs { dtype: Some(dtype), ..kept },
            kv_dtype,
            threads,
            max_model_len,
            ranks_here: ranks,
            gpus,
            places,
            needs,
        };
        Ok(Planned { plan, kept, local, make, settings, total })
    }

    /// With its weights, ready to be loaded.
    pub fn with(self, source: WeightSource, options: &EngineOptions, job: Option<&Job>) -> Prepared<M> {
        let Planned { plan, kept, local, make, settings, total } = self;
        let setup = Setup {
            grouping: Grouping {
                mesh: plan.mesh,
                context: plan.layout.context_parallel(),
                wire: options.all_reduce_dtype,
            },
            layout: plan.layout,
            stages: plan.stages,
            source,
            options: LaunchOptions {
                kept,
                kv_dtype: settings.kv_dtype,
                comm_timeout: options.comm_timeout,
                spin: if local.spin { SPIN } else { Duration::ZERO },
                host: job.map_or(String::new(), host_name),
                grammars: options.grammars.clone(),
            },
            make,
            loaded_bytes: AtomicU64::new(0),
            left: job.is_none().then(Default::default),
        };
        Prepared { setup, settings, total }
    }
}

/// The job's group of a host's ranks that tell each other which devices they have. Ids below are those of the mesh's axes.
const MEETING: u16 = 17;

/// Lets the ranks of a host, if they are processes, hear of each other's devices; also of a rank that has none.
fn met<M: Machine>(
    made: Result<M, EngineError>,
    options: &EngineOptions,
    job: Option<&Job>,
) -> Result<M, EngineError> {
    let Some(job) = job.filter(|job| M::MEETS && job.ranks_here().len() > 1) else { return made };
    let devices = made.as_ref().map(M::devices).unwrap_or_default();
    let told: Vec<u8> = devices.into_iter().flat_map(u64::to_le_bytes).collect();
    let here = job.ranks_here();
    let group = job.group(MEETING, &here, options.comm_timeout)?;
    let failed =
        |error: CollectiveError| EngineError::Rank { rank: job.rank(), source: Box::new(error.into()) };
    let all = group.all_to_all_host(&vec![told; here.len()]).map_err(failed)?;
    let numbers = |said: &Vec<u8>| said.as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
    let mut make = made?;
    make.hear(&all.iter().map(numbers).collect::<Vec<Vec<u64>>>())?;
    Ok(make)
}

/// Refuses weights for which there is no room. `total`: bytes of all ranks of this host; `weights`: of each rank, by stage.
fn check_room(
    places: &[Place],
    options: &EngineOptions,
    weights: &[Vec<u64>],
    total: u64,
    needs: Needs,
) -> Result<(), EngineError> {
    let most = weights.iter().flatten().copied().max().unwrap_or(0);
    let stages = weights.len();
    let ranks = |size: usize| if size > 1 { cuda::GROUP_BYTES } else { 0 };
    let replica = if stages > 1 { cuda::GROUP_BYTES } else { 0 };
    let groups = ranks(options.rank_weights.len()) + ranks(options.decode_context_parallel_size) + replica;
    let held = most + groups as u64;
    places.iter().try_for_each(|place| place.check_plan(options.memory_share, held, needs))?;
    if places.iter().any(Place::is_gpu) {
        return Ok(());
    }
    match memory::available_bytes().filter(|&available| total > available) {
        Some(available) => Err(EngineError::Request(format!(
            "the weights need {total} bytes over {}, but only {available} bytes of memory are available; \
             --quantization int8 or int4, a smaller --dtype, or a machine with more memory, would work",
            count(places.iter().map(|place| place.ranks).sum(), "rank")
        ))),
        None => Ok(()),
    }
}

/// What the rank that needs most takes besides its weights, as far as that can be told before it runs: matrices that a layer has
/// at a time, for the rows of the largest step.
fn needs(plan: &Plan, options: &EngineOptions, kv_dtype: KvDType) -> Needs {
    let (config, mesh) = (&plan.layout.config, plan.mesh);
    let rows = options.max_num_batched_tokens as u64;
    let share = |width: usize| width.div_ceil(mesh.tp) as u64;
    // The residual stream, its norm, and a block's sums: a few nodes of a tree where the work is split.
    let stream = 3 + if mesh.tp > 1 { 4 } else { 1 };
    let attention = share(config.num_heads * config.head_dim) * 3;
    let hidden = config.hidden_size as u64;
    // Of a token's experts as many rows as there could be on a rank: inputs, and outputs or their sums.
    let experts = config.moe.map_or(0, |moe| {
        let width = if mesh.ep > 1 { moe.intermediate_size as u64 } else { share(moe.intermediate_size) };
        moe.top_k as u64 * (2 * width + hidden)
    });
    let feed_forward = (share(config.intermediate_size) * 3).max(experts);
    // The split embedding's rows of every rank, which are there before anything else is.
    let embedding = if mesh.tp > 1 { (mesh.tp as u64 + 2) * hidden } else { 0 };
    let row = (hidden * stream + attention.max(feed_forward)).max(embedding);
    let sampled = options.max_num_seqs.min(options.max_num_batched_tokens) as u64;
    let numbers = rows.saturating_mul(row).saturating_add(sampled.saturating_mul(share(config.vocab_size)));
    Needs { activations: numbers.saturating_mul(4), token: kv_bytes_of_rank(plan, kv_dtype) }
}

/// Bytes that one token takes on the rank on which it takes most.
pub(crate) fn kv_bytes_of_rank(plan: &Plan, kv_dtype: KvDType) -> u64 {
    let of_stage = |stage| {
        let of_rank = |rank| model::bytes_per_token(&plan.layout, stage, rank, kv_dtype);
        (0..plan.mesh.tp).map(of_rank).max().unwrap_or(0)
    };
    plan.stages.iter().map(of_stage).max().unwrap_or(0)
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
fn kept_as<M: Machine>(source: &WeightSource, options: &EngineOptions) -> Result<KeptAs, EngineError> {
    let wanted = options.kept_as();
    let WeightSource::Packed(packed) = source else { return Ok(wanted) };
    M::check_packed(packed)?;
    // Its vectors have the types in which they were packed.
    Ok(KeptAs { dtype: None, ..packed_as(packed, wanted)? })
}

/// Finds what is missing or misshapen in a checkpoint before any rank starts, and how much each rank of each stage has to load.
fn preflight(plan: &Plan, source: &WeightSource, kept: KeptAs) -> Result<Vec<Vec<u64>>, EngineError> {
    // Random weights lack nothing, and needn't be made to be counted.
    let meta = WeightSource::Meta { dtype: source.dtype() };
    let source = if matches!(source, WeightSource::Random { .. }) { &meta } else { source };
    weight_bytes(plan, source, kept)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use checkpoint::config_file;
    use model::parallel::{ExpertForm, ExpertOptions};
    use tensor::DType;

    use super::*;

    fn needed(name: &str, options: &EngineOptions) -> Needs {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let config = ModelConfig::parse(&config_file(&dir).unwrap(), None).unwrap();
        needs(&Plan::new(config, options, None).unwrap(), options, DType::F32.into())
    }

    fn options(tp: usize) -> EngineOptions {
        EngineOptions {
            rank_weights: vec![1.0; tp],
            max_num_batched_tokens: 10,
            max_num_seqs: 4,
            ..EngineOptions::default()
        }
    }

    /// Of models of 32 numbers per token, 8 heads of 8, and 40 inputs of feed-forward layers.
    #[test]
    fn a_step_needs_the_largest_of_what_a_layer_has_at_a_time() {
        // The residual stream and attention's three matrices; as many rows of logits as sequences run.
        let alone = needed("llama", &options(1));
        assert_eq!(alone.activations, 4 * (10 * (4 * 32 + 3 * 64) + 4 * 277));
        assert_eq!(alone.token, 2 * 2 * 4 * 8 * 4);
        // The rows of a split embedding, of eight ranks, are more than the rest.
        assert_eq!(needed("llama", &options(8)).activations, 4 * (10 * (8 + 2) * 32 + 4 * 35));
        // Three experts of a token on each rank, whole or in halves, with 16 numbers between their layers.
        let of_experts = |form| {
            let experts = ExpertOptions { form: Some(form), ..ExpertOptions::default() };
            needed("qwen3_moe", &EngineOptions { experts, ..options(2) }).activations
        };
        assert_eq!(of_experts(ExpertForm::Whole), 4 * (10 * (7 * 32 + 3 * (2 * 16 + 32)) + 4 * 56));
        assert_eq!(of_experts(ExpertForm::Sliced), 4 * (10 * (7 * 32 + 3 * (2 * 8 + 32)) + 4 * 56));
    }

    #[test]
    fn steps_of_any_size_can_be_counted() {
        for tokens in [1 << 62, usize::MAX] {
            let options =
                EngineOptions { max_num_batched_tokens: tokens, max_num_seqs: tokens, ..options(2) };
            assert_eq!(needed("llama", &options).activations, u64::MAX);
        }
    }
}
