//! `anysplit bench comm`: what ranks do together, alone, over sizes and backends.

mod gpus;
mod measure;
mod ops;
mod processes;
mod report;
mod threads;

use std::time::Duration;

use clap::builder::EnumValueParser;
use clap::{Args, ValueEnum};
use collective::WireDType;
use cpu::limits;
use cuda::Way;
use engine::cpus;

use crate::args::{DTypeArg, LoadFormat, ModelArgs, ReductionArg, yes_or_no};
use crate::error::CliError;
use crate::lists::Element;
use crate::membership::{JobArgs, Membership};
use crate::model::read_config;
use crate::split::wire_dtype;
use measure::Settings;
use ops::Op;
use report::{Context, Report};

/// Collectives alone, over a range of sizes, in nccl-tests' columns.
#[derive(Args)]
#[command(after_help = "Examples:\n  anysplit bench comm\n  \
    anysplit bench comm --op all_reduce -b 8K -e 8M -f 2 -n 500 --backend shared\n  \
    anysplit bench comm --model ./Llama-3.2-1B --tp 2 --json\n  \
    anysplit launch --nproc-per-node 2 -- anysplit bench comm --comm-backend tcp\n  \
    mpirun -n 2 anysplit bench comm --comm-backend mpi\n  \
    anysplit bench comm --backend nccl,peer --tp 4\n  \
    anysplit launch --nproc-per-node 8 -- anysplit bench comm --backend nccl\n\n\
    Sizes, algbw and busbw are defined as in nccl-tests; rates are those of the median time. #wrong counts elements \
    whose bits aren't those of the canonical result. With --model, the sizes of one token's all-reduce (decode) and \
    of 512 tokens' (prefill) are measured too, and marked.\n\n\
    On GPUs a time is that of a batch of 32 calls, handed over together as those of a model's step are, until all are \
    done, divided by 32: a batch that came before is one graph.")]
pub struct CommArgs {
    /// Operations; default: all; on GPUs all but broadcast
    #[arg(
        long,
        env = "ANYSPLIT_OP",
        value_delimiter = ',',
        value_name = "LIST",
        value_parser = Element(EnumValueParser::<Op>::new())
    )]
    op: Vec<Op>,
    /// What carries the data between threads; default: shared,tcp; nccl and peer are between GPUs
    #[arg(long, env = "ANYSPLIT_BACKEND", value_delimiter = ',', value_name = "LIST", value_parser = Element(EnumValueParser::<Backend>::new()))]
    backend: Vec<Backend>,
    /// Smallest size; K, M and G are powers of 1024
    #[arg(long, short = 'b', env = "ANYSPLIT_MIN_BYTES", default_value = "1K", value_name = "SIZE", value_parser = parse_size)]
    min_bytes: usize,
    /// Largest size; default: 4M, or the smallest size if that is more
    #[arg(long, short = 'e', env = "ANYSPLIT_MAX_BYTES", value_name = "SIZE", value_parser = parse_size)]
    max_bytes: Option<usize>,
    /// Each size is so many times the one before
    #[arg(long, short = 'f', env = "ANYSPLIT_FACTOR", default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    factor: u64,
    /// Calls that are timed; on GPUs batches of 32
    #[arg(long, short = 'n', env = "ANYSPLIT_ITERS", default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    iters: u32,
    /// Calls, or batches, before them
    #[arg(long, short = 'w', env = "ANYSPLIT_WARMUP", default_value_t = 20, value_name = "N")]
    warmup: u32,
    /// Compares results with the canonical ones
    #[arg(long, env = "ANYSPLIT_CHECK", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "true|false", value_parser = yes_or_no())]
    check: bool,
    /// What sums travel as: auto (float32), or bfloat16, fp8 or int8; these are not compared
    #[arg(long, env = "ANYSPLIT_ALL_REDUCE_DTYPE", default_value = "auto", value_name = "TYPE", value_parser = wire_dtype)]
    all_reduce_dtype: WireDType,
    /// In which order GPUs add up; sums of fast are not compared
    #[arg(long, env = "ANYSPLIT_REDUCTION", default_value = "canonical", value_name = "ORDER")]
    reduction: ReductionArg,
    /// In how many rounds --backend peer sums: auto is what is faster for a size
    #[arg(long, env = "ANYSPLIT_SHOTS", default_value = "auto", value_name = "SHOTS")]
    shots: Shots,
    /// Ranks; default: 2, or the processes that a launcher started
    #[arg(long, visible_alias = "tp", env = "ANYSPLIT_TENSOR_PARALLEL_SIZE", value_name = "N", value_parser = clap::value_parser!(u32).range(2..=RANKS_MAX))]
    tensor_parallel_size: Option<u32>,
    /// Marks the sizes that this model uses: a directory, a hub id or a config.json
    #[arg(long, short, env = "ANYSPLIT_MODEL", value_name = "DIR|ID")]
    model: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    /// Prints one JSON value
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
}

