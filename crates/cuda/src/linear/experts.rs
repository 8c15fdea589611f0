//! Linear layers of experts: each on the rows of those tokens that chose it, all at once. Which rows those are is known on the
//! GPU only, so a block finds out whether there is anything for it.

use ::tensor::{Activation, Program};

use super::blocks::{Blocks, EXACT_ROWS, GEMM_ROWS, MANY_ROWS, most_groups};
use super::inputs::Inputs;
use super::many::Many;
use super::plan::{Dealt, Plan};
use super::tiles::Layout;
use super::{CudaWeight, exact_grid, gate_of};
use crate::driver::{Address, Arguments, Grid, Kernel};
use crate::memory::Block;
use crate::moe::CudaAssignment;
use crate::rows;
use crate::tensor::{CudaTensor, Queue};

/// Where the rows of each expert are.
pub(super) struct Places {
    experts: usize,
    pairs: usize,
    /// `[experts + 1]`, in rows.
    offsets: Address,
    /// `[2, experts + 1]`: the same in groups of 8 and in blocks of a kernel, where each expert has its own.
    firsts: Block,
    /// The row of x that each row is, if it is another.
    tokens: Address,
}

impl Places {
    /// For a kernel whose blocks have so many rows.
    fn new(queue: &Queue, assignment: &CudaAssignment, tokens: Address, rows_of_block: usize) -> Self {
        let CudaAssignment { experts, filled_pairs: pairs, ref offsets, .. } = *assignment;
        let firsts = queue.block(2 * 4 * (experts + 1));
        let arguments = Arguments::new().address(firsts.at).address(offsets.at);
        let grid = Grid::flat(2, experts.next_multiple_of(32).min(1024)).with_shared(8 * experts);
        let kernel = Kernel { file: "linear_inputs", name: "linear_group_first" };
        queue.launch(kernel, grid, arguments.count(experts).count(rows_of_block));
        Places { experts, pairs, offsets: offsets.at, firsts, tokens }
    }

    /// As many groups of 8 as there can be.
    pub fn most_groups(&self) -> usize {
        most_groups(self.pairs, self.experts, 8)
    }

    /// As `kernels/linear_inputs.cu` is told it.
    pub fn source(&self, arguments: Arguments) -> Arguments {
        arguments.count(self.experts).address(self.offsets).address(self.firsts.at).address(self.tokens)
    }

    /// Whose rows blocks have, as layers are told it.
    fn blocks(&self, arguments: Arguments) -> Arguments {
        arguments.address(self.firsts.at + 4 * (self.experts as u64 + 1)).count(self.experts)
    }
}

/// Layers of experts that are to be computed.
pub(crate) struct Grouped<'a> {
    pub x: &'a CudaTensor,
    /// Whether rows of x are tokens, which experts share; or each expert has its own.
    pub of_tokens: bool,
    pub assignment: &'a CudaAssignment,
    pub weights: &'a [CudaWeight],
    pub program: Option<&'a Program>,
    /// What puts the halves of the outputs together, if anything does.
    pub gate: Option<Activation>,
}

