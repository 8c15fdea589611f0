//! Whether kernels of all ranks run at the same time: tried once, since a step would find out only at the group's deadline.

use std::time::Duration;

use collective::{CollectiveError, Group, ReducePlan};
use tensor::ReductionTree;

use super::agreed::{Refusal, agreed};
use super::finish::Trees;
use super::peers::{MOST_THREADS, Peers, Shots};
use crate::driver::Fault;
use crate::nvidia::told_otherwise;
use crate::tensor::Queue;

/// How long kernels wait there for each other, at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// A sum of one number of each rank.
pub(super) fn plan(ranks: usize) -> ReducePlan {
    let leaves: Vec<_> = (0..ranks).map(|rank| rank..rank + 1).collect();
    ReducePlan { nodes_of_rank: vec![1; ranks], finish: ReductionTree::over_ids(ranks).finish(&leaves) }
}

/// Runs one kernel of all ranks that waits for all, with as many blocks and threads as any has. What kernels know of the group is there
/// behind it. `numbers`: what ranks are called.
///
/// # Errors
/// A rank is missing or has failed. The inner error: kernels of a rank did not meet those of others.
pub(super) fn tried(
    group: &impl Group,
    numbers: &[usize],
    queue: &Queue,
    peers: &Peers,
) -> Result<Result<(), Refusal>, CollectiveError> {
    // Some of the group's patience is left to tell the others.
    let patience = (peers.timeout * 3 / 4).min(PATIENCE);
    peers.tell_kernels(queue, patience);
    let (trees, plan) = (Trees::default(), plan(group.size()));
    let count = (4 * MOST_THREADS * peers.blocks).min(peers.slot / 4 * 4);
    let (tree, partial) = (trees.get(queue, &plan), queue.tensor(1, count));
    // Where the sum goes is had before: to ask for memory may wait for kernels that wait.
    drop(queue.tensor(1, count));
    // As are all kernels of this rank that nobody waits for.
    let ready = queue.read_numbers(partial.at(), 1).map(drop);
    group.barrier()?;
    let sum = peers.all_reduce_in(queue, &tree, &partial, 1, &plan, Shots::One);
    let ended = queue.read_numbers(sum.at(), 1).map(drop);
    let met = match peers.report() {
        // Another rank found it out and told this one, whom it missed: that one says so.
        Some(report) if report.missing_ranks().contains(&peers.rank) => ready.and(ended),
        Some(report) => {
            let missing = report.missing_of(numbers);
            Err(Fault(told(&missing, patience, &told_otherwise())))
        }
        None => ready.and(ended),
    };
    let all = agreed(group, met.map(|()| Vec::new()))?;
    // Nothing is on its way to memory that is given back then.
    Ok(all.map(|_| peers.tell_kernels(queue, peers.timeout)))
}

/// What a rank says whose kernel waited in vain. `otherwise`: what of the environment may be why.
fn told(missing: &[usize], patience: Duration, otherwise: &[String]) -> String {
    let seconds = patience.as_secs_f64();
    let why = match otherwise {
        [] => String::new(),
        all => format!(": {}", all.join("; ")),
    };
    format!("its kernels and those of rank {missing:?} did not run at the same time within {seconds} s{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_did_not_meet_are_told_with_what_may_be_why() {
        let told = |otherwise: &[String]| told(&[1, 3], Duration::from_millis(1500), otherwise);
        let began = "its kernels and those of rank [1, 3] did not run at the same time within 1.5 s";
        assert_eq!(told(&[]), began);
        assert_eq!(told(&["A is 1".into(), "B is 2".into()]), format!("{began}: A is 1; B is 2"));
    }
}
