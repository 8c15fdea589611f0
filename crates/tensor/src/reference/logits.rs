//! What a sampler asks of logits.

use super::{ReferenceTensor, sum_of_lanes};
use crate::{LogitEdit, Program, math};

pub(super) fn edit(logits: &mut ReferenceTensor, edits: &[LogitEdit]) {
    for edit in edits {
        match *edit {
            LogitEdit::Add { row, col, by } => *element(logits, row, col) += by,
            LogitEdit::Repetition { row, ref cols, by } => {
                for &col in cols {
                    let x = element(logits, row, col as usize);
                    *x = if *x > 0.0 { *x / by } else { *x * by };
                }
            }
            LogitEdit::Allow { row, ref words } => {
                for col in (0..logits.cols).filter(|&col| !LogitEdit::allows(words, col)) {
                    *element(logits, row, col) = f32::NEG_INFINITY;
                }
            }
            LogitEdit::Divide { row, by } => {
                for col in 0..logits.cols {
                    *element(logits, row, col) /= by;
                }
            }
        }
    }
}

fn element(logits: &mut ReferenceTensor, row: usize, col: usize) -> &mut f32 {
    assert!(row < logits.rows && col < logits.cols, "[{row}, {col}] of [{}, {}]", logits.rows, logits.cols);
    &mut logits.data[row * logits.cols + col]
}

/// One row's sums.
pub(super) fn exp_sums(logits: &[f32], max: f32, program: &Program) -> Vec<f32> {
    assert_eq!(program.inputs.len(), logits.len().div_ceil(16), "exp_sums: one item per panel of 16 columns");
    program.run(|panel| {
        let mut lanes = [0.0; 16];
        for (lane, x) in lanes.iter_mut().zip(&logits[panel * 16..]) {
            *lane = math::exp(x - max);
        }
        sum_of_lanes(lanes)
    })
}

/// One row's largest.
pub(super) fn top_k(logits: &[f32], skip: usize, k: usize) -> Vec<(f32, u32)> {
    let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    // The sort is stable, so equal logits (+0 and −0 too) stay in the order of their columns.
    all.sort_by(|(a, _), (b, _)| b.partial_cmp(a).expect("logits are numbers"));
    all.into_iter().skip(skip).take(k).collect()
}

pub(super) fn count_before(row: &[f32], (logit, col): (f32, usize)) -> u32 {
    let is_before = |&(i, &x): &(usize, &f32)| x > logit || (x == logit && i < col);
    row.iter().enumerate().filter(is_before).count() as u32
}
