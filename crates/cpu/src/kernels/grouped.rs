//! Linear layers of experts: each on the rows of the tokens that chose it.
//!
//! The work is cut into (expert, four panels, rows) and threads take turns, so that one token with k experts
//! keeps all threads at work, and an expert that many tokens chose does not keep one waiting for another.

use std::marker::PhantomData;

use tensor::{Program, WeightFormat};

use super::linear::{Output, Run, stack_vectors};
use super::moe::CpuAssignment;
use super::quant::format::with_format;
use super::rows::{TiledRows, Tiles, interleave, tallest_tile};
use super::tile::{MAX_PANELS, Steps};
use super::{Exec, quant};
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
    let (n, k, spec) = (first.n, first.k, first.spec);
    assert!(weights.iter().all(|w| (w.n, w.k, w.spec) == (n, k, spec)), "experts have one shape");
    assert_eq!(weights.len(), assignment.num_experts(), "one weight per expert of the assignment");
    let pairs = assignment.num_pairs();
    let steps = Steps::new(program, k);
    assert_eq!(x.len(), if by_token { assignment.num_tokens() } else { pairs } * k, "rows of {k} inputs");
    assert_eq!(out.len(), program.num_nodes() * pairs * n);
    if out.is_empty() {
        return;
    }
    let stack = stack_vectors(steps).max(steps.stack * quant::TALLEST);
    let tallest = tallest_tile(exec);
    let mut stacks = exec.scratch::<f32>(exec.pool.threads() * stack * LANES);
    let stacks = Disjoint::new(stacks.as_mut_slice());
    let out = Disjoint::new(out);
    let output = Output { out: &out, rows: pairs, bias: None };
    let groups = first.panels().div_ceil(MAX_PANELS);
    let busy = assignment.busy_experts();
    let rows_of: Vec<_> = busy.iter().map(|&expert| assignment.pairs_of(expert)).collect();
    let tokens = assignment.tokens();
    let source = |pair: usize| if by_token { tokens[pair] as usize } else { pair };
    let parts = pairs * n * k.max(1) / super::grain(1) + 1;
    let stack = |thread: usize| {
        // SAFETY: each thread has a stack of its own.
        unsafe { stacks.part(thread * stack * LANES..(thread + 1) * stack * LANES) }.as_chunks_mut().0
    };
    let place = |item: usize| {
        let group = item % groups * MAX_PANELS;
        (item / groups, group..(group + MAX_PANELS).min(first.panels()))
    };
    let WeightFormat::Float(dtype) = spec.format else {
        let x = quant::prepare(exec, x, k, (spec.format, spec.groups(k)), &rows_of, source);
        let (x, tallest) = (x.view(), quant::tallest_tile(isa, spec.format));
        exec.pool.take_turns(busy.len() * groups, parts, |item, thread| {
            let (busy_index, panels) = place(item);
            let (rows, w) = (rows_of[busy_index].clone(), &weights[busy[busy_index]]);
            let tiles = Tiles { rows: rows.len(), count: rows.len().div_ceil(tallest) };
            let units = panels.start * tiles.count..panels.end * tiles.count;
            let (stack, first_row) = (stack(thread), rows.start);
            with_format!(spec.format, F => isa.run_products(quant::Run::<F> {
                x, tiles, w, first_row, horizon: units.end, units, steps, output, stack, format: PhantomData,
            }));
        });
        return;
    };
    let interleaved = interleave(exec, x, k, &rows_of, source);
    let x = interleaved.as_slice();
    exec.pool.take_turns(busy.len() * groups, parts, |item, thread| {
        let (busy_index, panels) = place(item);
        let (rows, w) = (rows_of[busy_index].clone(), &weights[busy[busy_index]]);
        let tiles = Tiles::up_to(tallest, rows.len());
        let x = TiledRows { data: &x[rows.start * k..rows.end * k], k, tiles };
        let units = panels.start * tiles.count..panels.end * tiles.count;
        let (stack, first_row) = (stack(thread), rows.start);
        with_element!(dtype, E => isa.run(Run::<E> {
            x, w, first_row, units, steps, output, stack, element: PhantomData,
        }));
    });
}
