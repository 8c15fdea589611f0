//! `all_reduce` and `reduce_scatter` give the bits of the whole tree on one rank.

use std::ops::Range;

use tensor::{Device, ReductionTree};

use super::{Checks, LONG, bits, hash, value};
use crate::{Collective, ReducePlan};

/// A plan, and the leaves that each rank owns.
pub(super) struct Split {
    tree: ReductionTree,
    leaves: Vec<Range<usize>>,
    pub plan: ReducePlan,
}

impl Split {
    pub fn new(tree: &ReductionTree, cuts: &[usize]) -> Self {
        let leaves: Vec<_> = cuts.windows(2).map(|c| c[0]..c[1]).collect();
        let nodes_of_rank = leaves.iter().map(|l| tree.cover(l.clone()).len()).collect();
        let plan = ReducePlan { nodes_of_rank, finish: tree.finish(&leaves) };
        Split { tree: tree.clone(), leaves, plan }
    }

    /// Even cuts, three uneven ones, and cuts where only the first or the last rank owns something.
    pub fn all(tree: &ReductionTree, ranks: usize) -> Vec<Self> {
        let n = tree.num_leaves();
        let uneven = |seed: u32| (1..ranks).map(move |r| hash(seed, r as u32) as usize % (n + 1));
        let mut cuts: Vec<Vec<usize>> = vec![(0..=ranks).map(|r| r * n / ranks).collect()];
        cuts.extend((0..3).map(|seed| uneven(seed).chain([0, n]).collect()));
        cuts.extend([0, n].map(|middle| [0].into_iter().chain(vec![middle; ranks - 1]).chain([n]).collect()));
        cuts.iter_mut().for_each(|c| c.sort());
        cuts.iter().map(|c| Split::new(tree, c)).collect()
    }

    /// `[nodes · elements]`: the sums of the nodes that cover `leaves`.
    fn sums(&self, leaves: Range<usize>, elements: usize, seed: u32) -> Vec<f32> {
        let program = self.tree.program(leaves.clone());
        let mut sums = vec![0.0; program.num_nodes() * elements];
        for e in 0..elements {
            let nodes = program.run(|i| value(hash(seed, e as u32), (leaves.start + i) as u32));
            nodes.into_iter().enumerate().for_each(|(node, sum)| sums[node * elements + e] = sum);
        }
        sums
    }

    /// A rank's nodes.
    fn partial<D: Device>(&self, dev: &D, rank: usize, rows: usize, cols: usize, seed: u32) -> D::Tensor {
        let partial = self.sums(self.leaves[rank].clone(), rows * cols, seed);
        dev.upload(&partial, self.plan.nodes_of_rank[rank] * rows, cols)
    }

    /// All-reduces `[rows, cols]` and compares with the whole tree on one rank.
    pub fn check<D: Device>(&self, group: &impl Collective<D>, dev: &D, rows: usize, cols: usize, seed: u32) {
        let partial = self.partial(dev, group.rank(), rows, cols, seed);
        let sum = group.all_reduce(dev, partial, rows, &self.plan).expect("all_reduce");
        assert_eq!(dev.shape(&sum), [rows, cols]);
        let expected = self.sums(0..self.tree.num_leaves(), rows * cols, seed);
        let sum = dev.download(&sum).expect("download");
        assert!(bits(&sum) == bits(&expected), "other bits: {:?}, [{rows}, {cols}]", self.leaves);
    }

    /// Reduce-scatters rows of `cols` and compares this rank's with the whole tree on one rank.
    pub fn check_scatter<D: Device>(
        &self,
        group: &impl Collective<D>,
        dev: &D,
        rows_of_rank: &[usize],
        cols: usize,
        seed: u32,
    ) {
        let (rank, rows) = (group.rank(), rows_of_rank.iter().sum());
        let partial = self.partial(dev, rank, rows, cols, seed);
        let sum = group.reduce_scatter(dev, partial, rows_of_rank, &self.plan).expect("reduce_scatter");
        assert_eq!(dev.shape(&sum), [rows_of_rank[rank], cols]);
        let first: usize = rows_of_rank[..rank].iter().sum();
        let expected = self.sums(0..self.tree.num_leaves(), rows * cols, seed);
        let expected = &expected[first * cols..(first + rows_of_rank[rank]) * cols];
        let sum = dev.download(&sum).expect("download");
        assert!(bits(&sum) == bits(expected), "other bits: {:?}, {rows_of_rank:?} · {cols}", self.leaves);
    }
}

/// Rows of each rank, often uneven, some ranks without.
pub(super) fn rows_of_rank(ranks: usize, most: usize, seed: u32) -> Vec<usize> {
    (0..ranks).map(|r| hash(seed, r as u32) as usize % (most + 2)).map(|n| n.saturating_sub(1)).collect()
}

impl<D: Device, C: Collective<D>> Checks<'_, D, C> {
    pub(super) fn trees(&self) {
        let heads = [6, 8, 32].map(|heads| ReductionTree::over_heads(heads, 4));
        let granules =
            [(136, 6), (1000, 32)].map(|(inputs, heads)| ReductionTree::over_granules(inputs, heads));
        let trees: Vec<_> =
            heads.into_iter().chain(granules).chain([1, 5, 128].map(ReductionTree::over_ids)).collect();
        let splits: Vec<_> = trees.iter().flat_map(|tree| Split::all(tree, self.ranks)).collect();
        self.on_all(LONG, |_, group, dev| {
            for (seed, split) in splits.iter().enumerate() {
                let cols = 1 + 13 * (seed % 5);
                split.check(&group, &dev, 1 + seed % 3, cols, seed as u32);
                let rows = rows_of_rank(self.ranks, 3, seed as u32);
                split.check_scatter(&group, &dev, &rows, cols, seed as u32);
            }
            let calls = group.stats().all_reduce_calls;
            assert_eq!(calls, 2 * splits.len() as u64, "a reduce-scatter counts as an all-reduce");
        });
    }

    pub(super) fn sizes(&self) {
        let tree = ReductionTree::over_heads(6, 4);
        let splits = Split::all(&tree, self.ranks);
        self.on_all(LONG, |rank, group, dev| {
            let mut bytes = 0;
            for rows in [0, 1, 2, 7, 100] {
                for cols in [1, 17, 64, 2048] {
                    // The largest only once for even and once for uneven cuts.
                    for split in &splits[..if rows * cols > 20_000 { 2 } else { splits.len() }] {
                        split.check(&group, &dev, rows, cols, (rows * cols) as u32);
                        bytes += split.plan.nodes_of_rank[rank] * rows * cols * size_of::<f32>();
                    }
                    // All rows for one rank, then some for each.
                    let mut one = vec![0; self.ranks];
                    one[rows % self.ranks] = rows;
                    let some = rows_of_rank(self.ranks, 2 * rows / self.ranks, cols as u32);
                    for (split, rows) in splits.iter().zip([one, some]) {
                        split.check_scatter(&group, &dev, &rows, cols, cols as u32);
                        let rows: usize = rows.iter().sum();
                        bytes += split.plan.nodes_of_rank[rank] * rows * cols * size_of::<f32>();
                    }
                }
            }
            assert_eq!(group.stats().all_reduce_bytes, bytes as u64);
        });
    }
}
