//! Linear layers: panels of 16 outputs times tiles of rows.
//!
//! One row streams four panels at a time, as fast as memory gives them. Many rows walk tile by tile over one
//! panel, which stays in the cache, so that weights come from memory once. A thread owns a contiguous run of
//! (panel, tile of rows): one panel with many rows is shared as well as many panels with one row.

use tensor::Program;

use super::Exec;
use super::tile::{MAX_PANELS, MAX_ROWS, Steps, Target, for_tiles, panels_for, run_program};
use crate::buffer::Disjoint;
use crate::pack::CpuWeight;
use crate::simd::{Element, F32x16, Kernel, LANES, with_element};

/// The rows that a linear layer reads: rows of a matrix, all or by index.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) k: usize,
    pub(crate) index: Option<&'a [u32]>,
}

impl Rows<'_> {
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        let row = self.index.map_or(row, |index| index[row] as usize);
        &self.x[row * self.k..(row + 1) * self.k]
    }
}

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
    steps.stack * MAX_ROWS.max(MAX_PANELS)
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
    let tiles = Tiles::of(rows);
    let stack = stack_vectors(steps);
    let mut stacks = exec.scratch::<f32>(exec.pool.threads() * stack * LANES);
    let stacks = Disjoint::new(stacks.as_mut_slice());
    let out = Disjoint::new(out);
    let output = Output { out: &out, rows, bias };
    let rows_of_x = Rows { x, k: w.k, index: None };
    let cost = w.k.max(8) * LANES * rows / tiles.count.max(1) / 2;
    exec.pool.split_with(w.panels() * tiles.count, super::grain(cost), |units, thread| {
        // SAFETY: each thread has a stack of its own.
        let stack = unsafe { stacks.part(thread * stack * LANES..(thread + 1) * stack * LANES) };
        let stack = stack.as_chunks_mut().0;
        with_element!(w.dtype, E => isa.run(Run::<E> {
            x: rows_of_x, panels: w.bits::<E>(), n: w.n, first_row: 0, tiles, units, steps, output, stack,
        }));
    });
}

/// Rows cut into tiles of nearly the same height.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) rows: usize,
    pub(crate) count: usize,
}

impl Tiles {
    pub(crate) fn of(rows: usize) -> Self {
        Tiles { rows, count: rows.div_ceil(MAX_ROWS) }
    }

    /// First row of a tile.
    #[inline(always)]
    pub(crate) fn start(&self, tile: usize) -> usize {
        self.rows * tile / self.count
    }
}

/// A thread's part of a linear layer: units are (panel, tile), tile by tile, then panel by panel.
pub(crate) struct Run<'a, E: Element> {
    pub(crate) x: Rows<'a>,
    pub(crate) panels: &'a [E::Bits],
    pub(crate) n: usize,
    /// Row of the output where `x` begins.
    pub(crate) first_row: usize,
    pub(crate) tiles: Tiles,
    pub(crate) units: std::ops::Range<usize>,
    pub(crate) steps: Steps<'a>,
    pub(crate) output: Output<'a>,
    pub(crate) stack: &'a mut [[f32; LANES]],
}

impl<E: Element> Kernel for Run<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(mut self) {
        let count = self.tiles.count;
        let mut unit = self.units.start;
        while unit < self.units.end {
            let (panel, tile) = (unit / count, unit % count);
            let (start, end) = (self.tiles.start(tile), self.tiles.start(tile + 1));
            // More than one panel at a time only where the next unit is the next panel.
            let panels = if count == 1 { panels_for(end - start).min(self.units.end - unit) } else { 1 };
            for_tiles!(V, end - start, panels, |R, P, r, p| self.tile::<V, R, P>(panel + p, start + r));
            unit += panels;
        }
    }
}

impl<E: Element> Run<'_, E> {
    /// R rows from `row` times P panels from `panel`.
    #[inline(always)]
    fn tile<V: F32x16, const R: usize, const P: usize>(&mut self, panel: usize, row: usize) {
        let (k, n) = (self.x.k, self.n);
        let mut x = [std::ptr::null(); R];
        for r in 0..R {
            x[r] = self.x.row(row + r).as_ptr();
        }
        let panels = &self.panels[panel * k * LANES..(panel + P) * k * LANES];
        let mut w = [panels.as_ptr(); P];
        for p in 0..P {
            w[p] = panels[p * k * LANES..].as_ptr();
        }
        assert!(self.stack.len() >= self.steps.stack * R * P, "the stack has room for the program");
        let col = panel * LANES;
        let to = Target {
            out: self.output.at((self.first_row + row) * n + col),
            row_stride: n,
            node_stride: self.output.rows * n,
            cols: n - col,
            bias: self.output.bias.map(|bias| &bias[col..]),
        };
        let stack = self.stack.as_mut_ptr();
        V::call(Tile::<E, R, P> { x, w, steps: self.steps, stack, to });
    }
}

/// One tile. Rows and panels must have all inputs of the program, the stack room for it, and the tile's part of
/// the output must belong to this thread.
struct Tile<'a, E: Element, const R: usize, const P: usize> {
    x: [*const f32; R],
    w: [*const E::Bits; P],
    steps: Steps<'a>,
    stack: *mut [f32; LANES],
    to: Target<'a>,
}

impl<E: Element, const R: usize, const P: usize> Kernel for Tile<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        // SAFETY: `Run::tile`, which alone makes tiles, takes rows and panels from slices of k inputs, to which
        // `Steps` keeps, and asserts the room on the stack; the output holds all nodes of all rows, and units
        // are divided among threads.
        unsafe { run_program::<V, E, R, P>(self.x, self.w, self.steps, self.stack, self.to) };
    }
}

impl Output<'_> {
    #[inline(always)]
    fn at(&self, index: usize) -> *mut f32 {
        self.out.address(index)
    }
}
