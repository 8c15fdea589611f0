//! Shapes and costs of experts, with the chosen ones spread evenly.

use std::ops::Range;

use super::{ShapeAssignment, ShapeRouting, ShapeTensor, ShapeWeight, cost, same};
use crate::{DType, OpCost};

/// `top_k` experts per token, spread evenly.
pub(super) fn route(tokens: usize, experts: usize, top_k: usize) -> ShapeRouting {
    let before = |expert: usize| expert * tokens * top_k / experts.max(1);
    ShapeRouting { tokens, pairs_before: (0..=experts).map(before).collect() }
}

/// The pairs, by expert, go to the tokens in turn: no expert has more pairs than there are tokens, so that no token
/// gets one twice.
pub(super) fn to_host(routing: &ShapeRouting) -> Vec<Vec<(u32, f32)>> {
    let mut choices = vec![Vec::new(); routing.tokens];
    for expert in 0..routing.experts() {
        for pair in routing.pairs_before[expert]..routing.pairs_before[expert + 1] {
            choices[pair % routing.tokens].push((expert as u32, 0.0));
        }
    }
    choices
}

pub(super) fn from_host(choices: &[Vec<(u32, f32)>], experts: usize) -> ShapeRouting {
    let mut pairs_before = vec![0; experts + 1];
    for &(expert, _) in choices.iter().flatten() {
        assert!((expert as usize) < experts, "routing_from_host: expert {expert} of {experts}");
        pairs_before[expert as usize + 1] += 1;
    }
    for expert in 0..experts {
        pairs_before[expert + 1] += pairs_before[expert];
    }
    ShapeRouting { tokens: choices.len(), pairs_before }
}

pub(super) fn assign(routing: &ShapeRouting, experts: Range<usize>) -> ShapeAssignment {
    let all = routing.experts();
    assert!(experts.start <= experts.end && experts.end <= all, "assign: experts {experts:?} of {all}");
    let before = &routing.pairs_before;
    ShapeAssignment {
        tokens: routing.tokens,
        pairs: before[experts.end] - before[experts.start],
        busy: experts.clone().filter(|&e| before[e] < before[e + 1]).count(),
        experts,
    }
}

/// The shape that all experts' weights have; no outputs where there are no experts.
pub(super) fn common(
    op: &str,
    x: &ShapeTensor,
    assignment: &ShapeAssignment,
    weights: &[ShapeWeight],
) -> ShapeWeight {
    same(op, "weights and experts", weights.len(), assignment.experts.len());
    let first = weights.first().copied().unwrap_or(ShapeWeight { n: 0, k: x.cols, spec: DType::F32.into() });
    weights.iter().for_each(|w| same(op, "weights of two experts", *w, first));
    same(op, "inputs of x and of the weights", x.cols, first.k);
    first
}

pub(super) fn linear_cost(assignment: &ShapeAssignment, w: ShapeWeight, y: ShapeTensor) -> OpCost {
    let pairs = assignment.pairs;
    let weight_bytes = (assignment.busy * w.packed_bytes()) as u64;
    OpCost { weight_bytes, ..cost(2 * pairs * w.n * w.k, pairs * w.k + y.len()) }
}
