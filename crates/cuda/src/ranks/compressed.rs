//! Sums that travel in fewer bits, quantised on the GPU (`kernels/all_reduce_compressed.cu`).

use std::ops::Range;

use collective::{ReducePlan, WireDType};

use super::finish::Tree;
use super::peers::{ALL_REDUCE, Peers, REDUCE_SCATTER, most_nodes};
use crate::driver::{Arguments, Grid, Kernel};
use crate::tensor::{CudaTensor, Queue};

/// Warps of a block, each of which has a group.
const WARPS: usize = 16;

/// The most words that a group of values is.
fn group_words(wire: WireDType) -> usize {
    wire.words(WireDType::GROUP)
}

fn kernel(wire: WireDType) -> Kernel {
    let name = match wire {
        WireDType::Bfloat16 => "compressed_bfloat",
        WireDType::Fp8 => "compressed_fp8",
        WireDType::Int8 => "compressed_int8",
        WireDType::Float32 => unreachable!("f32 is not compressed"),
    };
    Kernel { file: "all_reduce_compressed", name }
}

/// What is reduced.
pub(super) struct CompressedSum<'a> {
    pub wire: WireDType,
    pub plan: &'a ReducePlan,
    pub tree: &'a Tree,
    pub partial: &'a CudaTensor,
    /// The elements that each rank sums.
    pub slices: Vec<Range<usize>>,
    /// As many as the longest slice has where rows are filled up.
    pub longest: usize,
}

impl CompressedSum<'_> {
    /// Bytes that a rank sends, counted as the host's [`collective::Compressed`] does.
    pub fn bytes(&self, rank: usize, shares: bool) -> u64 {
        let words = |of: usize| self.wire.words(self.slices[of].len());
        let others: usize = (0..self.slices.len()).filter(|&of| of != rank).map(words).sum();
        let own = if shares { words(rank) } else { 0 };
        4 * (self.plan.nodes_of_rank[rank] * others + own) as u64
    }
}

impl Peers {
    /// Whether a slot has room for a group of each slice.
    pub fn compresses(&self, wire: WireDType, plan: &ReducePlan) -> bool {
        wire != WireDType::Float32 && self.groups_at_once(wire, plan) > 0
    }

    /// Groups of each slice that a slot has room for.
    fn groups_at_once(&self, wire: WireDType, plan: &ReducePlan) -> usize {
        self.slot / group_words(wire) / (1 + self.ranks() * most_nodes(plan))
    }

    /// Writes all sums to `out` on every rank, if they are shared; else each rank's own slice of them.
    pub fn reduce_compressed(
        &self,
        queue: &Queue,
        of: &CompressedSum<'_>,
        shares: bool,
        out: CudaTensor,
    ) -> CudaTensor {
        let CompressedSum { wire, plan, tree, partial, ref slices, longest } = *of;
        let from = if shares { 0 } else { slices[self.rank].start };
        let ends = slices.iter().flat_map(|slice| [slice.start as u64, slice.end as u64]);
        let table = queue.uploaded(&ends.flat_map(u64::to_le_bytes).collect::<Vec<_>>());
        let longest = longest.div_ceil(WireDType::GROUP);
        let most = self.groups_at_once(wire, plan);
        let op = if shares { ALL_REDUCE } else { REDUCE_SCATTER };
        for first in (0..longest).step_by(most) {
            let count = most.min(longest - first);
            let arguments = Arguments::new().address(out.at()).address(self.group()).count(op);
            let arguments = arguments.address(partial.at()).count(plan.nodes_of_rank[self.rank]);
            let arguments = arguments.count(most_nodes(plan)).long(partial.part_len()).address(table.at);
            let arguments = arguments.long(first).long(count).long(from).count(usize::from(shares));
            let arguments = arguments.address(tree.at()).count(tree.num_items);
            let warps = count.div_ceil(self.blocks).clamp(1, WARPS);
            let grid = Grid::flat(count.div_ceil(warps).min(self.blocks), 32 * warps);
            self.launch_in(queue, kernel(wire), grid, arguments);
        }
        out
    }
}
