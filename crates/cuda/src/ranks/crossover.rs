//! Up to which size an all-reduce in one shot is faster than in two.

use std::time::{Duration, Instant};

use collective::{CollectiveError, Group};

use super::finish::Trees;
use super::meeting;
use super::peers::{Peers, Shots};
use crate::driver::Fault;
use crate::tensor::{CudaTensor, Queue};

/// Sizes that are tried, each twice the one before, in bytes of a rank.
const LEAST: usize = 64 << 10;
const SIZES: usize = 6;
/// All-reduces of a size: some that nobody looks at, and those that are timed together.
const BEFORE: usize = 2;
const TIMED: usize = 8;

/// Where two shots become faster, as NVLink's figures say (one shot moves p − 1 times the bytes, two shots wait twice).
pub(super) fn by_rule(ranks: usize) -> usize {
    match ranks {
        // Neither moves more than the other.
        0..=2 => usize::MAX,
        3..=4 => 1 << 20,
        5..=8 => 256 << 10,
        _ => 128 << 10,
    }
}

/// The same, measured. Rank 0's answer is that of all.
///
/// # Errors
/// A rank is missing or has failed.
pub(super) fn measured(group: &impl Group, queue: &Queue, peers: &Peers) -> Result<usize, CollectiveError> {
    let ranks = group.size();
    if ranks <= 2 {
        return Ok(by_rule(ranks));
    }
    let plan = meeting::plan(ranks);
    let (trees, mut times) = (Trees::default(), Vec::new());
    for bytes in (0..SIZES).map(|i| LEAST << i).filter(|&bytes| bytes <= 4 * peers.slot) {
        let mut of = [Shots::One, Shots::Two].map(|shots| (shots, Ok(Duration::ZERO)));
        let (tree, partial) = (trees.get(queue, &plan), queue.tensor(1, bytes / 4));
        // Memory of sums is had before any kernel waits: one is made while the one before is still there.
        drop([(); 2].map(|()| queue.tensor(1, bytes / 4)));
        for (shots, time) in &mut of {
            group.barrier()?;
            let sum = || peers.all_reduce_in(queue, &tree, &partial, 1, &plan, *shots);
            *time = timed(queue, sum);
        }
        times.push((bytes, of.map(|(_, time)| time)));
    }
    let mut decided = decided(&times, by_rule(ranks)).to_le_bytes().to_vec();
    group.broadcast(&mut decided, Some(peers.timeout))?;
    let decided = <[u8; 8]>::try_from(&decided[..]).map(u64::from_le_bytes);
    Ok(decided.map_or(by_rule(ranks), |bytes| bytes as usize))
}

/// What some all-reduces of a size take.
fn timed(queue: &Queue, sum: impl Fn() -> CudaTensor) -> Result<Duration, Fault> {
    let run = |times: usize| -> Result<(), Fault> {
        let last = (0..times).map(|_| sum()).last().expect("there are some");
        queue.read(last.at(), 1).map(drop)
    };
    run(BEFORE)?;
    let began = Instant::now();
    run(TIMED)?;
    Ok(began.elapsed())
}

/// The largest size up to which one shot was no slower each time; the rule if that can't be said.
fn decided(times: &[(usize, [Result<Duration, Fault>; 2])], rule: usize) -> u64 {
    let mut most = None;
    for (bytes, of) in times {
        let [Ok(one), Ok(two)] = of else { return rule as u64 };
        if one > two {
            return most.unwrap_or(0);
        }
        most = Some(*bytes as u64);
    }
    most.map_or(rule as u64, |_| u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shot_ends_where_it_is_slower() {
        let times = |pairs: &[(u64, u64)]| -> Vec<_> {
            let of = |(i, &(one, two)): (usize, &(u64, u64))| {
                (LEAST << i, [one, two].map(|us| Ok(Duration::from_micros(us))))
            };
            pairs.iter().enumerate().map(of).collect()
        };
        assert_eq!(decided(&times(&[(3, 5), (4, 5), (6, 5), (5, 6)]), 7), 2 * LEAST as u64);
        assert_eq!(decided(&times(&[(3, 5), (4, 5)]), 7), u64::MAX);
        assert_eq!(decided(&times(&[(6, 5), (4, 5)]), 7), 0);
        assert_eq!(decided(&[], 7), 7);
        let mut lost = times(&[(3, 5)]);
        lost[0].1[0] = Err(Fault("gone".into()));
        assert_eq!(decided(&lost, 7), 7);
    }
}
