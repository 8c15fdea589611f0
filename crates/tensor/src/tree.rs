//! The fixed binary tree that gives every split reduction its order (NUMERICS.md, rules 2, 3, 6 and 7).
//!
//! A tree is a function of the model's shape only. Its *units* (query heads, granules of 32 inputs,
//! expert ids, panels of 16 vocabulary ids) are split at the middle until one unit or the depth limit
//! is reached: a *leaf*. A rank owns a contiguous range of leaves, sums each of them sequentially,
//! and merges siblings as long as it holds both: what is left are the fewest *nodes* that cover its
//! range. The all-reduce takes the nodes of all ranks, in order, and merges on.

use std::ops::Range;

/// Index of a node in its tree.
pub type NodeId = u32;

/// Inputs of an FFN granule.
const GRANULE: usize = 32;
/// A feed-forward tree is never deeper than this.
const FFN_MAX_DEPTH: u32 = 6;

#[derive(Clone, Debug)]
struct Node {
    leaves: Range<usize>,
    parent: Option<NodeId>,
}

/// A binary tree over the inputs of a reduction.
#[derive(Clone, Debug)]
pub struct ReductionTree {
    nodes: Vec<Node>,
    /// Inputs of each leaf, ascending and without gaps.
    leaf_inputs: Vec<Range<usize>>,
    /// The node that each leaf is.
    leaf_nodes: Vec<NodeId>,
}

/// What a kernel does that owns a range of leaves, or what an all-reduce does with the nodes of all ranks:
/// push one item after the other on a stack, and after item `i` merge the top two `merges[i]` times
/// (`left + right`). What is left on the stack, bottom first, are the result's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Inputs of each item, in the coordinates of whoever runs the program (a rank's inputs start at 0).
    pub inputs: Vec<Range<usize>>,
    /// Merges after each item.
    pub merges: Vec<u32>,
    /// The nodes that are left at the end, ascending.
    pub nodes: Vec<NodeId>,
}

impl Program {
    /// No tree: all `inputs` are summed in ascending order.
    pub fn sequential(inputs: usize) -> Self {
        Program { inputs: vec![0..inputs], merges: vec![0], nodes: vec![0] }
    }

    /// Number of nodes that running the program leaves.
    pub fn num_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Number of inputs that the program reads.
    pub fn num_inputs(&self) -> usize {
        self.inputs.last().map_or(0, |r| r.end)
    }

    /// The most items that the stack ever holds.
    pub fn max_stack(&self) -> usize {
        let (mut now, mut most) = (0, 0);
        for &m in &self.merges {
            now += 1;
            most = most.max(now);
            now -= m as usize;
        }
        most
    }

    /// Runs the program over scalars: `item(i)` is the value of item `i`.
    pub fn run(&self, mut item: impl FnMut(usize) -> f32) -> Vec<f32> {
        let mut stack: Vec<f32> = Vec::with_capacity(self.nodes.len() + 8);
        for (i, &merges) in self.merges.iter().enumerate() {
            stack.push(item(i));
            for _ in 0..merges {
                let right = stack.pop().expect("a program merges only what it pushed");
                let left = stack.pop().expect("a program merges only what it pushed");
                stack.push(left + right);
            }
        }
        stack
    }
}

impl ReductionTree {
    /// A tree over `units`, where unit `u` holds the inputs `unit_inputs(u)`, at most `max_depth` deep.
    fn build(units: usize, max_depth: u32, unit_inputs: impl Fn(usize) -> Range<usize>) -> Self {
        assert!(units > 0, "a reduction tree has at least one unit");
        let mut tree = ReductionTree { nodes: Vec::new(), leaf_inputs: Vec::new(), leaf_nodes: Vec::new() };
        tree.split(0..units, max_depth, None, &unit_inputs);
        tree
    }

