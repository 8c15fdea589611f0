//! Linear layers: panels of 16 outputs times tiles of rows.
//!
//! One row streams four panels at a time, as fast as memory gives them. Many rows walk tile by tile over one
//! panel, which stays in the cache, so that weights come from memory once. Threads take contiguous
//! runs of (panel, tile of rows), at first of their own share ([`crate::pool`]): one panel with many rows is shared as
//! well as many panels with one row.

use std::marker::PhantomData;
use std::ops::Range;

use tensor::{Program, WeightFormat};

use super::rows::{TiledRows, Tiles, interleave, tallest_tile};
use super::tile::{MAX_SUMS, Steps, Target, for_tiles, panels_for, run_program};
use super::{Exec, quant};
use crate::buffer::Disjoint;
use crate::pack::CpuWeight;
use crate::simd::{Element, F32x16, Kernel, LANES, with_element};

/// A row-major matrix of results that threads share, node above node.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    pub(crate) out: &'a Disjoint<'a, f32>,
    /// Rows of one node.
    pub(crate) rows: usize,
    pub(crate) bias: Option<&'a [f32]>,
}

/// Vectors that every thread needs for the stacks of its tiles.
pub(crate) fn stack_vectors(steps: Steps<'_>) -> usize {
    steps.stack * MAX_SUMS
}

/// `out [nodes · rows, n]`: the nodes of `program` over `rows` rows of `x`.
pub(crate) fn linear(
    exec: &Exec,
    x: &[f32],
    rows: usize,
    w: &CpuWeight,
    program: &Program,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let isa = exec.isa;
    let steps = Steps::new(program, w.k);
    assert_eq!(x.len(), rows * w.k, "rows of {} inputs", w.k);
    assert_eq!(out.len(), program.num_nodes() * rows * w.n);
    assert!(bias.is_none_or(|b| b.len() == w.n), "a bias has {} elements", w.n);
    if out.is_empty() {
        return;
    }
    let WeightFormat::Float(dtype) = w.spec.format else {
        return quant::linear(exec, x, rows, w, program, bias, out);
    };
    let tiles = Tiles::up_to(tallest_tile(exec), rows);
    let stack = stack_vectors(steps);
    let mut stacks = exec.scratch::<f32>(exec.pool.threads() * stack * LANES);
    let stacks = Disjoint::new(stacks.as_mut_slice());
    let out = Disjoint::new(out);
    let output = Output { out: &out, rows, bias };
    let interleaved =
        (rows > 1).then(|| interleave(exec, x, w.k, std::slice::from_ref(&(0..rows)), |row| row));
    let x = TiledRows { data: interleaved.as_ref().map_or(x, |x| x.as_slice()), k: w.k, tiles };
    let cost = w.k.max(8) * LANES * rows / tiles.count.max(1) / 2;
    exec.pool.share(w.panels() * tiles.count, super::grain(cost), |units, thread, _| {
        // SAFETY: each thread has a stack of its own.
        let stack = unsafe { stacks.part(thread * stack * LANES..(thread + 1) * stack * LANES) };
        let stack = stack.as_chunks_mut().0;
        with_element!(dtype, E => isa.run(Run::<E> {
            x, w, first_row: 0, units, steps, output, stack, element: PhantomData,
        }));
    });
}

/// Rows that are multiplied by all panels before the next rows are take no more, so that they stay in a shared
/// cache. The weights come from memory once for each such block.
const BLOCK_BYTES: usize = 4 << 20;
/// But so many that fetching the weights costs little.
const MIN_BLOCK_TILES: usize = 8;

/// A thread's part of a linear layer: units are (panel, tile), tile by tile, then panel by panel.
pub(crate) struct Run<'a, E: Element> {
    pub(crate) x: TiledRows<'a>,
    pub(crate) w: &'a CpuWeight,
    /// Row of the output where `x` begins.
    pub(crate) first_row: usize,
    pub(crate) units: Range<usize>,
    pub(crate) steps: Steps<'a>,
    pub(crate) output: Output<'a>,
    pub(crate) stack: &'a mut [[f32; LANES]],
    pub(crate) element: PhantomData<E>,
}

