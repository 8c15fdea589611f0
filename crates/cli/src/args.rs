//! Flags that commands share. Each has an environment twin `ANYSPLIT_<FLAG>`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, TypedValueParser};
use clap::{Args, ValueEnum};
use engine::{DeviceKind, EngineOptions, Reduction, Usable};
use model::{KeptAs, Quantization};
use tensor::{DType, KvDType};

use crate::amount;
use crate::error::CliError;
use crate::membership::{JobArgs, Membership};
use crate::serve;
use crate::split::SplitArgs;

/// Which model, and what its weights are kept in.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// A directory, a hub id (org/name, org/name@revision), or nothing for the built-in demo model
    #[arg(long, short, env = "ANYSPLIT_MODEL", value_name = "DIR|ID")]
    pub model: Option<String>,
    /// What weights are kept in; auto: as stored. FP8 checkpoints keep their linear layers' eight bits. Short names such as half, bf16 and f32 work, too
    #[arg(long, env = "ANYSPLIT_DTYPE", default_value = "auto", value_name = "TYPE")]
    pub dtype: DTypeArg,
    /// What linear layers' weights are quantised to while they are loaded; default: none, or what a packed checkpoint has. none: an FP8
    /// checkpoint stays as it is
    #[arg(long, env = "ANYSPLIT_QUANTIZATION", value_name = "TYPE")]
    pub quantization: Option<QuantizationArg>,
    /// How weights are read; random: seeded weights from config.json alone
    #[arg(long, env = "ANYSPLIT_LOAD_FORMAT", default_value = "auto", value_name = "FORMAT")]
    pub load_format: LoadFormat,
    /// Seed of random weights and of sampling
    #[arg(long, env = "ANYSPLIT_SEED", value_name = "N")]
    pub seed: Option<u64>,
}

impl ModelArgs {
    /// What the flags say that weights are kept in.
    pub fn kept_as(&self) -> KeptAs {
        KeptAs { dtype: self.dtype.get(), quantization: self.quantization.and_then(QuantizationArg::get) }
    }
}

/// How a model is run.
#[derive(Args)]
pub struct RunArgs {
    /// What runs the model
    #[arg(long, env = "ANYSPLIT_DEVICE", default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceArg,
    /// The share of memory that may be used, above 0 and at most 1; on GPUs of all their memory, for all that is there; on the
    /// processor of what the weights leave free, for the KV cache. Default: 0.9 on GPUs, 0.5 on the processor
    #[arg(long, env = "ANYSPLIT_GPU_MEMORY_UTILIZATION", value_name = "F")]
    pub gpu_memory_utilization: Option<f64>,
    /// In which order GPUs add up; canonical: the same bits on any split and in any batch
    #[arg(long, env = "ANYSPLIT_REDUCTION", default_value = "canonical", value_name = "ORDER")]
    pub reduction: ReductionArg,
    /// GPUs get each kernel by itself, without CUDA graphs: slower, for finding faults
    #[arg(long, env = "ANYSPLIT_ENFORCE_EAGER", value_parser = yes_or_no())]
    pub enforce_eager: bool,
    /// Threads of each rank; default: a host's cores divided by its ranks
    #[arg(long, env = "ANYSPLIT_THREADS_PER_RANK", value_name = "N")]
    pub threads_per_rank: Option<usize>,
    /// What keys and values are kept in; auto: as the weights
    #[arg(long, env = "ANYSPLIT_KV_CACHE_DTYPE", default_value = "auto", value_name = "TYPE")]
    pub kv_cache_dtype: KvDTypeArg,
    /// Longest sequence, such as 4096, 4K or 4k (4000); default: the model's
    #[arg(long, env = "ANYSPLIT_MAX_MODEL_LEN", value_name = "N", value_parser = amount::tokens)]
    pub max_model_len: Option<usize>,
    /// Sequences that run at a time on each replica
    #[arg(long, env = "ANYSPLIT_MAX_NUM_SEQS", default_value_t = 256, value_name = "N", value_parser = at_least_one)]
    pub max_num_seqs: usize,
    /// Tokens of a step; longer prompts go in chunks; default: 2048, and when serving no more than running streams stand
    #[arg(long, env = "ANYSPLIT_MAX_NUM_BATCHED_TOKENS", value_name = "N", value_parser = at_least_one)]
    pub max_num_batched_tokens: Option<usize>,
    /// Writes what each thread of each rank did when, for ui.perfetto.dev or chrome://tracing
    ///
    /// A rank has room for 262144 events, about a thousand steps of a model of 16 layers; of a longer run it has the first
    /// part, with a warning. Ctrl-C ends the run before its next step and writes what there is, a second one ends it at once.
    #[arg(long, env = "ANYSPLIT_TRACE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub job: JobArgs,
}

