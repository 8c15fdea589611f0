//! Linear layers. Weights in f32 are summed in the order of every other device; others by tensor cores.

mod deal;
mod tiles;
mod weight;

pub use weight::CudaWeight;

use ::tensor::{DType, Program, WeightFormat};

use crate::driver::{Arguments, Grid, Kernel};
use crate::memory::Block;
use crate::tensor::{CudaTensor, Queue};

use deal::WARPS;
use tiles::{Layout, PANEL};
use weight::Dealt;

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
    let bias = bias.map_or(0, CudaTensor::vector);
    match w.spec.format {
        _ if nodes == 0 => {}
        WeightFormat::Float(DType::F32) => exact(queue, x, w, program, bias, &y),
        _ => tiled(queue, x, w, program, bias, &y),
    }
    y
}

fn exact(
    queue: &Queue,
    x: &CudaTensor,
    w: &CudaWeight,
    program: Option<&Program>,
    bias: u64,
    y: &CudaTensor,
) {
    let whole = Program::sequential(w.k);
    let program = program.unwrap_or(&whole);
    let items = program.merges.len();
    let ends = program.inputs.iter().map(|inputs| inputs.end as u32);
    let words = queue.numbers(ends.chain(program.merges.iter().copied()));
    let arguments = Arguments::new()
        .address(y.at())
        .address(w.elements.at)
        .address(x.at())
        .count(x.rows)
        .count(w.n)
        .count(w.k)
        .count(items)
        .address(words.at)
        .address(words.at + 4 * items as u64)
        .address(bias);
    let (threads, rows) = (128, 8);
    let blocks = [w.n.div_ceil(threads) as u32, x.rows.div_ceil(rows) as u32, 1];
    queue.launch(
        Kernel { file: "linear_exact", name: "linear_exact" },
        Grid { blocks, threads: threads as u32, shared: 0 },
        arguments,
    );
}

fn tiled(
    queue: &Queue,
    x: &CudaTensor,
    w: &CudaWeight,
    program: Option<&Program>,
    bias: u64,
    y: &CudaTensor,
) {
    let inputs = Inputs::new(queue, x, Layout::new(w.spec, w.k));
    let plan = w.plan(queue, program);
    match w.spec.format {
        WeightFormat::Float(dtype) if x.rows > MANY_ROWS => {
            many(queue, x.rows, w, dtype, &inputs, &plan.alone, bias, y)
        }
        _ => few(queue, x.rows, w, &inputs, &plan.shared, bias, y),
    }
}

/// Some rows: all warps share the inputs.
fn few(queue: &Queue, rows: usize, w: &CudaWeight, inputs: &Inputs, plan: &Dealt, bias: u64, y: &CudaTensor) {
    let teams = WARPS / plan.deal.sharing;
    let shared = |groups: usize| 4 * teams * plan.deal.num_left() * PANEL * PANELS * 8 * groups;
    // As few as hold all rows; fewer, if what warps leave is too much for a block's memory.
    let groups = [4, 2, 1].into_iter().find(|&groups| {
        groups == 1 || (rows > 8 * groups / 2 && shared(groups) <= queue.0.driver.shared_bytes())
    });
    let groups = groups.expect("one group fits");
    let [deal, items, merges] = plan.addresses();
    let arguments = Arguments::new()
        .address(y.at())
        .address(w.elements.at)
        .address(w.scales.at)
        .address(w.zeros.at)
        .address(inputs.elements.at)
        .address(inputs.scales.at)
        .address(inputs.sums.at)
        .count(Layout::new(w.spec, w.k).tiles())
        .count(rows)
        .count(w.n)
        .address(deal)
        .address(items)
        .address(merges)
        .address(bias);
    let blocks = [w.n.div_ceil(PANEL * PANELS * teams) as u32, rows.div_ceil(8 * groups) as u32, 1];
    let grid = Grid { blocks, threads: THREADS as u32, shared: 0 }.with_shared(shared(groups));
    queue.launch(Kernel { file: "linear", name: kernel_of(w.spec.format, groups) }, grid, arguments);
}

/// Many rows of 16 bits: blocks are large enough to use each operand often.
fn many(
    queue: &Queue,
    rows: usize,
    w: &CudaWeight,
    dtype: DType,
    inputs: &Inputs,
    plan: &Dealt,
    bias: u64,
    y: &CudaTensor,
) {
    let [_, items, _] = plan.addresses();
    let arguments = Arguments::new()
        .address(y.at())
        .address(w.elements.at)
        .address(inputs.elements.at)
        .count(Layout::new(w.spec, w.k).tiles())
        .count(rows)
        .count(w.n)
        .address(items)
        .count(plan.deal.num_items())
        .address(bias);
    let name = if dtype == DType::F16 { "gemm_half" } else { "gemm_bfloat" };
    let blocks = [w.n.div_ceil(GEMM_SIDE) as u32, rows.div_ceil(GEMM_SIDE) as u32, 1];
    let grid = Grid { blocks, threads: 128, shared: 0 }.with_shared(GEMM_SHARED);
    queue.launch(Kernel { file: "gemm", name }, grid, arguments);
}