impl<E: Element> Kernel for Run<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(mut self) {
        let count = self.x.tiles.count;
        let block = (BLOCK_BYTES / (4 * V::TILE_ROWS * self.x.k.max(1))).max(MIN_BLOCK_TILES);
        for first_tile in (0..count).step_by(block) {
            let tiles = first_tile..(first_tile + block).min(count);
            let mut panel = self.units.start / count;
            while panel * count < self.units.end {
                // The first and the last panel of a thread may be shared with others.
                let from = tiles.start.max(self.units.start.saturating_sub(panel * count));
                let to = tiles.end.min(self.units.end - panel * count);
                // One tile is narrow enough to take some panels at a time.
                let panels = if count == 1 {
                    panels_for::<V>(self.x.tiles.rows).min(self.units.end - panel)
                } else {
                    1
                };
                for tile in from..to {
                    let rows = self.x.tiles.start(tile)..self.x.tiles.start(tile + 1);
                    for_tiles!(tall V, rows.len(), panels, |R, P, r, p| {
                        self.tile::<V, R, P>(panel + p, rows.clone(), r);
                    });
                }
                panel += panels;
            }
        }
    }
}

impl<E: Element> Run<'_, E> {
    /// R rows, from the `r`-th of a tile on, times P panels from `panel`.
    #[inline(always)]
    fn tile<V: F32x16, const R: usize, const P: usize>(
        &mut self,
        panel: usize,
        rows: Range<usize>,
        r: usize,
    ) {
        let (k, n) = (self.x.k, self.w.n);
        assert_eq!(k, self.w.k, "rows and weight have as many inputs");
        let (x, x_stride) = (self.x.tile(rows.clone()), rows.len());
        assert!(r + R <= x_stride && x.len() == x_stride * k, "the rows lie in the tile");
        let mut w = [std::ptr::null::<E::Bits>(); P];
        for p in 0..P {
            w[p] = self.w.panel(panel + p).elements.cast();
        }
        assert!(self.stack.len() >= self.steps.stack * R * P, "the stack has room for the program");
        let col = panel * LANES;
        let to = Target {
            out: self.output.at((self.first_row + rows.start + r) * n + col),
            row_stride: n,
            node_stride: self.output.rows * n,
            cols: n - col,
            bias: self.output.bias.map(|bias| &bias[col..]),
        };
        let stack = self.stack.as_mut_ptr();
        V::call(Tile::<E, R, P> {
            x: x[r.min(x.len())..].as_ptr(),
            x_stride,
            w,
            steps: self.steps,
            stack,
            to,
        });
    }
}

/// One tile. Rows and panels must have all inputs of the program, the stack room for it, and the tile's part of
/// the output must belong to this thread.
struct Tile<'a, E: Element, const R: usize, const P: usize> {
    x: *const f32,
    /// Rows of the tile that these rows are part of.
    x_stride: usize,
    w: [*const E::Bits; P],
    steps: Steps<'a>,
    stack: *mut [f32; LANES],
    to: Target<'a>,
}

impl<E: Element, const R: usize, const P: usize> Kernel for Tile<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        // All rows of a tile are a constant stride apart, which the compiler should know.
        let x_stride = if V::TILED { R } else { self.x_stride };
        // SAFETY: `Run::tile`, which alone makes tiles, takes rows from slices of k inputs and panels from a weight
        // of as many, to which `Steps` keeps, and asserts the room on the stack; the output holds all nodes of all rows, and units
        // are divided among threads.
        unsafe { run_program::<V, E, R, P>(self.x, x_stride, self.w, self.steps, self.stack, self.to) };
    }
}

impl Output<'_> {
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> *mut f32 {
        self.out.address(index)
    }
}
