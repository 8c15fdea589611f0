//! Shapes and costs of experts, with the chosen ones spread evenly.

use std::ops::Range;

use super::{ShapeAssignment, ShapeRouting, ShapeTensor, ShapeWeight, cost, same};
use crate::{DType, OpCost};

pub(super) fn assign(routing: &ShapeRouting, experts: Range<usize>) -> ShapeAssignment {
    let &ShapeRouting { tokens, experts: all, top_k } = routing;
    assert!(experts.start <= experts.end && experts.end <= all, "assign: experts {experts:?} of {all}");
    let before = |expert: usize| expert * tokens * top_k / all.max(1);
    ShapeAssignment { tokens, pairs: before(experts.end) - before(experts.start), experts }
}

/// The shape that all experts' weights have; no outputs where there are no experts.
pub(super) fn common(
    op: &str,
    x: &ShapeTensor,
    assignment: &ShapeAssignment,
    weights: &[ShapeWeight],
) -> ShapeWeight {
    same(op, "weights and experts", weights.len(), assignment.experts.len());
    let first = weights.first().copied().unwrap_or(ShapeWeight { n: 0, k: x.cols, dtype: DType::F32 });
    weights.iter().for_each(|w| same(op, "weights of two experts", *w, first));
    same(op, "inputs of x and of the weights", x.cols, first.k);
    first
}

pub(super) fn linear_cost(assignment: &ShapeAssignment, w: ShapeWeight, y: ShapeTensor) -> OpCost {
    let pairs = assignment.pairs;
    // Spread evenly, the experts have one pair at most, or one at least.
    let experts_read = pairs.min(assignment.experts.len());
    let weight_bytes = (experts_read * w.packed_bytes()) as u64;
    OpCost { weight_bytes, ..cost(2 * pairs * w.n * w.k, pairs * w.k + y.len()) }
}
