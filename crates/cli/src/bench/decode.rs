//! `anysplit bench decode`: prefill and decode of one sequence.

use std::io::Write;

use clap::Args;
use comfy_table::{Table, presets};
use cpu::limits;
use engine::{
    Engine, EngineOptions, GenerateRequest, SamplingParams, Timing, cost_of_step, cpus, peak_rss_bytes,
};
use model::{Layout, ModelError, Quantization, Stage, TpPlan};
use serde_json::{Value, json};
use tensor::{KV_BLOCK, OpCost, SequenceSpan, StepMeta};

use super::limits::{BUFFER_BYTES, config as limits_config};
use crate::args::{ModelArgs, RunArgs, engine_options, yes_or_no};
use crate::error::CliError;
use crate::expert_counts;
use crate::membership::Membership;
use crate::model::OpenModel;
use crate::split::SplitArgs;
use crate::trace::Trace;

/// Prefill and decode of one sequence, as fractions of this machine's limits.
#[derive(Args)]
#[command(after_help = "Examples:\n  anysplit bench decode\n  \
    anysplit bench decode --model ./Llama-3.2-1B --load-format random --splits 1x2,2x1 --repeats 5\n\n\
    Where several splits are given, their runs alternate, and so do the measurements of the limits.")]
pub struct DecodeArgs {
    /// Tokens of the prompt
    #[arg(long, env = "ANYSPLIT_PROMPT_LEN", default_value_t = 512, value_name = "N")]
    prompt_len: usize,
    /// Tokens to generate
    #[arg(long, env = "ANYSPLIT_GEN_LEN", default_value_t = 64, value_name = "N")]
    gen_len: usize,
    /// Times that each split is run; medians are shown
    #[arg(long, env = "ANYSPLIT_REPEATS", default_value_t = 3, value_name = "N")]
    repeats: usize,
    /// Splits to compare, ranks × threads per rank; in place of --tp and --threads-per-rank
    #[arg(
        long,
        env = "ANYSPLIT_SPLITS",
        value_delimiter = ',',
        value_name = "1x2,2x1",
        value_parser = parse_split,
        conflicts_with_all = ["tensor_parallel_size", "threads_per_rank", "rank_weights"]
    )]
    splits: Vec<(usize, usize)>,
    /// Prints one JSON value
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    split: SplitArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// More ranks, or threads of one, than any machine has use for.
const MOST: usize = 4096;

fn parse_split(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('x').map(|(r, t)| (r.parse(), t.parse()));
    match parts {
        Some((Ok(ranks), Ok(threads))) if (1..=MOST).contains(&ranks) && (1..=MOST).contains(&threads) => {
            Ok((ranks, threads))
        }
        _ => Err(format!("give ranks and threads per rank, such as 2x1, each from 1 to {MOST}")),
    }
}

/// One split's engine and what was measured on it.
struct Candidate {
    name: String,
    engine: Engine,
    runs: Vec<Run>,
}

/// One run, beside the limits measured around it.
struct Run {
    timing: Timing,
    bandwidth: f64,
    flops: f64,
}

/// What a step costs whatever the split.
struct Work {
    prefill_flops: f64,
    decode_weight_bytes: f64,
}

pub fn run(args: &DecodeArgs, membership: &Membership) -> Result<(), CliError> {
    if args.prompt_len == 0 || args.gen_len < 2 || args.repeats == 0 {
        return Err(CliError::Usage(
            "--prompt-len and --repeats must be at least 1, --gen-len at least 2".into(),
        ));
    }
    let options = engine_options(&args.model, &args.split, &args.run, membership)?;
    let splits: Vec<EngineOptions> = match args.splits.is_empty() {
        true => vec![options],
        false => args
            .splits
            .iter()
            .map(|&(ranks, threads)| EngineOptions {
                rank_weights: vec![1.0; ranks],
                threads_per_rank: Some(threads),
                ..options.clone()
            })
            .collect(),
    };
    if membership.ranks().is_some() && splits.len() > 1 {
        return Err(CliError::Usage("--splits compares threads of one process; a job has one split".into()));
    }
    let trace = Trace::new(&args.run, membership)?;
    if trace.is_wanted() && splits.len() > 1 {
        return Err(CliError::Usage(
            "--trace is of one split; give --tp and --threads-per-rank in place of --splits".into(),
        ));
    }
    let mut candidates = Vec::new();
    for options in &splits {
        let model = OpenModel::open(&args.model, &args.split, options, membership)?;
        let name = model.name.clone();
        let Some(engine) = model.load(options, membership, &args.run, true)? else { return Ok(()) };
        candidates.push(Candidate { name, engine, runs: Vec::new() });
    }
    let positions = candidates[0].engine.max_model_len();
    if args.prompt_len.saturating_add(args.gen_len) > positions {
        return Err(CliError::Usage(format!(
            "--prompt-len {} and --gen-len {} exceed the {positions} positions of the longest sequence",
            args.prompt_len, args.gen_len
        )));
    }
    let work = work(&candidates[0].engine, args.prompt_len)?;
    let vocab = candidates[0].engine.config().vocab_size;
    let request = GenerateRequest {
        prompt: (0..args.prompt_len).map(|i| (i * 7919 % vocab) as u32).collect(),
        max_tokens: args.gen_len,
        sampling: SamplingParams::default(),
        stop_token_ids: Vec::new(),
    };
    // One run each that doesn't count, with few tokens.
    let warm_up = GenerateRequest { max_tokens: 4, ..request.clone() };
    for candidate in &mut candidates {
        candidate.engine.generate(std::slice::from_ref(&warm_up), &mut |_, _| false)?;
    }
    // Before the buffers of the measurement: they are no memory of the model's.
    let peak_rss_bytes = peak_rss_bytes();
    let mut bandwidths: Vec<_> =
        candidates.iter().map(|c| limits::ReadBandwidth::new(&c.limits(), BUFFER_BYTES)).collect();
    for _ in 0..args.repeats {
        for (candidate, memory) in candidates.iter_mut().zip(&mut bandwidths) {
            let (before, flops) = (memory.measure(), limits::fma_rate(&candidate.limits()));
            candidate.engine.generate(std::slice::from_ref(&request), &mut |_, _| false)?;
            let bandwidth = (before + memory.measure()) / 2.0;
            candidate.runs.push(Run { timing: candidate.engine.timing(), bandwidth, flops });
        }
    }
    for candidate in &mut candidates {
        expert_counts::record(args.split.expert_counts.as_deref(), &mut candidate.engine)?;
    }
    // One run more: what is recorded is not what was measured.
    if let [candidate] = &mut candidates[..] {
        trace.begin(&mut candidate.engine)?;
        if trace.is_wanted() {
            candidate.engine.generate(std::slice::from_ref(&request), &mut |_, _| false)?;
        }
        trace.collect(&mut candidate.engine)?;
    }
    let rows: Vec<Value> = candidates.iter().map(|c| c.row(args, &work, peak_rss_bytes)).collect();
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", json!({ "rows": rows }))?,
        false => print(&mut out, &rows)?,
    }
    trace.write()
}

