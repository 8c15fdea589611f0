//! `anysplit bench decode`: prefill and decode over lengths, batches and splits.

mod candidate;
mod machine;
mod report;
mod resident;
mod sweep;
mod work;

use std::rc::Rc;

use clap::Args;
use clap::builder::EnumValueParser;
use cpu::Isa;
use engine::{DeviceKind, EngineOptions, GenerateRequest, SamplingParams};

use crate::args::{ModelArgs, QuantizationArg, RunArgs, engine_options, yes_or_no};
use crate::error::CliError;
use crate::expert_counts;
use crate::lists::{Element, numbers};
use crate::membership::Membership;
use crate::model::{OpenModel, packed_as};
use crate::split::SplitArgs;
use crate::trace::Trace;
use candidate::{Candidate, Run};
use machine::Machine;
use resident::Baseline;
use sweep::{Point, distinct, parse_isa, parse_split, points};

/// Prefill and decode over lengths, batches and splits, as fractions of this machine's limits.
#[derive(Args)]
#[command(after_help = "Examples:\n  anysplit bench decode\n  \
    anysplit bench decode --model ./Llama-3.2-1B --load-format random --splits 1x2,2x1 --repeats 5\n  \
    anysplit bench decode --prompt-len 32 --batch-size 1,8,32 --quantizations none,int8,int4\n\n\
    Lists are combined: each prompt length with each number of tokens to generate, batch size, split and quantisation, \
    each once. What is compared is run in turn, everything once before anything a second time, and the limits are \
    measured between the runs. The first round is preceded by a warm-up of each.\n\
    Decode counts the tokens of all sequences together. Its limit is the read bandwidth divided by the bytes of \
    weights, keys and values that a step reads, or the FMA peak divided by its FLOPs, whichever is less. On GPUs that is \
    the bandwidth of copying and the rate of bfloat16 products, as `bench limits --device cuda` measures them. Prompts \
    that exceed --max-num-batched-tokens together start, and end, one after the other.\n\
    --trace records one run more, after all that are measured; what is interrupted before has no trace.\n\
    The peak of memory is what a split would need if it ran alone: the limits' buffers and the other splits don't \
    count, the program's own pages count for each.\n\
    The table has columns of pp, dp, ep, sp, dcp, the instructions and the type of the KV cache where a row is not as \
    usual; --json has them always.")]
pub struct DecodeArgs {
    /// Tokens of each prompt
    #[arg(
        long,
        env = "ANYSPLIT_PROMPT_LEN",
        value_delimiter = ',',
        default_value = "512",
        value_name = "LIST",
        value_parser = numbers::<usize>()
    )]
    prompt_len: Vec<usize>,
    /// Tokens to generate for each prompt
    #[arg(
        long,
        env = "ANYSPLIT_GEN_LEN",
        value_delimiter = ',',
        default_value = "64",
        value_name = "LIST",
        value_parser = numbers::<usize>()
    )]
    gen_len: Vec<usize>,
    /// Sequences that run at a time
    #[arg(
        long,
        env = "ANYSPLIT_BATCH_SIZE",
        value_delimiter = ',',
        default_value = "1",
        value_name = "LIST",
        value_parser = numbers::<usize>()
    )]
    batch_size: Vec<usize>,
    /// Times that each is run; medians are shown
    #[arg(long, env = "ANYSPLIT_REPEATS", default_value_t = 3, value_name = "N")]
    repeats: usize,
    /// Splits to compare, ranks × threads per rank; in place of --tp and --threads-per-rank
    #[arg(
        long,
        env = "ANYSPLIT_SPLITS",
        value_delimiter = ',',
        value_name = "1x2,2x1",
        value_parser = Element(parse_split),
        conflicts_with_all = ["tensor_parallel_size", "threads_per_rank", "rank_weights"]
    )]
    splits: Vec<(usize, usize)>,
    /// Quantisations to compare; in place of --quantization
    #[arg(
        long,
        env = "ANYSPLIT_QUANTIZATIONS",
        value_delimiter = ',',
        value_name = "LIST",
        value_parser = Element(EnumValueParser::<QuantizationArg>::new()),
        conflicts_with = "quantization"
    )]
    quantizations: Vec<QuantizationArg>,
    /// Instructions that the processor's kernels may use; default: the best that this machine has
    #[arg(long, env = "ANYSPLIT_ISA", value_name = "ISA", value_parser = parse_isa)]
    isa: Option<Isa>,
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