/// More threads than any machine has use for.
const RANKS_MAX: i64 = 1024;
/// Sizes beyond this are no collective's of a model.
const SIZE_MAX: usize = 4 << 30;
/// Ranks unless another number is asked for.
const RANKS: usize = 2;
/// The largest size unless another is asked for.
const MAX_BYTES: usize = 4 << 20;
/// Tokens of a step whose size counts as prefill.
const PREFILL_TOKENS: usize = 512;
const REPEATS_OF_LIMITS: usize = 7;

/// What carries the data.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// Threads over shared memory
    Shared,
    /// Threads over loopback connections
    Tcp,
    /// Threads with a GPU each, over NVIDIA's library
    Nccl,
    /// Threads whose GPUs, or one of them, use each other's memory
    Peer,
}

impl Backend {
    /// Those that run anywhere.
    const ANYWHERE: [Backend; 2] = [Backend::Shared, Backend::Tcp];

    fn name(self) -> &'static str {
        match self {
            Backend::Shared => "shared",
            Backend::Tcp => "tcp",
            Backend::Nccl => "nccl",
            Backend::Peer => "peer",
        }
    }

    /// How GPUs reach each other; nothing if it is not of GPUs.
    fn way(self) -> Option<Way> {
        match self {
            Backend::Shared | Backend::Tcp => None,
            Backend::Nccl => Some(Way::Nccl),
            Backend::Peer => Some(Way::Peers),
        }
    }
}

/// How kernels that use each other's memory make an all-reduce.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shots {
    /// As was measured when the ranks met
    Auto,
    /// Every rank reads all and sums it
    One,
    /// Every rank sums a part, and all read the parts
    Two,
}

impl Shots {
    /// Up to which size it is one shot, where that is not to be measured.
    fn one_shot_bytes(self) -> Option<usize> {
        match self {
            Shots::Auto => None,
            Shots::One => Some(usize::MAX),
            Shots::Two => Some(0),
        }
    }
}

/// A size such as 64, 8K or 4M.
fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit));
    bytes
        .filter(|bytes| (4..=SIZE_MAX).contains(bytes))
        .ok_or("give bytes from 4 to 4G, such as 64, 8K or 4M".into())
}

pub fn run(args: &CommArgs, membership: &Membership) -> Result<(), CliError> {
    if let Some(max) = args.max_bytes.filter(|&max| max < args.min_bytes) {
        let told = format!("--min-bytes {} is more than --max-bytes {max}; swap them", args.min_bytes);
        return Err(CliError::Usage(told));
    }
    if args.op.contains(&Op::Broadcast) && args.backend.iter().any(|backend| backend.way().is_some()) {
        let told =
            "--op broadcast is of host memory, which --backend nccl and peer don't carry; leave it out";
        return Err(CliError::Usage(told.into()));
    }
    if args.shots != Shots::Auto && !matches!(args.backend[..], [Backend::Peer]) {
        return Err(CliError::Usage("--shots is of --backend peer alone; leave it out, or give that".into()));
    }
    let uses = uses(args)?;
    let settings = args.settings(&uses);
    let mut report = Report::new(args.json);
    match (&args.backend[..], membership.ranks()) {
        ([], Some(ranks)) => processes::of_job(args, membership, ranks, &settings, uses, false, &mut report)?,
        ([Backend::Nccl], Some(ranks)) => {
            let settings = settings.of_tensors();
            processes::of_job(args, membership, ranks, &settings, uses, true, &mut report)?;
        }
        (_, Some(_)) => {
            return Err(CliError::Usage(
                "--backend shared, tcp and peer are for threads; ranks of a job exchange over --comm-backend, or \
                 between GPUs over --backend nccl"
                    .into(),
            ));
        }
        ([], None) => on_threads(args, &Backend::ANYWHERE, &settings, &uses, &mut report)?,
        (backends, None) => on_threads(args, backends, &settings, &uses, &mut report)?,
    }
    Ok(report.end()?)
}

