//! Slurm: steps that `srun` started.

use super::{Found, Launcher, Place, Vars};
use crate::JobError;

/// Variables that only a step's tasks have. A batch script has a rank (0) and a number of tasks too, but is no task.
const STEP: [&str; 4] =
    ["SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"];

pub(super) fn detect(vars: &Vars<'_>) -> Result<Found, JobError> {
    let Some(rank) = vars.number("SLURM_PROCID")? else { return Ok(Found::Nothing) };
    let in_step = STEP.iter().any(|name| vars.has(name));
    if !in_step && vars.text("ENVIRONMENT").as_deref() == Some("BATCH") {
        return Ok(Found::Nothing);
    }
    let size_name =
        ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"].into_iter().find(|name| vars.has(name));
    let size = match size_name {
        Some(name) => vars.size(name, "SLURM_PROCID")?,
        None if in_step => return Err(vars.half("SLURM_PROCID", "SLURM_NTASKS")),
        None => return Ok(Found::Nothing),
    };
    if size == 1 {
        // One task of its own says nothing of what else runs here: a pod or a user may still say more.
        return Ok(Found::Nothing);
    }
    let node = vars.number("SLURM_NODEID")?;
    let list = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
    let hosts = match list.into_iter().find(|name| vars.has(name)) {
        Some(name) => expand(&vars.text(name).unwrap_or_default())
            .ok_or_else(|| vars.bad(name, "host names, with ranges like node[01-04,7]"))?,
        None => Vec::new(),
    };
    let tasks = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"];
    let local_size = match tasks.into_iter().find(|name| vars.has(name)) {
        Some(name) => {
            let counts = counts(&vars.text(name).unwrap_or_default())
                .ok_or_else(|| vars.bad(name, "counts like 2(x3),1"))?;
            counts.get(node.unwrap_or(0)).copied()
        }
        None if hosts.len() == 1 => Some(size),
        None => None,
    };
    // The counts of an allocation may be other than those of a step in it.
    let local_size = if hosts.len() == 1 { Some(size) } else { local_size.filter(|&local| local <= size) };
    let local_rank = vars.number("SLURM_LOCALID")?;
    let place = Place { local_rank, local_size, node, ..Place::at(Launcher::Slurm, rank, size) };
    let id = ["SLURM_JOB_ID", "SLURM_JOBID"].iter().find_map(|name| vars.text(name));
    let id = id.map(|job| format!("{job}.{}", vars.text("SLURM_STEP_ID").unwrap_or_default()));
    let first = if local_size == Some(size) { None } else { hosts.into_iter().next() };
    place.job(vars, first, id, "srun --export=ALL,MASTER_ADDR=HOST_OF_RANK_0 …")
}

/// The hosts of a list such as `gpu[01-03,7],login`. None if it is none, or has too many.
pub(super) fn expand(list: &str) -> Option<Vec<String>> {
    let mut hosts = Vec::new();
    for item in split_outside_brackets(list)? {
        let Some((prefix, rest)) = item.split_once('[') else {
            hosts.push(item.to_owned());
            continue;
        };
        // What follows the first bracket may have brackets again: rack[1-2]node[1-4].
        let (ranges, suffix) = rest.split_once(']')?;
        let suffixes = if suffix.is_empty() { vec![String::new()] } else { expand(suffix)? };
        for range in ranges.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (from, to): (usize, usize) = (digits(first)?, digits(last)?);
            if to < from || to - from >= super::MAX_RANKS || hosts.len() > super::MAX_RANKS {
                return None;
            }
            for n in from..=to {
                let number = format!("{n:0width$}", width = first.len());
                hosts.extend(suffixes.iter().map(|suffix| format!("{prefix}{number}{suffix}")));
            }
        }
    }
    (!hosts.is_empty() && hosts.iter().all(|host| !host.is_empty())).then_some(hosts)
}

fn digits(text: &str) -> Option<usize> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn split_outside_brackets(list: &str) -> Option<Vec<&str>> {
    let (mut items, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        if !(0..=1).contains(&depth) {
            return None;
        }
    }
    items.push(&list[start..]);
    (depth == 0).then_some(items)
}

/// Tasks of each host from a list such as `2(x3),1`.
fn counts(list: &str) -> Option<Vec<usize>> {
    let mut counts = Vec::new();
    for item in list.split(',') {
        let (count, times) = match item.split_once("(x") {
            Some((count, times)) => (digits(count)?, digits(times.strip_suffix(')')?)?),
            None => (digits(item)?, 1),
        };
        if counts.len() + times > super::MAX_RANKS {
            return None;
        }
        counts.extend(std::iter::repeat_n(count, times));
    }
    Some(counts)
}
