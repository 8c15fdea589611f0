//! The rows that a linear layer reads, cut into tiles and interleaved.
//!
//! A tile of R rows is kept as `[k][R]`, so that the micro-kernel reads one stream. Rows where they were would be
//! R streams at a distance that is often a large power of two, which caches handle badly (on Zen, three times
//! slower).

use std::ops::Range;

use super::tile::{MAX_ROWS, TALL_ROWS};
use super::{Exec, grain};
use crate::buffer::{Buffer, Disjoint};
use crate::simd::{F32x16, Kernel};

/// Rows cut into tiles of nearly the same height.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) rows: usize,
    pub(crate) count: usize,
}

impl Tiles {
    /// Tiles that fit every vector.
    pub(crate) fn of(rows: usize) -> Self {
        Self::up_to(MAX_ROWS, rows)
    }

    /// Tiles of at most `tallest` rows.
    pub(crate) fn up_to(tallest: usize, rows: usize) -> Self {
        Tiles { rows, count: rows.div_ceil(tallest) }
    }

    /// First row of a tile.
    #[inline(always)]
    pub(crate) fn start(&self, tile: usize) -> usize {
        self.rows * tile / self.count
    }
}

/// Some rows that are multiplied by the same weight.
#[derive(Clone, Copy)]
pub(crate) struct TiledRows<'a> {
    /// Tile after tile.
    pub(crate) data: &'a [f32],
    pub(crate) k: usize,
    pub(crate) tiles: Tiles,
}

impl TiledRows<'_> {
    /// The rows of a tile `[k][rows]`.
    #[inline(always)]
    pub(crate) fn tile(&self, rows: Range<usize>) -> &[f32] {
        &self.data[rows.start * self.k..rows.end * self.k]
    }
}

/// The rows of the tallest tile of a set of instructions.
struct TallestTile;
impl Kernel for TallestTile {
    type Output = usize;
    #[inline(always)]
    fn run<V: F32x16>(self) -> usize {
        V::TILE_ROWS
    }
}

/// The rows of the tallest tile of a linear layer.
pub(crate) fn tallest_tile(exec: &Exec) -> usize {
    exec.isa.run(TallestTile)
}

/// Interleaves the rows of some groups. `groups` are ranges of rows that follow each other from 0 on, and
/// `source(row)` is where a row lies in `x`, in rows of `k`.
pub(crate) fn interleave(
    exec: &Exec,
    x: &[f32],
    k: usize,
    groups: &[Range<usize>],
    source: impl Fn(usize) -> usize + Sync,
) -> Buffer<f32> {
    let rows = groups.last().map_or(0, |g| g.end);
    let tallest = tallest_tile(exec);
    let mut out = exec.scratch::<f32>(rows * k);
    let all = Disjoint::new(out.as_mut_slice());
    // Threads share tiles; a tile belongs to the thread that its first row falls to.
    exec.pool.split(rows, grain(k).max(tallest), |part| {
        let first_group = groups.partition_point(|g| g.end <= part.start);
        for group in groups[first_group..].iter().take_while(|g| g.start < part.end) {
            let tiles = Tiles::up_to(tallest, group.len());
            for tile in 0..tiles.count {
                let rows = group.start + tiles.start(tile)..group.start + tiles.start(tile + 1);
                if part.contains(&rows.start) {
                    // SAFETY: tiles do not overlap, and each has one first row.
                    let out = unsafe { all.part(rows.start * k..rows.end * k) };
                    interleave_tile(x, k, rows, &source, out);
                }
            }
        }
    });
    out
}

fn interleave_tile(
    x: &[f32],
    k: usize,
    rows: Range<usize>,
    source: &impl Fn(usize) -> usize,
    out: &mut [f32],
) {
    let mut from: [&[f32]; TALL_ROWS] = [&[]; TALL_ROWS];
    for (from, row) in from.iter_mut().zip(rows.clone()) {
        *from = &x[source(row) * k..(source(row) + 1) * k];
    }
    macro_rules! tile_of {
        ($($rows:literal)*) => {
            match rows.len() {
                1 => out.copy_from_slice(from[0]),
                $($rows => interleave_rows::<$rows>(from, k, out),)*
                rows => unreachable!("no tile of {rows} rows"),
            }
        };
    }
    tile_of!(2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
}

fn interleave_rows<const R: usize>(from: [&[f32]; TALL_ROWS], k: usize, out: &mut [f32]) {
    let mut rows: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        rows[r] = &from[r][..k];
    }
    for (i, out) in out.as_chunks_mut::<R>().0.iter_mut().enumerate() {
        for r in 0..R {
            out[r] = rows[r][i];
        }
    }
}
