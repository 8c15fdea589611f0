//! Which host a process is on: ranks of one host can share memory.

use std::fs;

use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

/// The host of this process, as others compare it and as people read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Equal for processes that reach each other's memory and loopback addresses, and that no launcher keeps apart.
    pub identity: String,
    /// What people call it.
    pub name: String,
    /// The cores that this process may use.
    pub cores: Cores,
}

impl Host {
    /// This process's host. `node` is the number that the launcher gives it: two launchers on one machine can play two.
    pub fn this(node: Option<usize>) -> Host {
        // Containers share a kernel, but not always its namespaces: without a common one of process ids there is no
        // way to each other's memory, without one of networks none to each other's loopback.
        let boot = read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = |kind: &str| match fs::read_link(format!("/proc/self/ns/{kind}")) {
            Ok(link) => link.to_string_lossy().into_owned(),
            Err(_) => String::new(),
        };
        let user = rustix::process::geteuid().as_raw();
        let node = node.map_or(String::new(), |node| node.to_string());
        let name = read("/proc/sys/kernel/hostname").unwrap_or_else(|| "localhost".into());
        // The name guards against machines that were cloned while they ran.
        let identity = format!("{boot} {} {} {user} {node} {name}", namespace("net"), namespace("pid"));
        Host { identity, name, cores: cores() }
    }
}

fn cores() -> Cores {
    let own = std::thread::available_parallelism().map_or(1, |n| n.get());
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => Cores::of((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).map(|core| core as u32)),
        Err(_) => Cores::of(0..own as u32),
    }
}

/// Cores by their numbers, as ranges: first and last. A job of thousands of ranks has as many of these in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cores(Vec<(u32, u32)>);

impl Cores {
    /// From ascending numbers.
    pub(crate) fn of(numbers: impl Iterator<Item = u32>) -> Cores {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        Cores(ranges)
    }

    /// Whether two processes share any.
    pub(crate) fn overlap(&self, other: &Cores) -> bool {
        self.0.iter().any(|(first, last)| other.0.iter().any(|(a, b)| first <= b && a <= last))
    }
}

/// How many different cores some processes may use together.
pub(crate) fn together<'a>(cores: impl Iterator<Item = &'a Cores>) -> usize {
    let mut ranges: Vec<(u32, u32)> = cores.flat_map(|cores| cores.0.iter().copied()).collect();
    ranges.sort_unstable();
    let (mut count, mut next) = (0, 0);
    for (first, last) in ranges {
        let first = first.max(next);
        if last >= first {
            count += (last - first) as usize + 1;
            next = last + 1;
        }
    }
    count
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The host of each rank as a number: hosts are counted in the order of their first ranks.
pub(crate) fn number_hosts<'a>(identities: impl Iterator<Item = &'a str>) -> Vec<usize> {
    let mut seen: Vec<&str> = Vec::new();
    let number = |identity| match seen.iter().position(|other| *other == identity) {
        Some(host) => host,
        None => {
            seen.push(identity);
            seen.len() - 1
        }
    };
    identities.map(number).collect()
}

/// World ranks with those of one host side by side, in which rank 0 is first.
pub(crate) fn side_by_side(node_of_rank: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..node_of_rank.len()).collect();
    order.sort_by_key(|&rank| node_of_rank[rank]);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_that_two_processes_share_count_once() {
        let cores = |numbers: &[u32]| Cores::of(numbers.iter().copied());
        let [low, high, all, odd] = [cores(&[0, 1]), cores(&[2, 3]), cores(&[0, 1, 2, 3]), cores(&[1, 3])];
        assert_eq!(together([&low, &high].into_iter()), 4);
        assert_eq!(together([&all, &low, &all, &odd].into_iter()), 4);
        assert_eq!(together([&odd].into_iter()), 2);
        assert!(!low.overlap(&high) && low.overlap(&odd) && odd.overlap(&all) && low.overlap(&low));
    }

    #[test]
    fn two_launchers_on_one_machine_can_play_two_hosts() {
        assert_eq!(Host::this(Some(0)), Host::this(Some(0)));
        assert_ne!(Host::this(Some(0)).identity, Host::this(Some(1)).identity);
        assert_eq!(Host::this(None).name, Host::this(Some(1)).name);
    }

    #[test]
    fn ranks_of_one_host_become_neighbours_and_rank_0_stays_first() {
        let nodes = number_hosts(["b", "a", "b", "c", "a"].into_iter());
        assert_eq!(nodes, [0, 1, 0, 2, 1]);
        assert_eq!(side_by_side(&nodes), [0, 2, 1, 4, 3]);
        assert_eq!(side_by_side(&[0, 0, 1]), [0, 1, 2]);
    }
}
