//! Which ranks share a node, and what of a tree a node can add up alone.

use std::ops::Range;

use tensor::Program;

use crate::{CollectiveError, ReducePlan};

/// The ranks of each node, from the node of each rank.
///
/// # Errors
/// A node's ranks do not follow each other.
pub fn group(node_of_rank: &[usize]) -> Result<Vec<Range<usize>>, CollectiveError> {
    let mut nodes: Vec<Range<usize>> = Vec::new();
    for (rank, &node) in node_of_rank.iter().enumerate() {
        let known = nodes.iter().position(|n| node_of_rank[n.start] == node);
        match known {
            Some(at) if at + 1 == nodes.len() => nodes[at].end = rank + 1,
            None => nodes.push(rank..rank + 1),
            _ => {
                return Err(CollectiveError::Nodes(format!(
                    "rank {rank} is on node {node} again: ranks of one node must follow each other ({node_of_rank:?})"
                )));
            }
        }
    }
    Ok(nodes)
}

/// A plan, cut at the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The sums that each node makes of its ranks' items, in order.
    pub of_node: Vec<Vec<ReducePlan>>,
    /// What the leaders make of those.
    pub across: ReducePlan,
}

/// A sum on the stack: its items, and the node that has all of them.
struct Sum {
    items: Range<usize>,
    node: Option<usize>,
}

/// Runs the plan on nothing, and sees which sums are complete within a node.
pub fn split(plan: &ReducePlan, nodes: &[Range<usize>]) -> Split {
    let ranks_of_items = plan.nodes_of_rank.iter().enumerate().flat_map(|(r, &n)| std::iter::repeat_n(r, n));
    let rank_of_item: Vec<usize> = ranks_of_items.collect();
    let node_of = |item: usize| nodes.iter().position(|n| n.contains(&rank_of_item[item])).expect("a rank's node");
    // How many merges after each item stay within a node: the first ones do, or none.
    let mut within = vec![0; rank_of_item.len()];
    let mut stack: Vec<Sum> = Vec::new();
    for (item, &merges) in plan.finish.merges.iter().enumerate() {
        stack.push(Sum { items: item..item + 1, node: Some(node_of(item)) });
        for _ in 0..merges {
            let (right, left) = (stack.pop(), stack.pop());
            let (left, right) = left.zip(right).expect("a program merges only what it pushed");
            let node = left.node.filter(|_| left.node == right.node);
            within[item] += u32::from(node.is_some());
            stack.push(Sum { items: left.items.start..right.items.end, node });
        }
    }
    let (mut of_node, mut across) = (vec![Vec::new(); nodes.len()], Vec::new());
    for (node, sum) in sums(&within, node_of) {
        let last = sum.end - 1;
        across.push(plan.finish.merges[last] - within[last]);
        let of_rank = |r: usize| rank_of_item[sum.clone()].iter().filter(|&&of| of == r).count();
        let nodes_of_rank = nodes[node].clone().map(of_rank).collect();
        of_node[node].push(ReducePlan { nodes_of_rank, finish: program(within[sum.clone()].to_vec()) });
    }
    let nodes_of_rank = of_node.iter().map(Vec::len).collect();
    Split { of_node, across: ReducePlan { nodes_of_rank, finish: program(across) } }
}

/// The sums that are left when only merges within nodes are done, with their nodes.
fn sums(within: &[u32], node_of: impl Fn(usize) -> usize) -> Vec<(usize, Range<usize>)> {
    let mut sums: Vec<(usize, Range<usize>)> = Vec::new();
    for (item, &merges) in within.iter().enumerate() {
        sums.push((node_of(item), item..item + 1));
        for _ in 0..merges {
            let (_, right) = sums.pop().expect("a merge of two");
            sums.last_mut().expect("a merge of two").1.end = right.end;
        }
    }
    sums
}

fn program(merges: Vec<u32>) -> Program {
    Program { inputs: (0..merges.len()).map(|i| i..i + 1).collect(), merges, nodes: vec![0] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tensor::ReductionTree;

    use super::*;

    #[test]
    fn a_node_s_ranks_follow_each_other() {
        assert_eq!(group(&[4, 4, 0, 7, 7, 7]), Ok(vec![0..2, 2..3, 3..6]));
        let error = group(&[0, 1, 0]).expect_err("scattered").to_string();
        assert!(error.ends_with("rank 2 is on node 0 again: ranks of one node must follow each other ([0, 1, 0])"));
    }

    #[test]
    fn even_halves_cross_once() {
        let tree = ReductionTree::over_heads(32, 1);
        let leaves: Vec<_> = (0..4).map(|r| r * 8..(r + 1) * 8).collect();
        let plan = ReducePlan { nodes_of_rank: vec![1; 4], finish: tree.finish(&leaves) };
        let split = split(&plan, &[0..2, 2..4]);
        assert_eq!(split.across.nodes_of_rank, [1, 1]);
        assert_eq!(split.of_node[1][0].nodes_of_rank, [1, 1]);
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole(
            leaves in 1..70usize,
            cuts in prop::collection::vec(0..70usize, 7),
            shape in prop::collection::vec(0..3usize, 8),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c % (leaves + 1)).chain([0, leaves]).collect();
            cuts.sort();
            let ranks: Vec<_> = cuts.windows(2).map(|c| c[0]..c[1]).collect();
            let mut node_of_rank = shape;
            node_of_rank.sort();
            let nodes = group(&node_of_rank).expect("sorted");
            let tree = ReductionTree::over_ids(leaves);
            let nodes_of_rank: Vec<_> = ranks.iter().map(|r| tree.cover(r.clone()).len()).collect();
            let plan = ReducePlan { nodes_of_rank, finish: tree.finish(&ranks) };
            let value = |item: usize| 1.1f32.powi(item as i32 * 7 % 50) * if item % 3 == 0 { -1.0 } else { 1.0 };
            let expected = plan.finish.run(value)[0];

            let split = split(&plan, &nodes);
            let mut at = 0;
            let mut sums = Vec::new();
            for part in split.of_node.iter().flatten() {
                let root = part.finish.run(|i| value(at + i));
                prop_assert_eq!(root.len(), 1);
                prop_assert_eq!(part.nodes_of_rank.iter().sum::<usize>(), part.finish.merges.len());
                at += part.finish.merges.len();
                sums.push(root[0]);
            }
            prop_assert_eq!(at, plan.finish.merges.len());
            prop_assert_eq!(split.across.finish.run(|i| sums[i])[0].to_bits(), expected.to_bits());
            // As few as can be: no node has two that could have been one.
            prop_assert!(split.across.nodes_of_rank.iter().sum::<usize>() <= plan.finish.merges.len());
        }
    }
}