/// Measures groups of threads of this process.
fn on_threads(
    args: &CommArgs,
    backends: &[Backend],
    settings: &Settings,
    uses: &[(usize, &'static str)],
    report: &mut Report,
) -> Result<(), CliError> {
    let ranks = args.tensor_parallel_size.map_or(RANKS, |n| n as usize);
    for &backend in backends {
        let pair = if backend == Backend::Shared { pair(ranks) } else { None };
        let context = Context { backend: backend.name(), ranks, pair, uses: uses.to_vec() };
        report.begin();
        let mut on_sample = |sample| report.sample(&context, &sample);
        match (backend, backend.way()) {
            (_, Some(way)) => {
                let settings = settings.of_tensors();
                gpus::on_threads_of_gpus(backend.name(), way, ranks, &settings, &mut on_sample)?;
            }
            (Backend::Tcp, _) => {
                threads::run(threads::tcp(ranks, settings)?, settings, &mut on_sample)?;
            }
            _ => threads::run(threads::shared(ranks, settings), settings, &mut on_sample)?,
        }
    }
    Ok(())
}

/// The way between the cores of two ranks.
fn pair(ranks: usize) -> Option<limits::CoreToCore> {
    let core = |rank| cpus::of_rank(rank, ranks, 1, ranks).map(|cores| cores[0]);
    let (one, other) = core(0).zip(core(1)).filter(|_| ranks == 2)?;
    limits::core_to_core(one, other, REPEATS_OF_LIMITS)
}

/// The sizes that a model uses, and for what.
fn uses(args: &CommArgs) -> Result<Vec<(usize, &'static str)>, CliError> {
    if args.model.is_none() {
        return Ok(Vec::new());
    }
    let model = ModelArgs {
        model: args.model.clone(),
        dtype: DTypeArg::Auto,
        quantization: None,
        load_format: LoadFormat::Auto,
        seed: None,
    };
    let token = read_config(&model)?.1.hidden_size * size_of::<f32>();
    Ok(vec![(token, "decode, 1 token"), (token * PREFILL_TOKENS, "prefill, 512 tokens")])
}

impl CommArgs {
    fn settings(&self, uses: &[(usize, &str)]) -> Settings {
        let factor = usize::try_from(self.factor).unwrap_or(usize::MAX);
        let powers = std::iter::successors(Some(self.min_bytes), |size| size.checked_mul(factor));
        let max = self.max_bytes.unwrap_or(MAX_BYTES.max(self.min_bytes));
        let mut sizes: Vec<usize> = powers.take_while(|&size| size <= max).collect();
        sizes.extend(uses.iter().map(|(bytes, _)| bytes));
        sizes.sort();
        sizes.dedup();
        Settings {
            ops: if self.op.is_empty() { Op::ALL.to_vec() } else { self.op.clone() },
            sizes,
            iters: self.iters as usize,
            warmup: self.warmup as usize,
            check: self.check,
            deadline: Duration::from_secs(self.job.comm_timeout),
            wire: self.all_reduce_dtype,
            reduction: self.reduction.get(),
            one_shot_bytes: self.shots.one_shot_bytes(),
        }
    }
}