    fn split(
        &mut self,
        units: Range<usize>,
        depth_left: u32,
        parent: Option<NodeId>,
        unit_inputs: &impl Fn(usize) -> Range<usize>,
    ) {
        let id = self.nodes.len();
        let first_leaf = self.leaf_inputs.len();
        self.nodes.push(Node { leaves: first_leaf..first_leaf, parent });
        if units.len() == 1 || depth_left == 0 {
            self.leaf_inputs.push(unit_inputs(units.start).start..unit_inputs(units.end - 1).end);
            self.leaf_nodes.push(id as NodeId);
        } else {
            let middle = (units.start + units.end) / 2;
            self.split(units.start..middle, depth_left - 1, Some(id as NodeId), unit_inputs);
            self.split(middle..units.end, depth_left - 1, Some(id as NodeId), unit_inputs);
        }
        self.nodes[id].leaves.end = self.leaf_inputs.len();
    }

    /// The tree of an attention output projection: one leaf per query head, `head_dim` inputs each.
    pub fn over_heads(num_heads: usize, head_dim: usize) -> Self {
        Self::build(num_heads, u32::MAX, |h| h * head_dim..(h + 1) * head_dim)
    }

    /// The tree of a down projection over `inputs`: granules of 32 inputs, the last may be short, at
    /// most min(6, ⌈log₂ num_heads⌉) deep.
    pub fn over_granules(inputs: usize, num_heads: usize) -> Self {
        let depth = num_heads.next_power_of_two().trailing_zeros().min(FFN_MAX_DEPTH);
        Self::build(inputs.div_ceil(GRANULE), depth, |g| g * GRANULE..((g + 1) * GRANULE).min(inputs))
    }

    /// The tree over ids one by one (experts, or panels of the vocabulary).
    pub fn over_ids(ids: usize) -> Self {
        Self::build(ids, u32::MAX, |i| i..i + 1)
    }

    /// Number of leaves.
    pub fn num_leaves(&self) -> usize {
        self.leaf_inputs.len()
    }

    /// Number of inputs.
    pub fn num_inputs(&self) -> usize {
        self.leaf_inputs.last().map_or(0, |r| r.end)
    }

    /// The inputs of a range of leaves.
    pub fn inputs_of(&self, leaves: Range<usize>) -> Range<usize> {
        if leaves.is_empty() {
            let at = self.leaf_inputs.get(leaves.start).map_or(self.num_inputs(), |r| r.start);
            return at..at;
        }
        self.leaf_inputs[leaves.start].start..self.leaf_inputs[leaves.end - 1].end
    }

    /// The fewest nodes whose leaves are exactly `leaves`, ascending.
    pub fn cover(&self, leaves: Range<usize>) -> Vec<NodeId> {
        self.program(leaves).nodes
    }

    /// Every node but the root, and its parent.
    pub fn nodes_and_parents(&self) -> impl Iterator<Item = (NodeId, NodeId)> {
        (0..).zip(&self.nodes).filter_map(|(id, node)| Some((id, node.parent?)))
    }

    /// The leaves under a node.
    pub fn leaves_of(&self, node: NodeId) -> Range<usize> {
        self.nodes[node as usize].leaves.clone()
    }

    /// Cuts some leaves, ascending, into the fewest runs such that each run is all that is there of a node, and that
    /// all leaves of a run are `alike`. A run can be summed for itself: with the other leaves −0, its sum takes the
    /// place of any one of its leaves.
    pub fn runs(&self, leaves: &[usize], alike: impl Fn(usize, usize) -> bool) -> Vec<Range<usize>> {
        let mut runs = Vec::new();
        let mut nodes: Vec<(usize, Range<usize>)> = vec![(0, 0..leaves.len())];
        while let Some((node, part)) = nodes.pop() {
            let here = &leaves[part.clone()];
            if here.windows(2).all(|pair| alike(pair[0], pair[1])) {
                runs.extend((!part.is_empty()).then_some(part));
                continue;
            }
            // Children follow their parent: the left one at once, the right one after all that is under the left.
            let left = &self.nodes[node + 1].leaves;
            let middle = part.start + here.partition_point(|&leaf| leaf < left.end);
            nodes.push((node + 2 * left.len(), middle..part.end));
            nodes.push((node + 1, part.start..middle));
        }
        runs
    }

