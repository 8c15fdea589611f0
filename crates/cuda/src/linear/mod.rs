//! Linear layers. Weights in f32 are summed in the order of every other device; others by tensor cores.

mod blocks;
mod bring;
mod deal;
mod embed;
mod experts;
mod fast;
mod inputs;
mod many;
mod pack;
mod plan;
mod tiles;
mod weight;

pub(crate) use embed::embed;
pub(crate) use experts::{Grouped, grouped};
pub(crate) use fast::{Fast, library_rate};
pub use plan::MOST_HEADS;
pub use weight::CudaWeight;

use ::tensor::{Activation, DType, MatrixSource, Program, WeightFormat, WeightSpec};

use crate::driver::{Address, Arguments, Grid, Kernel};
use crate::rows;
use crate::tensor::{CudaTensor, Queue};

use blocks::{Blocks, EXACT_ROWS, GEMM_ROWS, MANY_ROWS};
use inputs::Inputs;
use many::Many;
use plan::{Dealt, Plan};
use tiles::{Layout, PANEL};

/// Packs a weight, and has the kernels at hand that its layers will need.
pub(crate) fn pack(
    queue: &Queue,
    fast: Option<&Fast>,
    source: &dyn MatrixSource,
    spec: WeightSpec,
) -> CudaWeight {
    let mut files = blocks::files_of(spec.format);
    files.extend(fast.and_then(|fast| fast.files_of(spec.format)));
    queue.prepare(&files);
    CudaWeight::pack(queue, source, spec)
}

/// `x · wᵀ + bias`, or the nodes of a program.
pub(crate) fn linear(
    queue: &Queue,
    fast: Option<&Fast>,
    x: &CudaTensor,
    w: &CudaWeight,
    program: Option<&Program>,
    bias: Option<&CudaTensor>,
) -> CudaTensor {
    assert!(program.is_none_or(|program| program.num_inputs() == w.k), "a program of the weight's inputs");
    let nodes = program.map_or(1, Program::num_nodes);
    assert!(x.parts() == 1, "a linear layer of one matrix");
    let rows = x.filled_rows();
    let y = queue.tensor_of(nodes, x.rows, rows, w.n);
    Layer { queue, x, rows, w, bias, y: &y, gate: None }.compute(fast, program);
    y
}

/// `activation(gate) · up` of the two halves of `x · wᵀ + bias`.
pub(crate) fn gated(
    queue: &Queue,
    fast: Option<&Fast>,
    x: &CudaTensor,
    w: &CudaWeight,
    bias: Option<&CudaTensor>,
    activation: Activation,
) -> CudaTensor {
    if !w.gates_lie_in_panels() || fast.is_some_and(|fast| fast.takes_library(w, x.filled_rows())) {
        return rows::gated(queue, &linear(queue, fast, x, w, None, bias), activation);
    }
    let y = queue.tensor_like(x, w.n / 2);
    let gate = Some(activation);
    Layer { queue, x, rows: x.filled_rows(), w, bias, y: &y, gate }.compute(fast, None);
    y
}

/// What kernels are told of two halves that are put together, or not.
fn gate_of(activation: Option<Activation>) -> usize {
    activation.map_or(0, |activation| 1 + rows::number_of(activation))
}

impl CudaWeight {
    /// Whether kernels can put together what the upper half of the outputs gives and what the lower half gives.
    fn gates_lie_in_panels(&self) -> bool {
        self.spec.format != WeightFormat::Float(DType::F32) && self.n.is_multiple_of(2 * PANEL)
    }
}

/// A layer that is to be computed.
struct Layer<'a> {
    queue: &'a Queue,
    x: &'a CudaTensor,
    rows: usize,
    w: &'a CudaWeight,
    bias: Option<&'a CudaTensor>,
    y: &'a CudaTensor,
    gate: Option<Activation>,
}

impl Layer<'_> {
    fn compute(self, fast: Option<&Fast>, program: Option<&Program>) {
        assert_eq!(self.x.cols, self.w.k, "a linear layer of {} inputs", self.w.k);
        if self.y.len() == 0 {
            return;
        }
        match &*self.w.plan(self.queue, program) {
            Plan::Exact { items, words } => self.exact(*items, words.at),
            Plan::Tiled { nodes, .. } if fast.is_some_and(|fast| fast.compute(&self, nodes)) => {}
            Plan::Tiled { alone, .. } if self.rows > MANY_ROWS => self.many(alone),
            Plan::Tiled { shared, .. } => self.few(shared, program.is_some()),
        }
    }

    fn exact(self, items: usize, words: Address) {
        let Layer { queue, x, rows, w, y, .. } = self;
        let arguments = Arguments::new()
            .address(y.at())
            .address(w.elements.at)
            .address(x.at())
            .count(rows)
            .count(w.n)
            .count(w.k)
            .count(items)
            .address(words)
            .address(words + 4 * items as u64)
            .address(self.bias());
        let kernel = Kernel { file: "linear_exact", name: "linear_exact" };
        queue.launch(kernel, exact_grid(w.n, rows.div_ceil(EXACT_ROWS)), arguments);
    }

    fn few(self, plan: &Dealt, has_tree: bool) {
        let layout = Layout::new(self.w.spec, self.w.k);
        let inputs = Inputs::new(self.queue, self.x, self.rows, layout, None);
        let operands = self.operands(layout, &inputs);
        let ordered = || Blocks::ordered(layout, self.w.n, self.rows, None);
        let (Blocks { kernel, grid, .. }, arguments) = match ordered().filter(|_| !has_tree) {
            Some(blocks) => (blocks, operands),
            None => {
                let blocks = Blocks::few(self.queue, layout, self.w.n, self.rows, &plan.deal, None);
                (blocks, plan.addresses().into_iter().fold(operands, Arguments::address))
            }
        };
        self.queue.launch(kernel, grid, arguments.address(self.bias()).count(gate_of(self.gate)));
    }

    fn many(self, plan: &Dealt) {
        let layout = Layout::new(self.w.spec, self.w.k);
        let inputs = Inputs::new(self.queue, self.x, self.rows, layout, None);
        let row_blocks = self.rows.div_ceil(GEMM_ROWS);
        let many = Many::new(self.queue, layout, self.w.n, row_blocks, &plan.deal, false);
        let [_, items, _] = plan.addresses();
        let arguments = self.operands(layout, &inputs).address(items).count(plan.deal.num_items());
        let arguments = many.slots(arguments).address(self.bias()).count(gate_of(self.gate));
        self.queue.launch(many.kernel, many.grid, arguments);
    }

    fn bias(&self) -> Address {
        self.bias.map_or(0, CudaTensor::vector)
    }

    /// What all kernels are told first.
    fn operands(&self, layout: Layout, inputs: &Inputs) -> Arguments {
        let Layer { rows, w, y, .. } = self;
        let weights = [w.elements.at, w.scales.at, w.zeros.at];
        let addresses = [y.at()].into_iter().chain(weights).chain(inputs.addresses());
        let arguments = addresses.fold(Arguments::new(), Arguments::address);
        arguments.count(layout.tiles()).count(*rows).count(w.n)
    }
}

/// A thread per output and block of rows.
fn exact_grid(n: usize, row_blocks: usize) -> Grid {
    let threads = 128;
    Grid::plane(n.div_ceil(threads), row_blocks, threads)
}
