//! What is told before a model runs: which rank is what, and what to beware of. Rank 0 only, to stderr.

use engine::{Engine, EngineError, RankReport};

/// Lines of the table; a job of more stages is told in part.
const LINES_MAX: usize = 10;

/// Tells which rank is what, unless there is nothing to tell: a plain tensor-parallel group of threads. `quiet`: tells it
/// of a job only.
pub fn tell(engine: &mut Engine, of_job: bool, quiet: bool) -> Result<(), EngineError> {
    let mesh = engine.plan().mesh;
    if of_job || (!quiet && (mesh.pp > 1 || mesh.dp > 1)) {
        let reports = engine.reports()?;
        table(engine, &reports).iter().for_each(|line| eprintln!("{line}"));
        warn_of_split_groups(engine, &reports)?;
    }
    Ok(())
}

/// One line per tensor-parallel group.
fn table(engine: &Engine, reports: &[RankReport]) -> Vec<String> {
    let plan = engine.plan();
    let groups = reports.chunks(plan.mesh.tp);
    let more = groups.len().saturating_sub(LINES_MAX);
    let line = |group: &[RankReport]| {
        let (first, last) = (&group[0], &group[group.len() - 1]);
        let ranks = match group.len() {
            1 => format!("rank {}", first.rank),
            _ => format!("ranks {}–{}", first.rank, last.rank),
        };
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
    eprintln!(
        "warning: a tensor-parallel group crosses hosts ({hosts}): its {} all-reduces cost {:.2} ms per token; --pp \
         across hosts and --tp inside them would cost less",
        2 * layers,
        seconds * 1e3
    );
    Ok(())
}