    /// What the owner of `leaves` runs. Its inputs count from the range's first input.
    pub fn program(&self, leaves: Range<usize>) -> Program {
        let base = self.inputs_of(leaves.clone()).start;
        let inputs = leaves.clone().map(|l| self.leaf_inputs[l].start - base..self.leaf_inputs[l].end - base);
        let (merges, nodes) = self.merge(leaves.clone().map(|l| self.leaf_nodes[l]));
        Program { inputs: inputs.collect(), merges, nodes }
    }

    /// What finishes the tree once the nodes of all ranks are there: item `i` is the `i`-th of the
    /// nodes of rank 0, rank 1 and so on, whose ranges of leaves must follow each other and be complete.
    ///
    /// # Panics
    /// If the ranges do not cover the tree exactly.
    pub fn finish(&self, ranks: &[Range<usize>]) -> Program {
        let items: Vec<NodeId> = ranks.iter().flat_map(|r| self.cover(r.clone())).collect();
        let inputs = (0..items.len()).map(|i| i..i + 1).collect();
        let (merges, nodes) = self.merge(items.into_iter());
        assert!(nodes == [0], "the ranks' leaves {ranks:?} do not cover the tree");
        Program { inputs, merges, nodes }
    }

    /// Pushes nodes and merges siblings as soon as both are there. A run of leaves ends as its minimal
    /// cover, because a node is complete exactly when its last leaf has been pushed.
    fn merge(&self, items: impl Iterator<Item = NodeId>) -> (Vec<u32>, Vec<NodeId>) {
        let mut stack: Vec<NodeId> = Vec::new();
        let mut merges = Vec::new();
        for item in items {
            stack.push(item);
            let mut count = 0;
            while let [.., left, right] = stack[..] {
                let parent = self.nodes[right as usize].parent;
                if parent.is_none() || parent != self.nodes[left as usize].parent {
                    break;
                }
                stack.truncate(stack.len() - 2);
                stack.push(parent.expect("checked above"));
                count += 1;
            }
            merges.push(count);
        }
        (merges, stack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trees() -> impl Strategy<Value = ReductionTree> {
        prop_oneof![
            (1..70usize, 1..9usize).prop_map(|(h, d)| ReductionTree::over_heads(h, d)),
            (1..3000usize, 1..70usize).prop_map(|(i, h)| ReductionTree::over_granules(i, h)),
            (1..200usize).prop_map(ReductionTree::over_ids),
        ]
    }

    /// The minimal cover by the textbook recursion over a segment tree.
    fn textbook(tree: &ReductionTree, node: NodeId, range: &Range<usize>, out: &mut Vec<NodeId>) {
        let own = tree.leaves_of(node);
        if own.end <= range.start || range.end <= own.start {
            return;
        }
        if range.start <= own.start && own.end <= range.end {
            return out.push(node);
        }
        for child in 0..tree.nodes.len() {
            if tree.nodes[child].parent == Some(node) {
                textbook(tree, child as NodeId, range, out);
            }
        }
    }

    #[test]
    fn granules_of_136_inputs_are_four_of_32_and_one_of_8() {
        let tree = ReductionTree::over_granules(136, 64);
        let sizes: Vec<_> = (0..tree.num_leaves()).map(|l| tree.inputs_of(l..l + 1).len()).collect();
        assert_eq!(sizes, [32, 32, 32, 32, 8]);
        assert_eq!(ReductionTree::over_granules(8192, 32).num_leaves(), 32);
        assert_eq!(ReductionTree::over_granules(8192, 96).num_leaves(), 64);
        assert_eq!(ReductionTree::over_granules(8192, 1).num_leaves(), 1);
    }

    #[test]
    fn the_traffic_is_what_the_design_says() {
        let nodes = |heads: usize, cuts: &[usize]| -> usize {
            let tree = ReductionTree::over_heads(heads, 1);
            cuts.windows(2).map(|c| tree.cover(c[0]..c[1]).len()).sum()
        };
        assert_eq!(nodes(32, &[0, 16, 32]), 2);
        assert_eq!(nodes(6, &[0, 2, 4, 6]), 5);
        assert_eq!(nodes(32, &[0, 12, 24, 32]), 5);
        assert_eq!(nodes(32, &[0, 11, 21, 32]), 10);
    }

    proptest! {
        #[test]
        fn a_cover_is_minimal_disjoint_and_complete(tree in trees(), a in 0..200usize, b in 0..200usize) {
            let n = tree.num_leaves();
            let range = (a % (n + 1)).min(b % (n + 1))..(a % (n + 1)).max(b % (n + 1));
            let cover = tree.cover(range.clone());
            let mut expected = Vec::new();
            textbook(&tree, 0, &range, &mut expected);
            prop_assert_eq!(&cover, &expected);
            let leaves: Vec<_> = cover.iter().flat_map(|&n| tree.leaves_of(n)).collect();
            prop_assert_eq!(leaves, range.collect::<Vec<_>>());
        }

        #[test]
        fn any_ranges_of_ranks_sum_to_the_same_bits(tree in trees(), seed in any::<u32>(), cuts in prop::collection::vec(0..200usize, 0..9)) {
            let n = tree.num_leaves();
            let value = |leaf: usize| {
                let h = (leaf as u32).wrapping_mul(2654435761).wrapping_add(seed).wrapping_mul(2246822519);
                (h as f32 / u32::MAX as f32 - 0.5) * 10f32.powi((h % 9) as i32 - 4)
            };
            let alone = tree.program(0..n).run(value);
            prop_assert_eq!(alone.len(), 1);
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c % (n + 1)).chain([0, n]).collect();
            cuts.sort();
            let ranks: Vec<_> = cuts.windows(2).map(|c| c[0]..c[1]).collect();
            let nodes: Vec<f32> = ranks.iter().flat_map(|r| {
                let program = tree.program(r.clone());
                program.run(|i| value(r.start + i))
            }).collect();
            let split = tree.finish(&ranks).run(|i| nodes[i]);
            prop_assert_eq!(split[0].to_bits(), alone[0].to_bits());
        }

        #[test]
        fn runs_of_any_owners_sum_to_the_same_bits(ids in 1..70usize, chosen in prop::collection::btree_set(0..70usize, 0..12), owners in prop::collection::vec(0..4usize, 70)) {
            let tree = ReductionTree::over_ids(ids);
            let chosen: Vec<usize> = chosen.into_iter().filter(|c| *c < ids).collect();
            let value = |leaf: usize| (leaf as f32 + 0.37) * 10f32.powi(leaf as i32 % 7 - 3);
            // `parts` are leaves and values; what is not there is −0.
            let sum = |parts: &[(usize, f32)]| {
                tree.program(0..ids).run(|i| parts.iter().find(|p| p.0 == i).map_or(-0.0, |p| p.1))[0]
            };
            let runs = tree.runs(&chosen, |a, b| owners[a] == owners[b]);
            prop_assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), (0..chosen.len()).collect::<Vec<_>>());
            let mut sums = Vec::new();
            for run in runs {
                let own = &chosen[run];
                prop_assert!(own.iter().all(|&leaf| owners[leaf] == owners[own[0]]));
                let parts: Vec<_> = own.iter().map(|&leaf| (leaf, value(leaf))).collect();
                sums.push((own[0], sum(&parts)));
            }
            let alone: Vec<_> = chosen.iter().map(|&leaf| (leaf, value(leaf))).collect();
            prop_assert_eq!(sum(&sums).to_bits(), sum(&alone).to_bits());
        }

        #[test]
        fn inputs_are_contiguous_and_complete(tree in trees()) {
            let program = tree.program(0..tree.num_leaves());
            let mut at = 0;
            for r in &program.inputs {
                prop_assert_eq!(r.start, at);
                prop_assert!(r.end > r.start);
                at = r.end;
            }
            prop_assert_eq!(at, tree.num_inputs());
            prop_assert!(program.max_stack() <= 12);
        }
    }
}