fn kernel_of(format: WeightFormat, groups: usize) -> &'static str {
    let names = match format {
        WeightFormat::Float(DType::F32) => unreachable!("weights in f32 have no tiles"),
        WeightFormat::Float(DType::BF16) => ["linear_bfloat_8", "linear_bfloat_16", "linear_bfloat_32"],
        WeightFormat::Float(DType::F16) => ["linear_half_8", "linear_half_16", "linear_half_32"],
        WeightFormat::Fp8 => ["linear_fp8_8", "linear_fp8_16", "linear_fp8_32"],
        WeightFormat::Int8 => ["linear_int8_8", "linear_int8_16", "linear_int8_32"],
        WeightFormat::Int4 => ["linear_int4_8", "linear_int4_16", "linear_int4_32"],
    };
    names[groups.ilog2() as usize]
}

/// Activations as a format's kernels take them.
struct Inputs {
    elements: Block,
    scales: Block,
    sums: Block,
}

impl Inputs {
    fn new(queue: &Queue, x: &CudaTensor, layout: Layout) -> Self {
        let (groups, tiles) = (x.rows.div_ceil(8), layout.tiles());
        let is_whole = matches!(layout.format, WeightFormat::Int8 | WeightFormat::Int4);
        if is_whole {
            let threads = groups * tiles * 8;
            let inputs = Inputs {
                elements: queue.block(threads * layout.width),
                scales: queue.block(threads * 4),
                sums: queue.block(threads * 4),
            };
            let arguments = Arguments::new()
                .address(inputs.elements.at)
                .address(inputs.scales.at)
                .address(inputs.sums.at)
                .address(x.at())
                .count(x.rows)
                .count(layout.k)
                .count(layout.period)
                .count(tiles);
            let kernel = Kernel { file: "linear_inputs", name: "linear_quantize" };
            queue.launch(kernel, queue.over_each(threads), arguments);
            return inputs;
        }
        // Tiles of 16 inputs, whatever those of the weights are.
        let small = tiles * layout.width / 16;
        let threads = groups * small * 32;
        let inputs =
            Inputs { elements: queue.block(threads * 8), scales: queue.block(0), sums: queue.block(0) };
        let is_half = layout.format == WeightFormat::Float(DType::F16);
        let arguments = Arguments::new()
            .address(inputs.elements.at)
            .address(x.at())
            .count(x.rows)
            .count(layout.k)
            .count(layout.period)
            .count(layout.width)
            .count(small)
            .count(usize::from(is_half));
        let kernel = Kernel { file: "linear_inputs", name: "linear_round" };
        queue.launch(kernel, queue.over_each(threads), arguments);
        inputs
    }
}

/// Rows of a weight, widened.
pub(crate) fn embed(queue: &Queue, w: &CudaWeight, rows: &[u32]) -> CudaTensor {
    assert!(rows.iter().all(|&row| (row as usize) < w.n), "embed: a row beyond the last");
    let y = queue.tensor(rows.len(), w.k);
    let ids = queue.numbers(rows.iter().copied());
    let arguments = Arguments::new().address(y.at()).address(ids.at).count(rows.len()).count(w.k);
    let grid = queue.over_each(y.len());
    if w.spec.format == WeightFormat::Float(DType::F32) {
        let kernel = Kernel { file: "embed", name: "embed_exact" };
        queue.launch(kernel, grid, arguments.address(w.elements.at).count(w.n));
        return y;
    }
    let layout = Layout::new(w.spec, w.k);
    let format = match layout.format {
        WeightFormat::Float(DType::F16) => 0,
        WeightFormat::Float(_) => 1,
        WeightFormat::Fp8 => 2,
        WeightFormat::Int8 => 3,
        WeightFormat::Int4 => 4,
    };
    let arguments = arguments
        .address(w.elements.at)
        .address(w.scales.at)
        .address(w.zeros.at)
        .count(layout.tiles())
        .count(layout.period)
        .count(layout.width)
        .count(format);
    queue.launch(Kernel { file: "embed", name: "embed_tiles" }, grid, arguments);
    y
}
