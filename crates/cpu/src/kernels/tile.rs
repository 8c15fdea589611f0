//! The micro-kernel: some rows times some panels, in registers.

use std::ops::Range;

use tensor::Program;

use crate::simd::{Element, F32x16, LANES};

/// Rows of the tallest tile where there are 16 registers: 6 × 1 panel are 12 AVX accumulators, the weights and a
/// broadcast the other 4.
pub(crate) const MAX_ROWS: usize = 6;
/// Rows of the tallest tile where there are 32 registers of 16 numbers.
pub(crate) const TALL_ROWS: usize = 16;
/// Panels of the widest tile.
pub(crate) const MAX_PANELS: usize = 4;
/// Accumulators of the largest tile.
pub(crate) const MAX_SUMS: usize = 16;

/// Inputs by which a prefetch of weights is ahead, which is 8 KiB at least. With the many products between two lines
/// of weights the hardware alone does not look far enough; one row needs no help. The lines go to the second-level
/// cache only: from there the hardware brings them in time, and it can wait for more of them than the first can.
const AHEAD: usize = 256;

/// The panels that a tile of `rows` rows takes. Few rows wait for memory, which likes several streams if they are long
/// and one if rows have much to do between two lines.
pub(crate) const fn panels_for<V: F32x16>(rows: usize) -> usize {
    match (rows, V::TILE_ROWS) {
        (0 | 1, _) => 4,
        (2, TALL_ROWS) => 4,
        (2, _) | (3, TALL_ROWS) => 2,
        _ => 1,
    }
}

/// Covers `$rows` rows (at most [`MAX_ROWS`]) times `$panels` panels with tiles: runs `$body` for each, with its
/// size as the constants `$R` and `$P` and its first row and panel as `$row` and `$panel`. With `tall`, there may be
/// as many rows as the vector has in its tallest tile.
macro_rules! for_tiles {
    (tall $V:ident, $rows:expr, $panels:expr, |$R:ident, $P:ident, $row:ident, $panel:ident| $body:expr) => {
        if $V::TILE_ROWS == $crate::kernels::tile::TALL_ROWS {
            let (rows, panels): (usize, usize) = ($rows, $panels);
            let $row = 0;
            let mut $panel = 0;
            while $panel < panels {
                $panel += $crate::kernels::tile::for_tiles!(
                    @(rows, panels - $panel), $R, $P, $body,
                    (1, 4..) 1 4, (1, 2..) 1 2, (1, _) 1 1, (2, 4..) 2 4, (2, 2..) 2 2, (2, _) 2 1,
                    (3, 2..) 3 2, (3, _) 3 1, (4, _) 4 1, (5, _) 5 1, (6, _) 6 1, (7, _) 7 1, (8, _) 8 1, (9, _) 9 1, (10, _) 10 1,
                    (11, _) 11 1, (12, _) 12 1, (13, _) 13 1, (14, _) 14 1, (15, _) 15 1, (16, _) 16 1
                );
            }
        } else {
            $crate::kernels::tile::for_tiles!($V, $rows, $panels, |$R, $P, $row, $panel| $body);
        }
    };
    ($V:ident, $rows:expr, $panels:expr, |$R:ident, $P:ident, $row:ident, $panel:ident| $body:expr) => {{
        let (rows, panels): (usize, usize) = ($rows, $panels);
        let mut $panel = 0;
        while $panel < panels {
            if $V::TILED {
                let $row = 0;
                $panel += $crate::kernels::tile::for_tiles!(
                    @(rows, panels - $panel), $R, $P, $body,
                    (1, 4..) 1 4, (1, 2..) 1 2, (1, _) 1 1, (2, 2..) 2 2, (2, _) 2 1, (3, _) 3 1,
                    (4, _) 4 1, (5, _) 5 1, (6, _) 6 1
                );
            } else {
                const $R: usize = 1;
                const $P: usize = 1;
                for $row in 0..rows {
                    $body;
                }
                $panel += 1;
            }
        }
    }};
    (@$size:expr, $R:ident, $P:ident, $body:expr, $(($pr:pat, $pp:pat) $r:literal $p:literal),*) => {
        match $size {
            $(($pr, $pp) => {
                const $R: usize = $r;
                const $P: usize = $p;
                $body;
                $P
            })*
            (rows, _) => unreachable!("no tile of {rows} rows"),
        }
    };
}
pub(crate) use for_tiles;

/// A program whose steps are known to fit the inputs and the stack.
#[derive(Clone, Copy)]
pub(crate) struct Steps<'a> {
    pub(crate) inputs: &'a [Range<usize>],
    pub(crate) merges: &'a [u32],
    /// Vectors per row and panel that a tile keeps beside its accumulators.
    pub(crate) stack: usize,
}

impl<'a> Steps<'a> {
    /// # Panics
    /// If the program reads beyond `k` inputs, merges what it has not pushed, or leaves other than its nodes.
    pub(crate) fn new(program: &'a Program, k: usize) -> Self {
        assert_eq!(program.inputs.len(), program.merges.len(), "a program has one count of merges per item");
        let mut depth = 0;
        for (inputs, &merges) in program.inputs.iter().zip(&program.merges) {
            assert!(
                inputs.start <= inputs.end && inputs.end <= k,
                "a program reads {inputs:?} of {k} inputs"
            );
            assert!(merges as usize <= depth, "a program merges only what it pushed");
            depth = depth + 1 - merges as usize;
        }
        assert_eq!(depth, program.nodes.len(), "a program leaves its nodes");
        Steps { inputs: &program.inputs, merges: &program.merges, stack: program.max_stack() }
    }
}

