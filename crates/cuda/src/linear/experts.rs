//! Linear layers of experts: each on the rows of those tokens that chose it, all at once. Which rows those are is known on the
//! GPU only, so a block finds out whether there is anything for it.

use ::tensor::Program;

use super::inputs::Inputs;
use super::plan::Plan;
use super::tiles::Layout;
use super::{CudaWeight, Shape, exact_blocks, kernel_of};
use crate::driver::{Address, Arguments, Grid, Kernel};
use crate::memory::Block;
use crate::moe::CudaAssignment;
use crate::tensor::{CudaTensor, Queue};

/// Where the rows of each expert are.
pub(super) struct Places {
    experts: usize,
    pairs: usize,
    /// `[experts + 1]`, in rows.
    offsets: Address,
    /// The same in groups of 8, where each expert has its own.
    group_first: Block,
    /// The row of x that each row is, if it is another.
    tokens: Address,
}

impl Places {
    fn new(queue: &Queue, assignment: &CudaAssignment, tokens: Address) -> Self {
        let CudaAssignment { experts, pairs, ref offsets, .. } = *assignment;
        let group_first = queue.block(4 * (experts + 1));
        let arguments = Arguments::new().address(group_first.at).address(offsets.at).count(experts);
        let threads = experts.next_multiple_of(32).min(1024);
        let grid = Grid::flat(1, threads).with_shared(8 * experts);
        queue.launch(Kernel { file: "linear_inputs", name: "linear_group_first" }, grid, arguments);
        Places { experts, pairs, offsets: offsets.at, group_first, tokens }
    }

    /// As many groups as there can be.
    pub fn most_groups(&self) -> usize {
        self.pairs / 8 + self.experts.min(self.pairs)
    }

    /// As `kernels/linear_inputs.cu` is told it.
    pub fn source(&self, arguments: Arguments) -> Arguments {
        arguments.count(self.experts).address(self.offsets).address(self.group_first.at).address(self.tokens)
    }
}

/// Each expert's layer on its rows: on those of x that its tokens are (`of_tokens`), or on its own.
///
/// # Shapes
/// `x [tokens, k]` or `[pairs, k]` → `[nodes · pairs, n]`
pub(crate) fn grouped(
    queue: &Queue,
    x: &CudaTensor,
    of_tokens: bool,
    assignment: &CudaAssignment,
    weights: &[CudaWeight],
    program: Option<&Program>,
) -> CudaTensor {
    let pairs = assignment.pairs;
    let nodes = program.map_or(1, Program::num_nodes);
    assert_eq!(weights.len(), assignment.experts, "a weight for each expert");
    assert_eq!(x.rows, if of_tokens { assignment.tokens } else { pairs }, "rows of an expert's layer");
    let Some(first) = weights.first() else { return queue.tensor(nodes * pairs, 0) };
    let is_alike = |w: &CudaWeight| (w.n, w.k, w.spec) == (first.n, first.k, first.spec);
    assert!(x.cols == first.k && weights.iter().all(is_alike), "weights of experts are alike");
    let y = queue.tensor(nodes * pairs, first.n);
    if nodes * pairs == 0 {
        return y;
    }
    let tokens = if of_tokens { assignment.pair_token.at } else { 0 };
    let experts = first.experts(queue, weights);
    let plan = first.plan(queue, program);
    let to = Arguments::new().address(y.at()).address(experts.at).address(assignment.offsets.at);
    match &*plan {
        Plan::Exact { items, words } => {
            let arguments = to
                .address(tokens)
                .address(x.at())
                .count(pairs)
                .count(first.n)
                .count(first.k)
                .count(*items)
                .address(words.at)
                .address(words.at + 4 * *items as u64);
            let kernel = Kernel { file: "linear_exact", name: "linear_exact_experts" };
            queue.launch(kernel, in_layers(exact_blocks(first.n, pairs), weights.len()), arguments);
        }
        Plan::Tiled { shared, .. } => {
            let layout = Layout::new(first.spec, first.k);
            let places = Places::new(queue, assignment, tokens);
            let inputs = Inputs::new(queue, x, x.rows, layout, Some(&places));
            let shape = Shape::new(queue, first.n, pairs, &shared.deal);
            let ([elements, scales, sums], [deal, items, merges]) = (inputs.addresses(), shared.addresses());
            let arguments = to
                .address(places.group_first.at)
                .address(elements)
                .address(scales)
                .address(sums)
                .count(layout.tiles())
                .count(pairs)
                .count(first.n)
                .address(deal)
                .address(items)
                .address(merges);
            let kernel = Kernel { file: "linear", name: kernel_of(first.spec.format, shape.groups, true) };
            queue.launch(kernel, in_layers(shape.grid, weights.len()), arguments);
        }
    }
    y
}

/// One layer of a grid for each expert.
fn in_layers(grid: Grid, experts: usize) -> Grid {
    let [x, y, _] = grid.blocks;
    Grid { blocks: [x, y, experts as u32], ..grid }
}
