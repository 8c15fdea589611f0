//! What is told before a model runs: which rank is what, and what to beware of. Rank 0 only, to stderr.

use collective::WireDType;
use engine::{Engine, EngineError, EngineOptions, RankReport, Reduction, cpus};
use job::Job;

use crate::error::CliError;
use crate::model::{demo_perplexity, demo_ranks};
use crate::report::count;

/// Lines of the table; a job of more stages is told in part.
const LINES_MAX: usize = 10;

/// Tells which rank is what, unless there is nothing to tell: a plain tensor-parallel group of threads. `quiet`: tells it
/// of a job only.
pub fn tell(engine: &mut Engine, of_job: bool, quiet: bool) -> Result<(), EngineError> {
    let mesh = engine.plan().mesh;
    if of_job || (!quiet && (mesh.pp > 1 || mesh.dp > 1)) {
        let reports = engine.reports()?;
        table(engine, &reports).iter().for_each(|line| job::say!("{line}"));
        warn_of_split_groups(engine, &reports)?;
    }
    Ok(())
}

/// More threads than cores work, but take turns. What `launch` has said of its ranks is not said again.
pub fn warn_of_crowding(engine: &Engine, job: Option<&Job>, is_launched: bool) {
    // The threads of ranks on GPUs do little but wait.
    if engine.is_on_gpus() {
        return;
    }
    let ranks = match job {
        Some(job) => job.ranks_on_my_cores().len(),
        None => engine.plan().mesh.size(),
    };
    let (cores, threads) = (cpus::available().len(), engine.threads_per_rank());
    if ranks * threads <= cores {
        return;
    }
    match threads {
        1 if is_launched => {}
        1 => job::say!("warning: {}", crowded(ranks, cores)),
        _ => job::say!(
            "warning: {} × {threads} threads share {} of this host: fewer --threads-per-rank would be faster",
            count(ranks, "rank"),
            count(cores, "core")
        ),
    }
}

/// What is told of more ranks than cores.
pub fn crowded(ranks: usize, cores: usize) -> String {
    let of = count(cores, "core");
    format!("{ranks} ranks share {of} of this host: it works, but slower than with {cores}")
}

/// What the demo model scores where compression is to be judged: it wrote it.
const PASSAGE: &str = include_str!("../demo/passage.txt");

/// Compressed sums change with the number of ranks: says so, and by how much they change what the demo model thinks of a
/// passage.
pub fn warn_of_compression(options: &EngineOptions) -> Result<(), CliError> {
    let (tp, dtype) = (options.rank_weights.len(), options.all_reduce_dtype);
    if dtype == WireDType::Float32 || tp == 1 {
        return Ok(());
    }
    let perplexity = |all_reduce_dtype| {
        let ranks = tp.min(demo_ranks()?);
        let options = EngineOptions {
            rank_weights: vec![1.0; ranks],
            threads_per_rank: Some(1),
            comm_timeout: options.comm_timeout,
            all_reduce_dtype,
            ..EngineOptions::default()
        };
        demo_perplexity(PASSAGE.trim_end(), &options)
    };
    let (exact, compressed) = (perplexity(WireDType::Float32)?, perplexity(dtype)?);
    job::say!(
        "warning: --all-reduce-dtype {} turns off the promise of equal bits: they depend on the ranks and on what runs beside a request; \
         the demo model's perplexity changes by {:+.3} % ({exact:.4} to {compressed:.4})",
        dtype.name(),
        100.0 * (compressed / exact - 1.0)
    );
    Ok(())
}

/// Sums of any order change with the split: says so.
pub fn warn_of_fast(engine: &Engine) {
    if engine.reduction() == Reduction::Fast {
        job::say!(
            "warning: --reduction fast turns off the promise of equal bits: they depend on the split, and on what runs beside a request"
        );
    }
}

/// What the demo model's perplexity of a passage is, and what it becomes if its weights are quantised; `None` if they are not.
pub fn demo_perplexities(options: &EngineOptions) -> Result<Option<(f64, f64)>, CliError> {
    let Some(quantization) = options.quantization else { return Ok(None) };
    let perplexity = |quantization| {
        let options = EngineOptions { quantization, isa: options.isa, ..EngineOptions::default() };
        demo_perplexity(PASSAGE.trim_end(), &options)
    };
    Ok(Some((perplexity(None)?, perplexity(Some(quantization))?)))
}

/// One line per tensor-parallel group.
fn table(engine: &Engine, reports: &[RankReport]) -> Vec<String> {
    let plan = engine.plan();
    let groups = reports.chunks(plan.mesh.tp);
    let more = groups.len().saturating_sub(LINES_MAX);
    let line = |group: &[RankReport]| {
        let first = &group[0];
        let ranks = engine::ranks_in_words(&group.iter().map(|report| report.rank).collect::<Vec<_>>());
        let (from, behind) = first.layers;
        let hosts = hosts(group);
        let place = if hosts.is_empty() { String::new() } else { format!(" on {}", hosts.join(", ")) };
        format!(
            "{ranks}{place}: replica {}, stage {}, layers {from}–{}",
            first.place.0,
            first.place.1,
            behind - 1
        )
    };
    let sequence = if plan.layout.sequence_parallel { ", sequence parallel" } else { "" };
    let first = format!("{} ranks: {} (ep {}{sequence})", reports.len(), plan.mesh, plan.mesh.ep);
    let mut lines: Vec<String> = std::iter::once(first).chain(groups.take(LINES_MAX).map(line)).collect();
    if more > 0 {
        lines.push(format!("… and {more} more groups (--stats shows all)"));
    }
    lines
}

/// The hosts of some ranks, each once.
fn hosts(group: &[RankReport]) -> Vec<&str> {
    let mut hosts: Vec<&str> = group.iter().map(|r| &*r.host).filter(|host| !host.is_empty()).collect();
    hosts.dedup();
    hosts
}

/// Tensor-parallel ranks meet twice per layer: over a network that costs.
fn warn_of_split_groups(engine: &mut Engine, reports: &[RankReport]) -> Result<(), EngineError> {
    let tp = engine.plan().mesh.tp;
    let Some(split) = reports.chunks(tp).find(|group| hosts(group).len() > 1) else { return Ok(()) };
    let (hosts, layers) = (hosts(split).join(" and "), engine.config().num_layers());
    let seconds = engine.all_reduces_per_token_s()?;
    job::say!(
        "warning: a tensor-parallel group crosses hosts ({hosts}): its {} all-reduces cost {:.2} ms per token; --pp \
         across hosts and --tp inside them would cost less",
        2 * layers,
        seconds * 1e3
    );
    Ok(())
}
