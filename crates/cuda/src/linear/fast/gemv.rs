//! Few rows on CUDA cores.

use ::tensor::{DType, WeightFormat};

use super::super::inputs::Inputs;
use super::super::plan::Nodes;
use super::super::tiles::{Layout, PANEL};
use super::super::{Layer, gate_of};
use super::lies_straight;
use crate::driver::{Arguments, Grid, Kernel};

/// Panels of a block.
const PANELS: usize = 2;

/// The most rows. With those of int4 more is done per byte; e4m3 with scales of checkpoints is widened faster for tensor cores.
fn most_rows(format: WeightFormat) -> usize {
    match format {
        WeightFormat::Int4 | WeightFormat::Scaled(_) => 4,
        _ => 8,
    }
}

/// Whether a layer is computed here: lanes read whole tiles of activations.
pub(super) fn takes(layer: &Layer<'_>) -> bool {
    let Layer { rows, w, .. } = *layer;
    let format = w.spec.format;
    let is_whole = || lies_straight(w) && w.k.is_multiple_of(Layout::new(w.spec, w.k).width);
    format != WeightFormat::Float(DType::F32) && rows <= most_rows(format) && is_whole()
}

pub(super) fn compute(layer: &Layer<'_>, nodes: &Nodes) {
    let Layer { queue, x, rows, w, y, gate, .. } = *layer;
    let layout = Layout::new(w.spec, w.k);
    let quantised = match layout.format {
        WeightFormat::Int8 | WeightFormat::Int4 => Some(Inputs::new(queue, x, rows, layout, None)),
        WeightFormat::Float(_) | WeightFormat::Fp8 | WeightFormat::Scaled(_) => None,
    };
    let [inputs, scales, _] = quantised.as_ref().map_or([x.at(), 0, 0], Inputs::addresses);
    let arguments = Arguments::new()
        .address(y.at())
        .address(w.elements.at)
        .address(w.scales.at)
        .address(w.zeros.at)
        .address(inputs)
        .address(scales)
        .count(layout.tiles())
        .count(rows)
        .count(w.k)
        .count(w.n)
        .address(nodes.at())
        .address(layer.bias())
        .count(gate_of(gate));
    let grid = Grid::plane(w.n.div_ceil(PANEL * PANELS), nodes.tiles.len() - 1, 256);
    queue.launch(kernel_of(layout.format, rows), grid, arguments);
}

/// The file of a format's kernels, if it has any.
pub(super) fn file_of(format: WeightFormat) -> Option<&'static str> {
    (format != WeightFormat::Float(DType::F32)).then(|| kernel_of(format, 1).file)
}

fn kernel_of(format: WeightFormat, rows: usize) -> Kernel {
    macro_rules! kernels {
        ($format:literal) => {
            (
                concat!("gemv_", $format),
                [
                    concat!("gemv_", $format, "_1"),
                    concat!("gemv_", $format, "_2"),
                    concat!("gemv_", $format, "_4"),
                    concat!("gemv_", $format, "_8"),
                ],
            )
        };
    }
    let (file, names) = match format {
        WeightFormat::Float(DType::F32) => unreachable!("weights in f32 have no tiles"),
        WeightFormat::Float(DType::BF16) => kernels!("bfloat"),
        WeightFormat::Float(DType::F16) => kernels!("half"),
        WeightFormat::Fp8 => kernels!("fp8"),
        WeightFormat::Scaled(_) => kernels!("scaled"),
        WeightFormat::Int8 => kernels!("int8"),
        WeightFormat::Int4 => kernels!("int4"),
    };
    Kernel { file, name: names[rows.next_power_of_two().ilog2() as usize] }
}
