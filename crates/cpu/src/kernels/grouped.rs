//! Linear layers of experts: each on the rows of the tokens that chose it.
//!
//! The work is cut into (expert, four panels, rows) and threads take turns, so that one token with k experts
//! keeps all threads at work, and an expert that many tokens chose does not keep one waiting for another.

use tensor::Program;

use super::Exec;
use super::linear::{Output, Run, stack_vectors};
use super::moe::CpuAssignment;
use super::rows::{TiledRows, Tiles, interleave};
use super::tile::{MAX_PANELS, Steps};
use crate::buffer::Disjoint;
use crate::pack::CpuWeight;
use crate::simd::{LANES, with_element};

/// `out [nodes · pairs, n]`. `x` holds a row per token (`by_token`) or a row per pair.
pub(crate) fn grouped_linear(
    exec: &Exec,
    x: &[f32],
    by_token: bool,
    assignment: &CpuAssignment,
    weights: &[CpuWeight],
    program: &Program,
    out: &mut [f32],
) {
    let isa = exec.isa;
    let Some(first) = weights.first() else { return };
    let (n, k, dtype) = (first.n, first.k, first.dtype);
    assert!(weights.iter().all(|w| (w.n, w.k, w.dtype) == (n, k, dtype)), "experts have one shape");
    assert_eq!(weights.len(), assignment.num_experts(), "one weight per expert of the assignment");
    let pairs = assignment.num_pairs();
    let steps = Steps::new(program, k);
    assert_eq!(x.len(), if by_token { assignment.num_tokens() } else { pairs } * k, "rows of {k} inputs");
    assert_eq!(out.len(), program.num_nodes() * pairs * n);
    if out.is_empty() {
        return;
    }
    let stack = stack_vectors(steps);
    let mut stacks = exec.scratch::<f32>(exec.pool.threads() * stack * LANES);
    let stacks = Disjoint::new(stacks.as_mut_slice());
    let out = Disjoint::new(out);
    let output = Output { out: &out, rows: pairs, bias: None };
    let groups = first.panels().div_ceil(MAX_PANELS);
    let busy = assignment.busy_experts();
    let rows_of: Vec<_> = busy.iter().map(|&expert| assignment.pairs_of(expert)).collect();
    let tokens = assignment.tokens();
    let interleaved =
        interleave(exec, x, k, &rows_of, |pair| if by_token { tokens[pair] as usize } else { pair });
    let x = interleaved.as_slice();
    let parts = pairs * n * k.max(1) / super::grain(1) + 1;
    exec.pool.take_turns(busy.len() * groups, parts, |item, thread| {
        // SAFETY: each thread has a stack of its own.
        let stack = unsafe { stacks.part(thread * stack * LANES..(thread + 1) * stack * LANES) };
        let stack = stack.as_chunks_mut().0;
        let expert = busy[item / groups];
        let group = item % groups * MAX_PANELS..(item % groups * MAX_PANELS + MAX_PANELS).min(first.panels());
        let rows = rows_of[item / groups].clone();
        let tiles = Tiles::of(rows.len());
        let x = TiledRows { data: &x[rows.start * k..rows.end * k], k, tiles };
        let units = group.start * tiles.count..group.end * tiles.count;
        with_element!(dtype, E => isa.run(Run::<E> {
            x, panels: weights[expert].bits::<E>(), n, first_row: rows.start, units, steps, output, stack,
        }));
    });
}