pub fn run(args: &DecodeArgs, membership: &Membership) -> Result<(), CliError> {
    if args.repeats == 0 {
        return Err(CliError::Usage("--repeats must be at least 1".into()));
    }
    let points = points(&args.prompt_len, &args.gen_len, &args.batch_size, args.run.max_num_seqs)?;
    let options = engine_options(&args.model, &args.split, &args.run, membership)?;
    let device = match (args.isa, options.device) {
        (Some(_), DeviceKind::Cuda) => {
            let why = "--isa is of the processor's kernels; leave it out, or use --device cpu";
            return Err(CliError::Usage(why.into()));
        }
        // Who names instructions means the processor.
        (Some(_), DeviceKind::Auto) => DeviceKind::Cpu,
        (_, device) => device,
    };
    let options = EngineOptions { device, ..options };
    let options = compared(args, EngineOptions { isa: args.isa, ..options });
    for &quantization in &args.quantizations {
        // So that a packed checkpoint which can't be so is refused before anything is measured.
        packed_as(&ModelArgs { quantization: Some(quantization), ..args.model.clone() })?;
    }
    if membership.ranks().is_some() && options.len() > 1 {
        return Err(CliError::Usage(
            "--splits and --quantizations compare within one process; a job has one of each".into(),
        ));
    }
    let trace = Trace::new(&args.run, membership)?;
    if trace.is_wanted() && (options.len() > 1 || points.len() > 1) {
        return Err(CliError::Usage(
            "--trace is of one run; give one --prompt-len, --gen-len and --batch-size, and --tp, --threads-per-rank and \
             --quantization in place of lists"
                .into(),
        ));
    }
    let (mut candidates, baseline) = (Vec::new(), Rc::new(Baseline::now()));
    for options in &options {
        let load = || -> Result<_, CliError> {
            let model = OpenModel::open(&args.model, &args.split, options, membership)?;
            let name = model.name.clone();
            Ok(model.load(options, membership, &args.run, true)?.map(|engine| (name, engine)))
        };
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let Some(candidate) = Candidate::load(load, isa, &points, &baseline)? else { return Ok(()) };
        candidates.push(candidate);
    }
    let positions = candidates[0].engine.max_model_len();
    if let Some(point) = points.iter().find(|p| p.prompt.saturating_add(p.generate) > positions) {
        return Err(CliError::Usage(format!(
            "--prompt-len {} and --gen-len {} exceed the {positions} positions of the longest sequence",
            point.prompt, point.generate
        )));
    }
    measure(&mut candidates, &points, args.repeats)?;
    for candidate in &mut candidates {
        expert_counts::record(args.split.expert_counts.as_deref(), &mut candidate.engine)?;
    }
    // One run more: what is recorded is not what was measured.
    if let ([candidate], [point], true) = (&mut candidates[..], &points[..], trace.is_wanted()) {
        let requests = requests(point, candidate.engine.config().vocab_size);
        trace.record(&mut candidate.engine, |engine| {
            Ok(engine.generate(&requests, &mut |_, _| false).map(drop)?)
        })?;
    }
    let mut rows = Vec::new();
    for candidate in &candidates {
        for (i, point) in points.iter().enumerate() {
            rows.push(report::row(candidate, point, &candidate.measured[i])?);
        }
    }
    report::print(&rows, args.json)?;
    trace.end()
}

/// The options of all that is compared.
fn compared(args: &DecodeArgs, options: EngineOptions) -> Vec<EngineOptions> {
    let of_split = |&(ranks, threads): &(usize, usize)| EngineOptions {
        rank_weights: vec![1.0; ranks],
        threads_per_rank: Some(threads),
        ..options.clone()
    };
    let splits = match args.splits.is_empty() {
        true => vec![options.clone()],
        false => distinct(&args.splits).iter().map(of_split).collect(),
    };
    if args.quantizations.is_empty() {
        return splits;
    }
    let with = |q: &QuantizationArg| {
        let quantization = q.get();
        splits.iter().map(move |split| EngineOptions { quantization, ..split.clone() })
    };
    distinct(&args.quantizations).iter().flat_map(with).collect()
}

/// Runs every candidate at every point, in turn, so that a disturbance does not hit one alone.
fn measure(candidates: &mut [Candidate], points: &[Point], repeats: usize) -> Result<(), CliError> {
    let mut machine = Machine::default();
    let bar = machine::bar((repeats * points.len() * candidates.len()) as u64);
    // Memory only grows, so small points go first.
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&i| points[i].tokens());
    for round in 0..repeats {
        for &i in &order {
            for candidate in candidates.iter_mut() {
                bar.set_message(format!("{}, {}", candidate.what(), points[i]));
                let requests = requests(&points[i], candidate.engine.config().vocab_size);
                if round == 0 {
                    candidate.warm_up(i, &points[i], &requests)?;
                }
                let (threads, gpus) = (candidate.threads(), candidate.gpus);
                // What a GPU does at best does not change from run to run.
                let before = gpus.unwrap_or_else(|| machine.limits(threads));
                let timing = candidate.run(i, &requests)?;
                let limits = before.mean(gpus.unwrap_or_else(|| machine.limits(threads)));
                candidate.measured[i].runs.push(Run { timing, limits });
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Sequences of a point, each with other tokens.
fn requests(point: &Point, vocab: usize) -> Vec<GenerateRequest> {
    let request = |sequence: usize| GenerateRequest {
        prompt: (0..point.prompt).map(|i| ((sequence * 31 + i) * 7919 % vocab) as u32).collect(),
        max_tokens: point.generate,
        sampling: SamplingParams::default(),
        stop_token_ids: Vec::new(),
        ..GenerateRequest::default()
    };
    (0..point.batch).map(request).collect()
}