impl Candidate {
    /// The limits of as many threads as it has, at most one per core.
    fn limits(&self) -> limits::LimitsConfig {
        let ranks = self.engine.plan().mesh.size();
        limits_config((ranks * self.engine.threads_per_rank()).min(cpus::available().len()))
    }

    fn row(&self, args: &DecodeArgs, work: &Work, peak_rss_bytes: u64) -> Value {
        let mesh = self.engine.plan().mesh;
        let of_runs = |f: &dyn Fn(&Run) -> f64| limits::median(self.runs.iter().map(f).collect());
        let rate = |(tokens, seconds): (usize, f64)| tokens as f64 / seconds;
        let flops = |r: &Run| work.prefill_flops / r.timing.prefill.1 / (r.flops * 1e9);
        let decode = |r: &Run| rate(r.timing.decode) * work.decode_weight_bytes / (r.bandwidth * 1e9);
        json!({
            "model": self.name,
            "tp": mesh.tp,
            "pp": mesh.pp,
            "dp": mesh.dp,
            "threads_per_rank": self.engine.threads_per_rank(),
            "dtype": self.engine.dtype().name(),
            "quantization": self.engine.kept_as().quantization.map(Quantization::name),
            "batch": 1,
            "prompt": args.prompt_len,
            "gen": args.gen_len,
            "prefill_tokens_per_s": of_runs(&|r| rate(r.timing.prefill)),
            "decode_tokens_per_s": of_runs(&|r| rate(r.timing.decode)),
            "decode_roofline_fraction": of_runs(&decode),
            "prefill_flops_fraction": of_runs(&flops),
            "read_gb_s": of_runs(&|r| r.bandwidth),
            "fma_gflop_s": of_runs(&|r| r.flops),
            "repeats": args.repeats,
            "peak_rss_bytes": peak_rss_bytes,
        })
    }
}

/// Counts what the real forward pass does on one rank.
fn work(engine: &Engine, prompt: usize) -> Result<Work, ModelError> {
    let layout = Layout::new(engine.config().clone(), &[1.0], &TpPlan::auto())?;
    let stage = Stage::whole(&layout.config);
    let step = |start: usize, rows: usize| -> Result<OpCost, ModelError> {
        let block_table = (0..(start + rows).div_ceil(KV_BLOCK) as u32).collect();
        let meta = StepMeta {
            tokens: vec![0; rows],
            sequences: vec![SequenceSpan { rows: 0..rows, start, block_table }],
            logit_rows: vec![rows as u32 - 1],
        };
        Ok(cost_of_step(&layout, &stage, 0, engine.kept_as(), engine.kv_cache_dtype(), &meta)?.total())
    };
    let (prefill, decode) = (step(0, prompt)?, step(prompt, 1)?);
    Ok(Work { prefill_flops: prefill.flops as f64, decode_weight_bytes: decode.weight_bytes as f64 })
}

fn print(out: &mut impl Write, rows: &[Value]) -> Result<(), CliError> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "tp",
        "pp",
        "threads",
        "dtype",
        "prompt",
        "gen",
        "prefill tok/s",
        "of FMA peak",
        "decode tok/s",
        "of bandwidth",
        "read GB/s",
        "GFLOP/s",
    ]);
    for row in rows {
        let number = |key: &str, digits: usize| format!("{:.digits$}", row[key].as_f64().unwrap_or(f64::NAN));
        let percent = |key: &str| format!("{:.0} %", 100.0 * row[key].as_f64().unwrap_or(f64::NAN));
        let whole = |key: &str| row[key].to_string();
        table.add_row([
            whole("tp"),
            whole("pp"),
            whole("threads_per_rank"),
            row["dtype"].as_str().unwrap_or_default().to_owned(),
            whole("prompt"),
            whole("gen"),
            number("prefill_tokens_per_s", 1),
            percent("prefill_flops_fraction"),
            number("decode_tokens_per_s", 2),
            percent("decode_roofline_fraction"),
            number("read_gb_s", 1),
            number("fma_gflop_s", 0),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}
