//! Linear layers. Weights in f32 are summed in the order of every other device; others by tensor cores.

mod deal;
mod embed;
mod experts;
mod inputs;
mod plan;
mod tiles;
mod weight;

pub(crate) use embed::embed;
pub(crate) use experts::grouped;
pub use weight::CudaWeight;

use ::tensor::{DType, Program, WeightFormat};

use crate::driver::{Address, Arguments, Grid, Kernel};
use crate::tensor::{CudaTensor, Queue};

use deal::{Deal, WARPS};
use inputs::Inputs;
use plan::{Dealt, Plan};
use tiles::{Layout, PANEL};

/// Panels of a warp.
const PANELS: usize = 2;
/// Threads of a block that multiplies.
const THREADS: usize = 32 * WARPS;

/// Up to so many rows a layer is limited by its weights' bytes.
const MANY_ROWS: usize = 64;
/// Outputs, and rows, of a block of `gemm.cu`.
const GEMM_SIDE: usize = 128;
/// Shared memory of such a block: four stages of two tiles of 8 panels and 16 groups.
const GEMM_SHARED: usize = 4 * 2 * (8 * 512 + 16 * 256);

/// `x · wᵀ + bias`, or the nodes of a program.
pub(crate) fn linear(
    queue: &Queue,
    x: &CudaTensor,
    w: &CudaWeight,
    program: Option<&Program>,
    bias: Option<&CudaTensor>,
) -> CudaTensor {
    assert_eq!(x.cols, w.k, "a linear layer of {} inputs", w.k);
    assert!(program.is_none_or(|program| program.num_inputs() == w.k), "a program of the weight's inputs");
    let nodes = program.map_or(1, Program::num_nodes);
    let y = queue.tensor(nodes * x.rows, w.n);
    if y.len() == 0 {
        return y;
    }
    // Of several nodes, those that follow lie behind the rows that are there.
    let rows = if nodes == 1 { x.filled_rows() } else { x.rows };
    let layer = Layer { queue, x, rows, w, bias: bias.map_or(0, CudaTensor::vector), y: &y };
    match (&*w.plan(queue, program), w.spec.format) {
        (Plan::Exact { items, words }, _) => layer.exact(*items, words.at),
        (Plan::Tiled { alone, .. }, WeightFormat::Float(dtype)) if rows > MANY_ROWS => {
            layer.many(dtype, alone)
        }
        (Plan::Tiled { shared, .. }, _) => layer.few(shared),
    }
    y
}

/// A layer that is to be computed.
struct Layer<'a> {
    queue: &'a Queue,
    x: &'a CudaTensor,
    rows: usize,
    w: &'a CudaWeight,
    bias: Address,
    y: &'a CudaTensor,
}

impl Layer<'_> {
    fn exact(self, items: usize, words: Address) {
        let Layer { queue, x, rows, w, bias, y } = self;
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
            .address(bias);
        let kernel = Kernel { file: "linear_exact", name: "linear_exact" };
        queue.launch(kernel, exact_blocks(w.n, rows), arguments);
    }

    /// Some rows of any format: warps of a block share the inputs.
    fn few(self, plan: &Dealt) {
        let Layer { queue, x, rows, w, bias, y } = self;
        let layout = Layout::new(w.spec, w.k);
        let inputs = Inputs::new(queue, x, rows, layout, None);
        let shape = Shape::new(queue, w.n, rows, &plan.deal);
        let ([elements, scales, sums], [deal, items, merges]) = (inputs.addresses(), plan.addresses());
        let arguments = Arguments::new()
            .address(y.at())
            .address(w.elements.at)
            .address(w.scales.at)
            .address(w.zeros.at)
            .address(elements)
            .address(scales)
            .address(sums)
            .count(layout.tiles())
            .count(rows)
            .count(w.n)
            .address(deal)
            .address(items)
            .address(merges)
            .address(bias);
        let kernel = Kernel { file: "linear", name: kernel_of(w.spec.format, shape.groups, false) };
        queue.launch(kernel, shape.grid, arguments);
    }

    /// Many rows of 16 bits: blocks are large enough to use each operand often.
    fn many(self, dtype: DType, plan: &Dealt) {
        let Layer { queue, x, rows, w, bias, y } = self;
        let layout = Layout::new(w.spec, w.k);
        let inputs = Inputs::new(queue, x, rows, layout, None);
        let [_, items, _] = plan.addresses();
        let arguments = Arguments::new()
            .address(y.at())
            .address(w.elements.at)
            .address(inputs.elements())
            .count(layout.tiles())
            .count(rows)
            .count(w.n)
            .address(items)
            .count(plan.deal.num_items())
            .address(bias);
        let name = if dtype == DType::F16 { "gemm_half" } else { "gemm_bfloat" };
        let grid = Grid::plane(w.n.div_ceil(GEMM_SIDE), rows.div_ceil(GEMM_SIDE), 128);
        queue.launch(Kernel { file: "gemm", name }, grid.with_shared(GEMM_SHARED), arguments);
    }
}

/// A thread per output and eight rows.
fn exact_blocks(n: usize, rows: usize) -> Grid {
    let (threads, rows_of_block) = (128, 8);
    Grid::plane(n.div_ceil(threads), rows.div_ceil(rows_of_block), threads)
}

/// How `kernels/linear.cu` is launched.
struct Shape {
    grid: Grid,
    /// Groups of 8 rows of a block.
    groups: usize,
}

impl Shape {
    fn new(queue: &Queue, n: usize, rows: usize, deal: &Deal) -> Self {
        let teams = WARPS / deal.sharing;
        let shared = |groups: usize| 4 * teams * deal.num_left() * PANEL * PANELS * 8 * groups;
        // As few as hold all rows; fewer, if what warps leave is too much for a block's memory.
        let fits = |groups: usize| rows > 8 * groups / 2 && shared(groups) <= queue.0.driver.shared_bytes();
        let groups = [4, 2].into_iter().find(|&groups| fits(groups)).unwrap_or(1);
        let grid = Grid::plane(n.div_ceil(PANEL * PANELS * teams), rows.div_ceil(8 * groups), THREADS);
        Shape { grid: grid.with_shared(shared(groups)), groups }
    }
}

/// The kernel of a format, for blocks of so many groups of rows.
fn kernel_of(format: WeightFormat, groups: usize, of_experts: bool) -> &'static str {
    macro_rules! names {
        ($format:literal) => {
            [
                [concat!($format, "_8"), concat!($format, "_16"), concat!($format, "_32")],
                [
                    concat!($format, "_8_experts"),
                    concat!($format, "_16_experts"),
                    concat!($format, "_32_experts"),
                ],
            ]
        };
    }
    let names = match format {
        WeightFormat::Float(DType::F32) => unreachable!("weights in f32 have no tiles"),
        WeightFormat::Float(DType::BF16) => names!("linear_bfloat"),
        WeightFormat::Float(DType::F16) => names!("linear_half"),
        WeightFormat::Fp8 => names!("linear_fp8"),
        WeightFormat::Int8 => names!("linear_int8"),
        WeightFormat::Int4 => names!("linear_int4"),
    };
    names[usize::from(of_experts)][groups.ilog2() as usize]
}
