//! Weights are laid out on the GPU, by a kernel, from rows as they are stored.

use ::tensor::{DType, MatrixSource, Scales, WeightFormat, WeightSpec};

use super::bring::{Piece, What, in_pieces};
use super::tiles::{Layout, PANEL};
use crate::driver::{Arguments, Kernel};
use crate::memory::Block;
use crate::tensor::Queue;

/// A weight as kernels take it.
pub(super) struct Packed {
    /// Elements in tiles, `[panel][tile]`; in f32 `[k][n]`.
    pub elements: Block,
    /// `[panel][tile][16]`, of formats with groups; `[scale][panel][16]` where they share scales.
    pub scales: Block,
    /// Like scales; where they are shared, which of them a tile has.
    pub zeros: Block,
    /// All of them.
    pub bytes: usize,
}

impl Packed {
    /// Memory of so many bytes.
    fn new(queue: &Queue, bytes: [usize; 3]) -> Self {
        let block = |bytes: usize| if bytes > 0 { queue.exact_block(bytes) } else { queue.block(0) };
        let [elements, scales, zeros] = bytes.map(block);
        Packed { elements, scales, zeros, bytes: bytes.iter().sum() }
    }
}

/// Packs a matrix. Rows that are not stored anywhere are read and go as f32.
pub(super) fn pack(queue: &Queue, source: &dyn MatrixSource, spec: WeightSpec) -> Packed {
    let (n, k) = (source.rows(), source.cols());
    let layout = (spec.format != WeightFormat::Float(DType::F32)).then(|| Layout::new(spec, k));
    // Of a panel; of a row in f32.
    let [elements, scales, zeros] = match layout {
        None => [4 * k, 0, 0],
        Some(layout) => {
            let [scales, zeros] = layout.group_bytes();
            [layout.tile_bytes(), scales, zeros].map(|bytes| bytes * layout.tiles())
        }
    };
    let units = if layout.is_some() { n.div_ceil(PANEL) } else { n };
    let to = Packed::new(queue, [elements, scales, zeros].map(|bytes| units * bytes));
    in_pieces(queue, source, What::Values, |Piece { at: piece, rows, dtype }| {
        let (first, count) = (rows.start, rows.len());
        let number = match dtype {
            DType::F32 => 0,
            DType::BF16 => 1,
            DType::F16 => 2,
        };
        let of = |arguments: Arguments| arguments.address(piece).count(number).count(count).count(k);
        let Some(layout) = layout else {
            let arguments = of(Arguments::new().address(to.elements.at)).count(first).count(n);
            queue.launch(kernel("pack_columns"), queue.over_each(count * k), arguments);
            return;
        };
        let at = |block: &Block, bytes: usize| block.at + (first / PANEL * bytes) as u64;
        let elements = Arguments::new().address(at(&to.elements, elements));
        let grid = queue.over_each(count.div_ceil(PANEL) * layout.tiles() * 32);
        let (name, arguments) = match layout.format {
            WeightFormat::Float(dtype) => {
                let arguments = of(elements).count(layout.period).count(layout.tiles());
                ("pack_sixteen", arguments.count(usize::from(dtype == DType::F16)))
            }
            format => {
                let number = match format {
                    WeightFormat::Int8 => 3,
                    WeightFormat::Int4 => 4,
                    _ => 2,
                };
                let arguments = of(elements.address(at(&to.scales, scales)).address(at(&to.zeros, zeros)));
                ("pack_groups", arguments.count(layout.period).count(layout.tiles()).count(number))
            }
        };
        queue.launch(kernel(name), grid, arguments);
    });
    to
}

/// Packs a matrix that has elements in e4m3 and their scales already.
pub(super) fn pack_scaled(
    queue: &Queue,
    source: &dyn MatrixSource,
    spec: WeightSpec,
    scales: Scales,
) -> Packed {
    let (n, k) = (source.rows(), source.cols());
    let layout = Layout::new(spec, k);
    let (tiles, panels) = (layout.tiles(), n.div_ceil(PANEL));
    let of_panel = layout.tile_bytes() * tiles;
    let starts: Vec<usize> = spec.scale_inputs(k).iter().map(|inputs| inputs.start).collect();
    let to = Packed::new(queue, [panels * of_panel, 4 * starts.len() * panels * PANEL, 4 * tiles]);
    let scale = |output: usize, input: usize| if output < n { source.scale(output, input) } else { 0.0 };
    let of_outputs = |&input: &usize| (0..panels * PANEL).map(move |output| scale(output, input));
    let numbers: Vec<u8> = starts.iter().flat_map(of_outputs).flat_map(f32::to_le_bytes).collect();
    queue.write(to.scales.at, &numbers);
    let scale_of = (0..tiles).map(|tile| scales.of(tile) as u32);
    queue.write(to.zeros.at, &scale_of.flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    in_pieces(queue, source, What::Elements, |Piece { at: piece, rows, .. }| {
        let at = to.elements.at + (rows.start / PANEL * of_panel) as u64;
        let arguments = Arguments::new().address(at).address(piece).count(rows.len()).count(k);
        let grid = queue.over_each(rows.len().div_ceil(PANEL) * tiles * 32);
        queue.launch(kernel("pack_bytes"), grid, arguments.count(layout.period).count(tiles));
    });
    to
}

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "pack", name }
}
