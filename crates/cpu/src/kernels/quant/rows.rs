//! The rows that are multiplied by weights in groups: quantised where weights are whole numbers, cut into tiles and
//! interleaved.
//!
//! Of a tile of R rows are kept, for each group of 32 inputs, `[chunk 8][R][input 4]` whole numbers (as bytes, or as
//! half-words where the products want them so), R scales, and R sums that the products start from. A short group is
//! filled up with zeros. Where weights are floats after all, a tile is `[k][R]` floats.

use std::ops::Range;

use tensor::{ActivationGroup, GROUP, Groups, WeightFormat};

use super::format::{Format, RowFormat, WordsFor, with_format};
use crate::buffer::{Buffer, Disjoint};
use crate::kernels::rows::Tiles;
use crate::kernels::{Exec, grain};
use crate::simd::int::{ProductKernel, Products};
use crate::simd::{Isa, LANES, load_group};

/// Rows of some groups, tile after tile.
pub(crate) struct GroupedRows {
    elements: Buffer<u8>,
    floats: Buffer<f32>,
    scales: Buffer<f32>,
    starts: Buffer<i32>,
    per_row: PerRow,
}

/// What a row takes.
#[derive(Clone, Copy)]
struct PerRow {
    /// Bytes of elements.
    elements: usize,
    floats: usize,
    groups: usize,
}

/// Where a tile's rows lie.
#[derive(Clone, Copy)]
pub(crate) struct TileRows {
    pub(crate) elements: *const u8,
    pub(crate) floats: *const f32,
    pub(crate) scales: *const f32,
    pub(crate) starts: *const i32,
}

/// What threads see of [`GroupedRows`].
#[derive(Clone, Copy)]
pub(crate) struct RowsView<'a> {
    elements: &'a [u8],
    floats: &'a [f32],
    scales: &'a [f32],
    starts: &'a [i32],
    per_row: PerRow,
}

impl GroupedRows {
    pub(crate) fn view(&self) -> RowsView<'_> {
        RowsView {
            elements: self.elements.as_slice(),
            floats: self.floats.as_slice(),
            scales: self.scales.as_slice(),
            starts: self.starts.as_slice(),
            per_row: self.per_row,
        }
    }
}

impl RowsView<'_> {
    /// The tile of these rows.
    #[inline(always)]
    pub(crate) fn tile(&self, rows: Range<usize>) -> TileRows {
        let PerRow { elements, floats, groups } = self.per_row;
        let of = |per_row: usize| rows.start * per_row..rows.end * per_row;
        TileRows {
            elements: self.elements[of(elements)].as_ptr(),
            floats: self.floats[of(floats)].as_ptr(),
            scales: self.scales[of(groups)].as_ptr(),
            starts: self.starts[of(groups)].as_ptr(),
        }
    }

    /// Bytes that a row takes.
    pub(crate) fn bytes_per_row(&self) -> usize {
        self.per_row.elements + 4 * self.per_row.floats + 8 * self.per_row.groups
    }
}

/// Rows of the tallest tile with weights of a format.
pub(crate) fn tallest_tile(isa: Isa, format: WeightFormat) -> usize {
    struct Ask<'a>(&'a mut usize, usize);
    impl ProductKernel for Ask<'_> {
        #[inline(always)]
        fn run<V: Products>(self) {
            *self.0 = V::ROWS[self.1];
        }
    }
    let mut rows = 1;
    isa.run_products(Ask(&mut rows, with_format!(format, F => F::INDEX)));
    rows
}

