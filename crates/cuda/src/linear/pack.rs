//! Weights on their way to the GPU: rows go there as they are stored, a piece after the other, and a kernel lays them out.

use std::ops::Range;

use ::tensor::{DType, MatrixSource, Stored, WeightFormat, WeightSpec};

use super::tiles::{Layout, PANEL};
use crate::compile::in_parallel;
use crate::driver::{Arguments, Kernel};
use crate::memory::Block;
use crate::tensor::Queue;

/// So many bytes of f32 are brought to the GPU at a time, or half as many of 16 bits.
const PIECE: usize = 32 << 20;
/// Rows that one thread reads at a time.
const READ_ROWS: usize = 64;
/// Parts of fewer bytes are put together before they are written.
const SMALL: usize = 256 << 10;

/// A weight as kernels take it.
pub(super) struct Packed {
    /// Elements in tiles, `[panel][tile]`; in f32 `[k][n]`.
    pub elements: Block,
    /// `[panel][tile][16]`, of formats with groups.
    pub scales: Block,
    pub zeros: Block,
    /// All of them.
    pub bytes: usize,
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
    let block = |bytes: usize| if bytes > 0 { queue.exact_block(bytes) } else { queue.block(0) };
    let to = Packed {
        elements: block(units * elements),
        scales: block(units * scales),
        zeros: block(units * zeros),
        bytes: units * (elements + scales + zeros),
    };
    if n * k == 0 {
        return to;
    }
    let rows_at_once = (PIECE / (4 * k * PANEL)).max(1) * PANEL;
    // All that are large have the same, which the next weight takes again.
    let least = if 4 * k * n < PIECE { 0 } else { PIECE };
    let piece = queue.block((4 * k * rows_at_once.min(n)).max(least));
    for first in (0..n).step_by(rows_at_once) {
        let rows = first..n.min(first + rows_at_once);
        let count = rows.len();
        let dtype = bring(queue, source, rows, &piece);
        let number = match dtype {
            DType::F32 => 0,
            DType::BF16 => 1,
            DType::F16 => 2,
        };
        let of = |arguments: Arguments| arguments.address(piece.at).count(number).count(count).count(k);
        let Some(layout) = layout else {
            let arguments = of(Arguments::new().address(to.elements.at)).count(first).count(n);
            queue.launch(kernel("pack_columns"), queue.over_each(count * k), arguments);
            continue;
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
    }
    to
}

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "pack", name }
}

/// Brings rows to the GPU, one after the other, and says of what type they are there.
fn bring(queue: &Queue, source: &dyn MatrixSource, rows: Range<usize>, to: &Block) -> DType {
    let mut parts: Vec<Stored<'_>> = Vec::new();
    let mut next = rows.start;
    while next < rows.end {
        let Some((part, end)) = stored_together(source, next..rows.end) else {
            return bring_read(queue, source, rows, to);
        };
        if parts.first().is_some_and(|first| first.dtype != part.dtype) {
            return bring_read(queue, source, rows, to);
        }
        parts.push(part);
        next = end;
    }
    let Some(&Stored { dtype, .. }) = parts.first() else { return DType::F32 };
    let width = source.cols() * dtype.bytes();
    let (mut at, mut gathered) = (to.at, Vec::new());
    let mut write = |bytes: &[u8]| {
        queue.write(at, bytes);
        at += bytes.len() as u64;
    };
    for part in parts {
        if part.stride == width && part.bytes.len() >= SMALL {
            write(&std::mem::take(&mut gathered));
            write(part.bytes);
        } else {
            part.bytes.chunks(part.stride).for_each(|row| gathered.extend_from_slice(&row[..width]));
        }
    }
    write(&gathered);
    dtype
}

/// The first of some rows that lie together as they are stored, about as many as there are, and where they end.
fn stored_together(source: &dyn MatrixSource, rows: Range<usize>) -> Option<(Stored<'_>, usize)> {
    let mut count = rows.len();
    loop {
        let end = rows.start + count;
        if let Some(part) = source.stored(rows.start..end, 0..source.cols()) {
            return Some((part, end));
        }
        count = if count > 1 { count / 2 } else { return None };
    }
}

/// The same of rows that are not stored.
fn bring_read(queue: &Queue, source: &dyn MatrixSource, rows: Range<usize>, to: &Block) -> DType {
    let k = source.cols();
    let read = |rows: &Range<usize>| {
        let mut row = vec![0.0; k];
        let mut bytes = vec![0; 4 * k * rows.len()];
        for (output, bytes) in rows.clone().zip(bytes.chunks_exact_mut((4 * k).max(1))) {
            source.read(output, 0..k, &mut row);
            bytes.as_chunks_mut().0.iter_mut().zip(&row).for_each(|(to, x)| *to = x.to_le_bytes());
        }
        bytes
    };
    let parts: Vec<Range<usize>> =
        rows.clone().step_by(READ_ROWS).map(|first| first..rows.end.min(first + READ_ROWS)).collect();
    let mut at = to.at;
    for bytes in in_parallel(&parts, read) {
        queue.write(at, &bytes);
        at += bytes.len() as u64;
    }
    DType::F32
}
