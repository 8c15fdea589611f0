//! Norms, rotary positions, activations, and rows and columns that are put elsewhere.

use std::cell::RefCell;
use std::ops::Range;

use tensor::{Activation, HeadSpan, NormKind, NormSpec, RopeSpec, RowNorm};

use crate::driver::{Address, Arguments, Grid, Kernel};
use crate::memory::Block;
use crate::step::{CudaStep, KnownLists};
use crate::tensor::{CudaTensor, Queue};

const fn elements(name: &'static str) -> Kernel {
    Kernel { file: "elements", name }
}

/// Lists of frequencies that stay on the GPU.
const MOST_KNOWN: usize = 8;
/// Threads of a block that norms a row.
const NORM_THREADS: usize = 256;

/// A norm's arguments of a kernel. Without one, its weights are nowhere.
pub(crate) fn norm_of(arguments: Arguments, norm: Option<RowNorm<'_, CudaTensor>>, cols: usize) -> Arguments {
    let Some(RowNorm { weight, bias, spec }) = norm else {
        return arguments.address(0).address(0).count(0).float(0.0).float(0.0);
    };
    assert_eq!(weight.cols, cols, "a norm has a weight per column");
    let (is_layer, offset) = kind_of(spec);
    let bias = bias.map_or(0, CudaTensor::vector);
    arguments.address(weight.vector()).address(bias).count(is_layer).float(offset).float(spec.eps)
}

/// Whether a norm takes the mean off, and what it adds to weights.
pub(crate) fn kind_of(spec: NormSpec) -> (usize, f32) {
    match spec.kind {
        NormKind::Rms { weight_offset } => (0, weight_offset),
        NormKind::Layer => (1, 0.0),
    }
}

/// `norm(x)`; or, with `y`, `x += post(y)` and then the norm of that.
pub(crate) fn add_norm(
    queue: &Queue,
    x: &CudaTensor,
    y: Option<&CudaTensor>,
    post: Option<RowNorm<'_, CudaTensor>>,
    norm: RowNorm<'_, CudaTensor>,
) -> CudaTensor {
    let out = queue.tensor_like(x, x.cols);
    assert!(y.is_none_or(|y| [y.rows, y.cols] == [x.rows, x.cols]), "add_norm: shapes of x and y");
    let arguments = Arguments::new().address(x.at()).address(y.map_or(0, CudaTensor::at)).address(out.at());
    let arguments = norm_of(arguments.count(x.cols), Some(norm), x.cols);
    let arguments = norm_of(arguments, post, x.cols);
    let kernel = Kernel { file: "norm", name: "norm_rows" };
    queue.launch(kernel, Grid::flat(x.filled_rows(), NORM_THREADS).with_shared(4 * x.cols), arguments);
    out
}

pub(crate) fn head_norm(queue: &Queue, x: &CudaTensor, span: HeadSpan, weight: &CudaTensor, spec: NormSpec) {
    assert_eq!(weight.cols, span.head_dim, "head_norm: a weight per element of a head");
    let (is_layer, offset) = kind_of(spec);
    let arguments = at_heads(Arguments::new().address(x.at()), x, span)
        .address(weight.vector())
        .count(is_layer)
        .float(offset)
        .float(spec.eps);
    let warps = NORM_THREADS / 32;
    let grid = Grid::flat((x.filled_rows() * span.heads).div_ceil(warps), NORM_THREADS);
    queue.launch(Kernel { file: "norm", name: "norm_heads" }, grid, arguments);
}

fn at_heads(arguments: Arguments, x: &CudaTensor, span: HeadSpan) -> Arguments {
    assert!(span.first_col + span.heads * span.head_dim <= x.cols, "heads lie in the columns of a matrix");
    arguments
        .count(x.filled_rows())
        .count(x.cols)
        .count(span.first_col)
        .count(span.heads)
        .count(span.head_dim)
}

/// Frequencies that are on the GPU already: those of a model are the same in every step.
#[derive(Default)]
pub(crate) struct Frequencies(RefCell<Vec<(Vec<f32>, Block)>>);

impl Frequencies {
    fn address(&self, queue: &Queue, frequencies: &[f32]) -> Address {
        let mut known = self.0.borrow_mut();
        if let Some((_, block)) = known.iter().find(|(of, _)| of == frequencies) {
            return block.at;
        }
        let block = queue.numbers(frequencies.iter().map(|f| f.to_bits()));
        let at = block.at;
        // After a fault nothing was written, and nothing is launched.
        if queue.0.is_sound() {
            // More than any model has: theirs seem to change from step to step.
            if known.len() == MOST_KNOWN {
                known.clear();
            }
            known.push((frequencies.to_vec(), block));
        }
        at
    }
}