/// Prepares the rows of some groups of rows for a product with weights of a format. `row_groups` are ranges of rows that
/// follow each other from 0 on, and `source(row)` is where a row lies in `x`, in rows of `k`.
pub(crate) fn prepare(
    exec: &Exec,
    x: &[f32],
    k: usize,
    (format, groups): (WeightFormat, Groups),
    row_groups: &[Range<usize>],
    source: impl Fn(usize) -> usize + Sync,
) -> GroupedRows {
    let rows = row_groups.last().map_or(0, |g| g.end);
    let row_format = with_format!(format, F => F::ROWS);
    let (isa, tallest, count) = (exec.isa, tallest_tile(exec.isa, format), groups.count());
    let per_row = match row_format {
        RowFormat::Floats => PerRow { elements: 0, floats: k, groups: 0 },
        RowFormat::Whole { words, .. } => {
            PerRow { elements: count * GROUP * element_bytes(isa, words), floats: 0, groups: count }
        }
    };
    let mut out = GroupedRows {
        elements: exec.scratch(rows * per_row.elements),
        floats: exec.scratch(rows * per_row.floats),
        scales: exec.scratch(rows * per_row.groups),
        starts: exec.scratch(rows * per_row.groups),
        per_row,
    };
    let (elements, floats) =
        (Disjoint::new(out.elements.as_mut_slice()), Disjoint::new(out.floats.as_mut_slice()));
    let (scales, starts) =
        (Disjoint::new(out.scales.as_mut_slice()), Disjoint::new(out.starts.as_mut_slice()));
    // Threads share tiles; a tile belongs to the thread that its first row falls to.
    exec.pool.split(rows, grain(2 * k).max(tallest), |part| {
        let first_group = row_groups.partition_point(|g| g.end <= part.start);
        for group in row_groups[first_group..].iter().take_while(|g| g.start < part.end) {
            let tiles = Tiles { rows: group.len(), count: group.len().div_ceil(tallest) };
            for tile in 0..tiles.count {
                let rows = group.start + tiles.start(tile)..group.start + tiles.start(tile + 1);
                if !part.contains(&rows.start) {
                    continue;
                }
                let of = |per_row: usize| rows.start * per_row..rows.end * per_row;
                // SAFETY: tiles do not overlap, and each has one first row.
                let (elements, floats, scales, starts) = unsafe {
                    (
                        elements.part(of(per_row.elements)),
                        floats.part(of(per_row.floats)),
                        scales.part(of(per_row.groups)),
                        starts.part(of(per_row.groups)),
                    )
                };
                let x = |row: usize| &x[source(rows.start + row) * k..][..k];
                match row_format {
                    RowFormat::Floats => interleave(rows.len(), x, floats),
                    RowFormat::Whole { start_factor, words } => {
                        let words = element_bytes(isa, words) == 2;
                        for row in 0..rows.len() {
                            let (x, row) = (x(row), (row, rows.len()));
                            let out = Out { elements, scales, starts, start_factor, words };
                            isa.run_products(Quantize { x, row, groups, out });
                        }
                    }
                }
            }
        }
    });
    out
}

/// Bytes of a whole number.
fn element_bytes(isa: Isa, words: WordsFor) -> usize {
    struct Ask<'a>(&'a mut usize);
    impl ProductKernel for Ask<'_> {
        #[inline(always)]
        fn run<V: Products>(self) {
            *self.0 = if V::INT8_WANTS_WORDS { 2 } else { 1 };
        }
    }
    let mut bytes = 1;
    if words == WordsFor::Int8 {
        isa.run_products(Ask(&mut bytes));
    }
    bytes
}

fn interleave<'a>(rows: usize, x: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    for row in 0..rows {
        for (x, out) in x(row).iter().zip(out.chunks_exact_mut(rows)) {
            out[row] = *x;
        }
    }
}

/// Quantises one row of a tile, group by group.
struct Quantize<'a> {
    x: &'a [f32],
    /// Which row, and of how many.
    row: (usize, usize),
    groups: Groups,
    out: Out<'a>,
}

/// Where a tile goes.
struct Out<'a> {
    elements: &'a mut [u8],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
    start_factor: i32,
    words: bool,
}

impl ProductKernel for Quantize<'_> {
    #[inline(always)]
    fn run<V: Products>(self) {
        let Quantize { x, row: (row, rows), groups, out } = self;
        for group in 0..groups.count() {
            let (q, scale) = quantize::<V>(&x[groups.inputs(group)]);
            let at = group * rows + row;
            out.scales[at] = scale;
            out.starts[at] = out.start_factor * q.iter().map(|&q| i32::from(q)).sum::<i32>();
            let chunks = q.as_chunks::<4>().0;
            if out.words {
                let tile = &mut out.elements.as_chunks_mut::<8>().0[group * 8 * rows..][..8 * rows];
                for (chunk, q) in chunks.iter().enumerate() {
                    let words = [q[0], q[2], q[1], q[3]].map(|q| i16::from(q).to_ne_bytes());
                    tile[chunk * rows + row].copy_from_slice(words.as_flattened());
                }
            } else {
                let tile = &mut out.elements.as_chunks_mut::<4>().0[group * 8 * rows..][..8 * rows];
                for (chunk, q) in chunks.iter().enumerate() {
                    tile[chunk * rows + row] = q.map(|q| q as u8);
                }
            }
        }
    }
}

/// What [`ActivationGroup`] makes of at most 32 activations.
#[inline(always)]
fn quantize<V: Products>(x: &[f32]) -> ([i8; GROUP], f32) {
    let x = load_group::<V>(x);
    let most = V::splat(f32::MAX);
    if x[0].abs().any_above(most) || x[1].abs().any_above(most) {
        return ([0; GROUP], f32::NAN);
    }
    let largest = x[0].abs().max(x[1].abs()).largest();
    if largest <= ActivationGroup::TINY {
        return ([0; GROUP], 0.0);
    }
    let inverse = V::splat(127.0 / largest);
    let mut q = [0; GROUP];
    for (x, q) in x.into_iter().zip(q.as_chunks_mut::<LANES>().0) {
        *q = x.mul(inverse).round().low_bytes().map(|byte| byte as i8);
    }
    (q, largest / 127.0)
}