/// `acc[row][panel] += Σ x(row, i) · w(panel, i)`, i ascending. `x(row, i)` lies at `x[row] + i · x_stride`,
/// `w(panel, i)` is a group of 16 elements at `w[panel] + i · w_stride`. What lies likewise at `ahead` is fetched to
/// the second-level cache.
///
/// # Safety
/// All of these must be readable.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
pub(crate) unsafe fn accumulate<V: F32x16, E: Element, const R: usize, const P: usize>(
    acc: &mut [[V; P]; R],
    x: [*const f32; R],
    x_stride: usize,
    w: [*const E::Bits; P],
    w_stride: usize,
    ahead: Option<[*const E::Bits; P]>,
    inputs: Range<usize>,
) {
    for i in inputs {
        let mut weights = [V::splat(0.0); P];
        for p in 0..P {
            if let Some(ahead) = ahead {
                V::prefetch_far(ahead[p].wrapping_add(i * w_stride).cast());
            }
            // SAFETY: readable, by the caller's word.
            weights[p] = E::widen(unsafe { &*w[p].add(i * w_stride).cast::<[E::Bits; LANES]>() });
        }
        for r in 0..R {
            // SAFETY: readable, by the caller's word.
            let x = V::splat(unsafe { *x[r].add(i * x_stride) });
            for p in 0..P {
                acc[r][p] = weights[p].fma(x, acc[r][p]);
            }
        }
    }
}

/// Where a tile's sums go.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// The tile's first element.
    pub(crate) out: *mut f32,
    pub(crate) row_stride: usize,
    pub(crate) node_stride: usize,
    /// Columns from `out` to the end of the row; a tile may cover more.
    pub(crate) cols: usize,
    /// Added after the root, from the tile's first column on.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Runs a program on a tile. Items are summed in registers and merged through `stack`. Input i of row r
/// is `x[i · x_stride + r]`.
///
/// # Safety
/// `x` must have all inputs of the program, `w[panel]` as many groups of 16, `stack` room for
/// `steps.stack · R · P` vectors of 64 bytes, and `to` must be writable for R rows of every node.
#[inline(always)]
pub(crate) unsafe fn run_program<V: F32x16, E: Element, const R: usize, const P: usize>(
    x: *const f32,
    x_stride: usize,
    w: [*const E::Bits; P],
    steps: Steps<'_>,
    stack: *mut [f32; LANES],
    to: Target<'_>,
) {
    let mut depth = 0;
    let mut rows = [x; R];
    for r in 0..R {
        rows[r] = x.wrapping_add(r);
    }
    let ahead = (R > 1).then(|| w.map(|w| w.wrapping_add(AHEAD * LANES)));
    let last = steps.inputs.len().wrapping_sub(1);
    for (item, (inputs, &merges)) in steps.inputs.iter().zip(steps.merges).enumerate() {
        let mut acc = [[V::splat(0.0); P]; R];
        // SAFETY: the caller's.
        unsafe { accumulate::<V, E, R, P>(&mut acc, rows, x_stride, w, LANES, ahead, inputs.clone()) };
        for _ in 0..merges {
            depth -= 1;
            for r in 0..R {
                for p in 0..P {
                    // SAFETY: `Steps` says that so much was pushed, and the caller that there is room for it.
                    let left = V::load(unsafe { &*stack.add((depth * R + r) * P + p) });
                    acc[r][p] = left.add(acc[r][p]);
                }
            }
        }
        if item == last {
            // SAFETY: what lies on the stack was pushed; the target is the caller's.
            unsafe {
                for node in 0..depth {
                    let mut sums = [[V::splat(0.0); P]; R];
                    for r in 0..R {
                        for p in 0..P {
                            sums[r][p] = V::load(&*stack.add((node * R + r) * P + p));
                        }
                    }
                    write(&sums, node, to);
                }
                write(&acc, depth, to);
            }
            return;
        }
        for r in 0..R {
            for p in 0..P {
                // SAFETY: there is room for the deepest stack.
                acc[r][p].store(unsafe { &mut *stack.add((depth * R + r) * P + p) });
            }
        }
        depth += 1;
    }
}

/// # Safety
/// `to` must be writable for R rows of this node.
#[inline(always)]
pub(crate) unsafe fn write<V: F32x16, const R: usize, const P: usize>(
    sums: &[[V; P]; R],
    node: usize,
    to: Target<'_>,
) {
    for r in 0..R {
        for p in 0..P {
            let col = p * LANES;
            let len = LANES.min(to.cols.saturating_sub(col));
            let mut sum = sums[r][p];
            if let Some(bias) = to.bias {
                sum = sum.add(V::load_first(&bias[col..col + len]));
            }
            // SAFETY: the caller's; `len` keeps to the row.
            unsafe {
                let out = to.out.add(node * to.node_stride + r * to.row_stride + col);
                if len == LANES {
                    sum.store(&mut *out.cast());
                } else {
                    sum.store_first(std::slice::from_raw_parts_mut(out, len));
                }
            }
        }
    }
}