/// Each expert's layer on its rows: on those of x that its tokens are, or on its own.
///
/// # Shapes
/// `x [tokens, k]` or `[pairs, k]` → `[nodes · pairs, n]`, or half as many columns
pub(crate) fn grouped(queue: &Queue, layers: Grouped<'_>) -> CudaTensor {
    let Grouped { x, of_tokens, assignment, weights, program, gate } = layers;
    let CudaAssignment { pairs: rows, filled_pairs: pairs, .. } = *assignment;
    let nodes = program.map_or(1, Program::num_nodes);
    assert_eq!(weights.len(), assignment.experts, "a weight for each expert");
    assert_eq!(x.rows, if of_tokens { assignment.tokens } else { rows }, "rows of an expert's layer");
    let Some(first) = weights.first() else { return queue.tensor_of(nodes, rows, pairs, 0) };
    let is_alike = |w: &CudaWeight| (w.n, w.k, w.spec) == (first.n, first.k, first.spec);
    assert!(x.cols == first.k && weights.iter().all(is_alike), "weights of experts are alike");
    if let Some(activation) = gate.filter(|_| !first.gates_lie_in_panels()) {
        return rows::gated(queue, &grouped(queue, Grouped { gate: None, ..layers }), activation);
    }
    let y = queue.tensor_of(nodes, rows, pairs, if gate.is_some() { first.n / 2 } else { first.n });
    if y.len() == 0 {
        return y;
    }
    let tokens = if of_tokens { assignment.pair_token.at } else { 0 };
    let experts = first.experts(queue, weights);
    let to = Arguments::new().address(y.at()).address(experts.at).address(assignment.offsets.at);
    match &*first.plan(queue, program) {
        Plan::Exact { items, words } => {
            let places = Places::new(queue, assignment, tokens, EXACT_ROWS);
            let arguments = places
                .blocks(to)
                .address(tokens)
                .address(x.at())
                .count(pairs)
                .count(first.n)
                .count(first.k)
                .count(*items)
                .address(words.at)
                .address(words.at + 4 * *items as u64);
            let kernel = Kernel { file: "linear_exact", name: "linear_exact_experts" };
            let down = most_groups(pairs, weights.len(), EXACT_ROWS);
            queue.launch(kernel, exact_grid(first.n, down), arguments);
        }
        Plan::Tiled { alone, .. } if pairs > MANY_ROWS * weights.len() => {
            many(queue, &layers, tokens, to, alone);
        }
        Plan::Tiled { shared, .. } => few(queue, &layers, tokens, to, shared),
    }
    y
}

/// Few rows per expert, on average.
fn few(queue: &Queue, layers: &Grouped<'_>, tokens: Address, to: Arguments, plan: &Dealt) {
    let Grouped { assignment, weights, gate, .. } = *layers;
    let (n, layout) = (weights[0].n, Layout::new(weights[0].spec, weights[0].k));
    let (pairs, experts) = (assignment.filled_pairs, Some(weights.len()));
    let ordered = Blocks::ordered(layout, n, pairs, experts).filter(|_| layers.program.is_none());
    let dealt = ordered.is_none().then(|| plan.addresses());
    let blocks = ordered.unwrap_or_else(|| Blocks::few(queue, layout, n, pairs, &plan.deal, experts));
    let places = Places::new(queue, assignment, tokens, blocks.rows);
    let (arguments, _inputs) = operands(queue, layers, layout, &places, to);
    let arguments = dealt.into_iter().flatten().fold(arguments, Arguments::address);
    queue.launch(blocks.kernel, blocks.grid, arguments.count(gate_of(gate)));
}

/// Many rows per expert, on average.
fn many(queue: &Queue, layers: &Grouped<'_>, tokens: Address, to: Arguments, plan: &Dealt) {
    let Grouped { assignment, weights, gate, .. } = *layers;
    let (n, layout) = (weights[0].n, Layout::new(weights[0].spec, weights[0].k));
    let places = Places::new(queue, assignment, tokens, GEMM_ROWS);
    let most_blocks = most_groups(places.pairs, weights.len(), GEMM_ROWS);
    let many = Many::new(queue, layout, n, most_blocks, &plan.deal, true);
    let [_, items, _] = plan.addresses();
    let (arguments, _inputs) = operands(queue, layers, layout, &places, to);
    let arguments = many.slots(arguments.address(items).count(plan.deal.num_items()));
    queue.launch(many.kernel, many.grid, arguments.count(gate_of(gate)));
}

/// What all kernels are told first, and what of it is to stay until the launch.
fn operands(
    queue: &Queue,
    layers: &Grouped<'_>,
    layout: Layout,
    places: &Places,
    to: Arguments,
) -> (Arguments, Inputs) {
    let inputs = Inputs::new(queue, layers.x, layers.x.filled_rows(), layout, Some(places));
    let arguments = places.blocks(to.address(places.firsts.at));
    let arguments = inputs.addresses().into_iter().fold(arguments, Arguments::address);
    (arguments.count(layout.tiles()).count(places.pairs).count(layers.weights[0].n), inputs)
}