/// What the environment says of a flag: true or false, 1 or 0, yes or no, on or off.
pub fn yes_or_no() -> impl TypedValueParser<Value = bool> {
    BoolishValueParser::new()
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match amount::tokens(text) {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("it must be a whole number from 1 on".into()),
    }
}

/// A time in seconds, up to a year.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=31_536_000.0).contains(&s) => Ok(s),
        _ => Err("it must be seconds, from 0 to a year".into()),
    }
}

/// A type by name.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    /// As stored, or as the weights.
    Auto,
    /// 32 bits.
    #[value(aliases = ["float", "f32", "fp32"])]
    Float32,
    /// 16 bits, the upper half of a float32.
    #[value(alias = "bf16")]
    Bfloat16,
    /// 16 bits, IEEE.
    #[value(aliases = ["half", "f16", "fp16"])]
    Float16,
}

impl DTypeArg {
    /// The type, unless it is left open.
    pub fn get(self) -> Option<DType> {
        match self {
            DTypeArg::Auto => None,
            DTypeArg::Float32 => Some(DType::F32),
            DTypeArg::Bfloat16 => Some(DType::BF16),
            DTypeArg::Float16 => Some(DType::F16),
        }
    }
}

/// What weights are quantised to.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizationArg {
    /// Nothing: they are kept as --dtype says.
    None,
    /// 8-bit integers, with a scale per 32 inputs.
    Int8,
    /// 4-bit integers, with a scale and a zero point per 32 inputs; the head as int8.
    Int4,
    /// 8-bit floats (e4m3), with a power of two per 32 inputs.
    Fp8,
}

impl QuantizationArg {
    /// The same for the engine.
    pub fn get(self) -> Option<Quantization> {
        match self {
            QuantizationArg::None => None,
            QuantizationArg::Int8 => Some(Quantization::Int8),
            QuantizationArg::Int4 => Some(Quantization::Int4),
            QuantizationArg::Fp8 => Some(Quantization::Fp8),
        }
    }
}

/// A type of keys and values by name.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvDTypeArg {
    /// As the weights.
    Auto,
    /// 32 bits.
    #[value(aliases = ["float", "f32", "fp32"])]
    Float32,
    /// 16 bits, the upper half of a float32.
    #[value(alias = "bf16")]
    Bfloat16,
    /// 16 bits, IEEE.
    #[value(aliases = ["half", "f16", "fp16"])]
    Float16,
    /// 8 bits, e4m3, with a scale per token and head.
    #[value(alias = "fp8_e4m3")]
    Fp8,
}

impl KvDTypeArg {
    /// The type, unless it is left open.
    pub fn get(self) -> Option<KvDType> {
        match self {
            KvDTypeArg::Auto => None,
            KvDTypeArg::Float32 => Some(DType::F32.into()),
            KvDTypeArg::Bfloat16 => Some(DType::BF16.into()),
            KvDTypeArg::Float16 => Some(DType::F16.into()),
            KvDTypeArg::Fp8 => Some(KvDType::Fp8),
        }
    }
}

/// In which order sums are made.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReductionArg {
    /// One order, whatever the batch, the chunks and the split are.
    Canonical,
    /// Whatever is fastest: bits change with the batch and the split. On the processor the canonical order is.
    Fast,
}

impl ReductionArg {
    /// The same for the engine.
    pub fn get(self) -> Reduction {
        match self {
            ReductionArg::Canonical => Reduction::Canonical,
            ReductionArg::Fast => Reduction::Fast,
        }
    }
}

/// How weights are read.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// Whatever the directory holds.
    Auto,
    /// Safetensors files.
    Safetensors,
    /// Seeded weights from config.json alone.
    Random,
}

/// What runs the model.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// NVIDIA GPUs.
    #[value(alias = "gpu")]
    Cuda,
}

impl DeviceArg {
    /// This, or another if it is open.
    pub fn or(self, other: DeviceArg) -> DeviceArg {
        if self == DeviceArg::Auto { other } else { self }
    }

