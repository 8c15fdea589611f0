//! Linear layers: panels of 16 outputs times tiles of rows, shared by threads as in `kernels/linear.rs`.

use std::marker::PhantomData;
use std::ops::Range;

use tensor::Program;

use super::format::{Format, with_format};
use super::rows::{RowsView, prepare, tallest_tile};
use super::tile::Tile;
use crate::buffer::Disjoint;
use crate::kernels::linear::Output;
use crate::kernels::rows::Tiles;
use crate::kernels::tile::{Steps, Target};
use crate::kernels::{Exec, grain};
use crate::pack::{CpuWeight, Panel};
use crate::simd::LANES;
use crate::simd::int::{ProductKernel, Products};

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
    let stack = steps.stack * TALLEST;
    let mut stacks = exec.scratch::<f32>(exec.pool.threads() * stack * LANES);
    let stacks = Disjoint::new(stacks.as_mut_slice());
    let out = Disjoint::new(out);
    let output = Output { out: &out, rows, bias };
    let of = (w.spec.format, w.spec.groups(w.k));
    let x = prepare(exec, x, w.k, of, std::slice::from_ref(&(0..rows)), |row| row);
    let x = x.view();
    let tiles = Tiles { rows, count: rows.div_ceil(tallest_tile(isa, w.spec.format)) };
    let cost = w.k.max(8) * LANES * rows / tiles.count.max(1) / 4;
    exec.pool.share(w.panels() * tiles.count, grain(cost), |units, thread, horizon| {
        // SAFETY: each thread has a stack of its own.
        let stack = unsafe { stacks.part(thread * stack * LANES..(thread + 1) * stack * LANES) };
        let stack = stack.as_chunks_mut().0;
        with_format!(w.spec.format, F => isa.run_products(Run::<F> {
            x, tiles, w, first_row: 0, units, horizon, steps, output, stack, format: PhantomData,
        }));
    });
}

/// Rows of the tallest tile of all.
pub(crate) const TALLEST: usize = 8;

/// Rows that are multiplied by all panels before the next rows are take no more, so that they stay in a core's own cache.
/// The weights come from memory once for each such block.
const BLOCK_BYTES: usize = 512 << 10;
/// But so many that fetching the weights costs little.
const MIN_BLOCK_TILES: usize = 8;

/// A thread's part of a linear layer: units are (panel, tile), tile by tile, then panel by panel.
pub(crate) struct Run<'a, F: Format> {
    pub(crate) x: RowsView<'a>,
    /// Rows of `x` from `first_row` on.
    pub(crate) tiles: Tiles,
    pub(crate) w: &'a CpuWeight,
    pub(crate) first_row: usize,
    pub(crate) units: Range<usize>,
    /// Where the units end that this thread will go on with.
    pub(crate) horizon: usize,
    pub(crate) steps: Steps<'a>,
    pub(crate) output: Output<'a>,
    pub(crate) stack: &'a mut [[f32; LANES]],
    pub(crate) format: PhantomData<F>,
}

impl<F: Format> ProductKernel for Run<'_, F> {
    #[inline(always)]
    fn run<V: Products>(mut self) {
        let count = self.tiles.count;
        let block = (BLOCK_BYTES / (V::ROWS[F::INDEX] * self.x.bytes_per_row()).max(1)).max(MIN_BLOCK_TILES);
        for first_tile in (0..count).step_by(block) {
            let tiles = first_tile..(first_tile + block).min(count);
            let panels = self.units.start / count..self.units.end.div_ceil(count);
            for panel in panels {
                // The first and the last panel of a thread may be shared with others.
                let from = tiles.start.max(self.units.start.saturating_sub(panel * count));
                let to = tiles.end.min(self.units.end - panel * count);
                let next = ((panel + 1) * count < self.horizon).then(|| self.w.panel(panel + 1));
                for tile in from..to {
                    let ahead = next.filter(|_| tile == from);
                    let rows = self.tiles.start(tile)..self.tiles.start(tile + 1);
                    macro_rules! of_height {
                        ($($R:literal)*) => {
                            match rows.len() {
                                $($R if $R <= V::ROWS[F::INDEX] => self.tile::<V, $R>(panel, rows.start, ahead),)*
                                rows => unreachable!("no tile of {rows} rows"),
                            }
                        };
                    }
                    of_height!(1 2 3 4 5 6 7 8);
                }
            }
        }
    }
}

impl<F: Format> Run<'_, F> {
    /// R rows, from the `row`-th on, times a panel.
    #[inline(always)]
    fn tile<V: Products, const R: usize>(&mut self, panel: usize, row: usize, ahead: Option<Panel>) {
        let (n, col) = (self.w.n, panel * LANES);
        assert!(self.stack.len() >= self.steps.stack * R, "the stack has room for the program");
        let to = Target {
            out: self.output.at((self.first_row + row) * n + col),
            row_stride: n,
            node_stride: self.output.rows * n,
            cols: n - col,
            bias: self.output.bias.map(|bias| &bias[col..]),
        };
        V::call_products(Tile::<F, R> {
            x: self.x.tile(self.first_row + row..self.first_row + row + R),
            panel: self.w.panel(panel),
            ahead,
            groups: self.w.spec.groups(self.w.k),
            steps: self.steps,
            stack: self.stack.as_mut_ptr(),
            to,
            format: PhantomData,
        });
    }
}