/// For the rows of a step.
pub(crate) fn rope_table(queue: &Queue, known: &Frequencies, step: &CudaStep, rope: &RopeSpec) -> CudaTensor {
    let pairs = rope.inv_freq.len();
    let table = queue.tensor(step.rows, 2 * pairs);
    let rows = table.filled_rows();
    let frequencies = known.address(queue, &rope.inv_freq);
    let arguments = Arguments::new()
        .address(table.at())
        .address(step.positions)
        .address(frequencies)
        .count(rows)
        .count(pairs);
    queue.launch(Kernel { file: "rope", name: "rope_table" }, queue.over_each(rows * pairs), arguments);
    table
}

pub(crate) fn rope(queue: &Queue, x: &CudaTensor, span: HeadSpan, table: &CudaTensor) {
    assert_eq!(x.rows, table.rows, "rope: rows of x and of the table");
    let pairs = table.cols / 2;
    let arguments = at_heads(Arguments::new().address(x.at()).address(table.at()), x, span).count(pairs);
    let grid = queue.over_each(x.filled_rows() * span.heads * pairs);
    queue.launch(Kernel { file: "rope", name: "rope_rotate" }, grid, arguments);
}

/// As `kernels/math.cuh` counts them.
pub(crate) fn number_of(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::GeluErf => 2,
        Activation::Relu => 3,
    }
}

pub(crate) fn gated(queue: &Queue, x: &CudaTensor, activation: Activation) -> CudaTensor {
    assert_eq!(x.cols % 2, 0, "gated: an even number of columns");
    let y = queue.tensor_like(x, x.cols / 2);
    let arguments = Arguments::new().address(y.at()).address(x.at()).long(y.filled_len()).count(y.cols);
    queue.launch(
        elements("gated"),
        queue.over_elements(y.filled_len()),
        arguments.count(number_of(activation)),
    );
    y
}

pub(crate) fn activate(queue: &Queue, x: &CudaTensor, activation: Activation) {
    let arguments = Arguments::new().address(x.at()).long(x.filled_len()).count(number_of(activation));
    queue.launch(elements("activate"), queue.over_elements(x.filled_len()), arguments);
}

pub(crate) fn add(queue: &Queue, x: &CudaTensor, y: &CudaTensor) {
    assert!(x.cols == y.cols && (y.rows == x.rows || y.rows == 1), "add: shapes of x and y");
    let arguments =
        Arguments::new().address(x.at()).address(y.at()).long(x.filled_len()).long(y.filled_len());
    queue.launch(elements("add"), queue.over_elements(x.filled_len()), arguments);
}

pub(crate) fn scale(queue: &Queue, x: &CudaTensor, by: f32) {
    let arguments = Arguments::new().address(x.at()).long(x.filled_len()).float(by);
    queue.launch(elements("scale"), queue.over_elements(x.filled_len()), arguments);
}

pub(crate) fn softcap(queue: &Queue, x: &CudaTensor, cap: f32) {
    let arguments = Arguments::new().address(x.at()).long(x.filled_len()).float(cap);
    queue.launch(elements("softcap"), queue.over_elements(x.filled_len()), arguments);
}

/// `known` has some lists of rows.
pub(crate) fn gather_rows(queue: &Queue, x: &CudaTensor, rows: &[u32], known: &KnownLists) -> CudaTensor {
    assert!(rows.iter().all(|&row| (row as usize) < x.rows), "gather_rows: a row beyond the last");
    let y = queue.tensor(rows.len(), x.cols);
    let list = match x.parts() {
        1 => known.list(queue, rows),
        _ => known.list(queue, &rows.iter().map(|&row| x.place_of(row as usize) as u32).collect::<Vec<_>>()),
    };
    let arguments = Arguments::new().address(y.at()).address(x.at()).address(list.at);
    let arguments = arguments.long(y.filled_len()).count(x.cols);
    queue.launch(elements("gather_rows"), queue.over_elements(y.filled_len()), arguments);
    y
}

pub(crate) fn gather_cols(queue: &Queue, x: &CudaTensor, cols: Range<usize>) -> CudaTensor {
    assert!(cols.end <= x.cols, "gather_cols: a column beyond the last");
    let y = queue.tensor_like(x, cols.len());
    let arguments = Arguments::new().address(y.at()).address(x.at()).long(y.filled_len());
    let arguments = arguments.count(cols.len()).count(x.cols).count(cols.start);
    queue.launch(elements("gather_cols"), queue.over_elements(y.filled_len()), arguments);
    y
}

pub(crate) fn regroup(queue: &Queue, x: &CudaTensor, rows: usize, columns: &[(u32, u32)]) -> CudaTensor {
    let y = queue.tensor(rows, columns.len());
    let first_row = |part: u32| x.place_of(part as usize * rows) as u32;
    let columns = columns.iter().flat_map(|&(part, col)| [first_row(part), col]);
    // Rows that are not there are the last one: what is behind it may be beyond x's memory.
    let columns = queue.numbers([rows.saturating_sub(1) as u32].into_iter().chain(columns));
    let arguments = Arguments::new().address(y.at()).address(x.at()).address(columns.at).long(y.filled_len());
    let arguments = arguments.count(y.cols).count(x.cols);
    queue.launch(elements("regroup"), queue.over_elements(y.filled_len()), arguments);
    y
}
