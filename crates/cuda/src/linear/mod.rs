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

/// Panels of a warp.
const PANELS: usize = 2;
/// Threads of a block that multiplies.
const THREADS: usize = 32 * WARPS;

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
    let layout = Layout::new(w.spec, w.k);
    let plan = w.plan(queue, program);
    let inputs = Inputs::new(queue, x, layout);
    let teams = WARPS / plan.deal.sharing;
    let shared = |groups: usize| 4 * teams * plan.deal.num_left() * PANEL * PANELS * 8 * groups;
    // As few as hold all rows; fewer, if what warps leave is too much for a block's memory.
    let groups = [4, 2, 1].into_iter().find(|&groups| {
        groups == 1 || (x.rows > 8 * groups / 2 && shared(groups) <= queue.0.driver.shared_bytes())
    });
    let groups = groups.expect("one group fits");
    let at = |offset: usize| plan.words.at + offset as u64;
    let arguments = Arguments::new()
        .address(y.at())
        .address(w.elements.at)
        .address(w.scales.at)
        .address(w.zeros.at)
        .address(inputs.elements.at)
        .address(inputs.scales.at)
        .address(inputs.sums.at)
        .count(layout.tiles())
        .count(x.rows)
        .count(w.n)
        .address(at(0))
        .address(at(plan.offsets[0]))
        .address(at(plan.offsets[1]))
        .address(bias);
    let blocks = [w.n.div_ceil(PANEL * PANELS * teams) as u32, x.rows.div_ceil(8 * groups) as u32, 1];
    let grid = Grid { blocks, threads: THREADS as u32, shared: 0 }.with_shared(shared(groups));
    queue.launch(Kernel { file: "linear", name: kernel_of(w.spec.format, groups) }, grid, arguments);
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
