//! Linear layers of experts: each on the rows of those tokens that chose it, all at once. Which rows those are is known on the
//! GPU only, so a block finds out whether there is anything for it.

use ::tensor::{Activation, Program};

use super::blocks::{Blocks, GEMM_ROWS, MANY_ROWS, in_layers};
use super::inputs::Inputs;
use super::many::Many;
use super::plan::{Dealt, Plan};
use super::tiles::Layout;
use super::{CudaWeight, exact_blocks, gate_of};
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
    /// The same in groups of 8, where each expert has its own.
    group_first: Block,
    /// The row of x that each row is, if it is another.
    tokens: Address,
}

impl Places {
    fn new(queue: &Queue, assignment: &CudaAssignment, tokens: Address) -> Self {
        let CudaAssignment { experts, filled_pairs: pairs, ref offsets, .. } = *assignment;
        Places { experts, pairs, offsets: offsets.at, group_first: first_of(queue, assignment, 8), tokens }
    }

    /// As many groups as there can be.
    pub fn most_groups(&self) -> usize {
        most_of(self.pairs, self.experts, 8)
    }

    /// As `kernels/linear_inputs.cu` is told it.
    pub fn source(&self, arguments: Arguments) -> Arguments {
        arguments.count(self.experts).address(self.offsets).address(self.group_first.at).address(self.tokens)
    }
}

/// `[experts + 1]`: the first of each expert's groups of so many rows, and their number.
fn first_of(queue: &Queue, assignment: &CudaAssignment, rows: usize) -> Block {
    let experts = assignment.experts;
    let first = queue.block(4 * (experts + 1));
    let arguments =
        Arguments::new().address(first.at).address(assignment.offsets.at).count(experts).count(rows);
    let threads = experts.next_multiple_of(32).min(1024);
    let grid = Grid::flat(1, threads).with_shared(8 * experts);
    queue.launch(Kernel { file: "linear_inputs", name: "linear_group_first" }, grid, arguments);
    first
}

/// As many groups of so many rows as experts can have together.
fn most_of(pairs: usize, experts: usize, rows: usize) -> usize {
    pairs / rows + experts.min(pairs)
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
        Plan::Tiled { shared, alone, .. } => {
            let places = Places::new(queue, assignment, tokens);
            let to = to.address(places.group_first.at);
            if pairs > MANY_ROWS * weights.len() {
                many(queue, &layers, &places, to, alone);
            } else {
                few(queue, &layers, &places, to, shared);
            }
        }
    }
    y
}

/// Few rows per expert: blocks for as many as could all be of one.
fn few(queue: &Queue, layers: &Grouped<'_>, places: &Places, to: Arguments, plan: &Dealt) {
    let Grouped { x, weights, gate, .. } = *layers;
    let (n, layout) = (weights[0].n, Layout::new(weights[0].spec, weights[0].k));
    let inputs = Inputs::new(queue, x, x.filled_rows(), layout, Some(places));
    let arguments = inputs.addresses().into_iter().fold(to, Arguments::address);
    let arguments = arguments.count(layout.tiles()).count(places.pairs).count(n);
    let experts = Some(weights.len());
    let ordered = || Blocks::ordered(layout, n, places.pairs, experts);
    let (Blocks { kernel, grid }, arguments) = match ordered().filter(|_| layers.program.is_none()) {
        Some(blocks) => (blocks, arguments),
        None => {
            let blocks = Blocks::few(queue, layout, n, places.pairs, &plan.deal, experts);
            (blocks, plan.addresses().into_iter().fold(arguments, Arguments::address))
        }
    };
    queue.launch(kernel, grid, arguments.count(gate_of(gate)));
}

/// Many rows per expert, on average: a block looks up whose rows it has.
fn many(queue: &Queue, layers: &Grouped<'_>, places: &Places, to: Arguments, plan: &Dealt) {
    let Grouped { x, assignment, weights, gate, .. } = *layers;
    let (n, layout) = (weights[0].n, Layout::new(weights[0].spec, weights[0].k));
    let inputs = Inputs::new(queue, x, x.filled_rows(), layout, Some(places));
    let block_first = first_of(queue, assignment, GEMM_ROWS);
    let most_blocks = most_of(places.pairs, weights.len(), GEMM_ROWS);
    let many = Many::new(queue, layout, n, most_blocks, &plan.deal, true);
    let [_, items, _] = plan.addresses();
    let arguments = to.address(block_first.at).count(weights.len());
    let arguments = inputs.addresses().into_iter().fold(arguments, Arguments::address);
    let arguments = arguments.count(layout.tiles()).count(places.pairs).count(n);
    let arguments = many.slots(arguments.address(items).count(plan.deal.num_items()));
    queue.launch(many.kernel, many.grid, arguments.count(gate_of(gate)));
}
