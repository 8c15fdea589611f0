//! Ranks on cores: the threads of a rank, and the ranks of a tensor-parallel group, within one NUMA node if they fit.

use std::fs;

/// Where a core is. What orders cores comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Core {
    /// Its socket and its NUMA node.
    node: (usize, usize),
    /// The first core with which it shares its last cache.
    cache: usize,
    /// The first thread of its physical core.
    twin: usize,
    /// What the system calls it.
    id: usize,
}

impl Core {
    /// Asks the system; what that doesn't say counts as one for all.
    pub fn read(id: usize) -> Core {
        let root = format!("/sys/devices/system/cpu/cpu{id}");
        let first =
            |file: &str| first_number(&fs::read_to_string(format!("{root}/{file}")).unwrap_or_default());
        let entries = fs::read_dir(&root).into_iter().flatten().flatten();
        let node = entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("node")?.parse().ok()).next();
        Core {
            node: (first("topology/physical_package_id").unwrap_or(0), node.unwrap_or(0)),
            cache: first("cache/index3/shared_cpu_list").unwrap_or(0),
            twin: first("topology/thread_siblings_list").unwrap_or(id),
            id,
        }
    }
}

/// Of `0-3,8-11` or `5`.
fn first_number(list: &str) -> Option<usize> {
    list.trim().split([',', '-']).next()?.parse().ok()
}

/// The cores of each rank; `None`: there are too few.
pub fn place(cores: &[Core], ranks: usize, threads: usize, group: usize) -> Option<Vec<Vec<usize>>> {
    let needed = ranks.checked_mul(threads).filter(|&needed| needed <= cores.len())?;
    // Physical cores before the second threads of some.
    let mut chosen = cores.to_vec();
    chosen.sort_by_key(|core| (core.twin != core.id, *core));
    let is_enough = |count: usize| cores.iter().filter(|core| core.twin == core.id).count() >= count;
    if is_enough(needed) {
        chosen.retain(|core| core.twin == core.id);
    }
    chosen.sort();
    let group = if ranks.is_multiple_of(group) { group } else { 1 };
    let nodes: Vec<&[Core]> = chosen.chunk_by(|a, b| a.node == b.node).collect();
    let cores = within_nodes(&nodes, ranks / group, group * threads)
        .or_else(|| within_nodes(&nodes, ranks, threads))
        .unwrap_or_else(|| chosen[..needed].iter().map(|core| core.id).collect());
    Some(cores.chunks(threads).map(<[usize]>::to_vec).collect())
}

/// Cores for `units` units of `size` cores one after the other, each unit within one node, if that works.
fn within_nodes(nodes: &[&[Core]], units: usize, size: usize) -> Option<Vec<usize>> {
    let of_node =
        |node: &&[Core]| node[..node.len() / size * size].iter().map(|core| core.id).collect::<Vec<_>>();
    let mut all: Vec<usize> = nodes.iter().flat_map(of_node).collect();
    all.truncate(units * size);
    (all.len() == units * size).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nodes` of `size` physical cores each; then, as systems count, their second threads.
    fn machine(nodes: usize, size: usize, has_twins: bool) -> Vec<Core> {
        let all = nodes * size;
        let core = |id: usize| {
            let twin = id % all;
            Core { node: (0, twin / size), cache: 0, twin, id }
        };
        (0..if has_twins { 2 * all } else { all }).map(core).collect()
    }

    #[test]
    fn a_tensor_parallel_group_keeps_to_a_node_if_it_fits() {
        let cores = machine(2, 8, false);
        let placed = place(&cores, 6, 2, 3).expect("room");
        assert_eq!(placed.concat(), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn a_rank_keeps_to_a_node_if_its_group_cannot() {
        let cores = machine(2, 8, false);
        let placed = place(&cores, 4, 3, 4).expect("room");
        assert_eq!(placed.concat(), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        // No node has room for two of these.
        assert_eq!(place(&cores, 3, 5, 3).expect("room").concat(), (0..15).collect::<Vec<_>>());
    }

    #[test]
    fn second_threads_are_used_last() {
        let cores = machine(2, 2, true);
        assert_eq!(place(&cores, 2, 2, 2), Some(vec![vec![0, 1], vec![2, 3]]));
        assert_eq!(place(&cores, 2, 4, 2), Some(vec![vec![0, 4, 1, 5], vec![2, 6, 3, 7]]));
        assert_eq!(place(&cores, 3, 3, 1), None);
    }

    #[test]
    fn this_machine_says_where_its_cores_are() {
        let cores: Vec<Core> = super::super::available().iter().map(|&id| Core::read(id)).collect();
        let placed = place(&cores, 1, cores.len(), 1).expect("room").concat();
        assert!(super::super::available().iter().all(|core| placed.contains(core)));
    }
}