    /// The same for the engine.
    pub fn get(self) -> Result<DeviceKind, CliError> {
        match self {
            DeviceArg::Cpu => Ok(DeviceKind::Cpu),
            DeviceArg::Cuda => match engine::usable_gpus() {
                Ok(found) => {
                    say_unfit(&found);
                    Ok(DeviceKind::Cuda)
                }
                Err(fault) => Err(CliError::Usage(format!("--device cuda: {fault}"))),
            },
            DeviceArg::Auto => {
                match (engine::usable_gpus(), engine::gpus()) {
                    (Ok(found), _) => say_unfit(&found),
                    (Err(fault), Ok(gpus)) => {
                        warn_of_host(&format!("{} is not used: {fault}; the processor is", gpus[0]));
                    }
                    (Err(_), Err(_)) => {
                        if let Some(fault) = engine::broken_driver() {
                            warn_of_host(&format!("GPUs are not used: {fault}; the processor is"));
                        }
                    }
                }
                Ok(DeviceKind::Auto)
            }
        }
    }
}

/// Says which GPUs are not used though others are.
fn say_unfit(found: &Usable) {
    found.passed_over.iter().for_each(|gpu| warn_of_host(gpu));
}

/// Warns of what is so for all of a host's processes: its first one does, if a launcher numbers them. A server's worker leaves it to
/// the server.
fn warn_of_host(of: &str) {
    let job = job::JobEnv::detect(&|name| std::env::var(name).ok()).ok().flatten();
    let is_first = job.and_then(|job| job.local_rank).unwrap_or(0) == 0;
    if is_first && !serve::is_worker() {
        job::say!("warning: {of}");
    }
}

/// Everything that the engine wants to know.
pub fn engine_options(
    model: &ModelArgs,
    split: &SplitArgs,
    run: &RunArgs,
    membership: &Membership,
) -> Result<EngineOptions, CliError> {
    if let Some(share) = run.gpu_memory_utilization.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
        return Err(CliError::Usage(format!(
            "--gpu-memory-utilization is {share}; it must be above 0 and at most 1"
        )));
    }
    let KeptAs { dtype, quantization } = model.kept_as();
    let defaults = split.options(membership.ranks())?;
    Ok(EngineOptions {
        device: run.device.get()?,
        reduction: run.reduction.get(),
        enforce_eager: run.enforce_eager,
        memory_share: run.gpu_memory_utilization,
        threads_per_rank: run.threads_per_rank,
        dtype,
        quantization,
        kv_cache_dtype: run.kv_cache_dtype.get(),
        max_model_len: run.max_model_len,
        max_num_seqs: run.max_num_seqs,
        max_num_batched_tokens: run.max_num_batched_tokens.unwrap_or(defaults.max_num_batched_tokens),
        comm_timeout: Duration::from_secs(run.job.comm_timeout),
        ..defaults
    })
}

/// Token ids out of `1,2,3`.
pub fn parse_ids(text: &str) -> Result<Vec<u32>, CliError> {
    if text.trim().is_empty() {
        return Err(CliError::Usage("--prompt-ids is empty; give token ids such as 1,2,3".into()));
    }
    let id = |part: &str| {
        part.trim().parse().map_err(|_| {
            CliError::Usage(format!(
                "--prompt-ids: \"{part}\" is no token id; give whole numbers such as 1,2,3"
            ))
        })
    };
    text.split(',').map(id).collect()
}

/// The text of a file of prompts.
pub fn read_prompts(file: &PathBuf) -> Result<Vec<String>, CliError> {
    let shown = file.display();
    let text =
        std::fs::read_to_string(file).map_err(|e| CliError::Usage(format!("--prompt-file {shown}: {e}")))?;
    // Some editors begin a file with a mark of its byte order, which is no part of the first prompt.
    let lines: Vec<String> = text.trim_start_matches('\u{feff}').lines().map(str::to_owned).collect();
    if let Some(empty) = lines.iter().position(String::is_empty) {
        return Err(CliError::Usage(format!("--prompt-file {shown}: line {} is empty", empty + 1)));
    }
    match lines.is_empty() {
        true => Err(CliError::Usage(format!("--prompt-file {shown} has no lines; give one prompt per line"))),
        false => Ok(lines),
    }
}
