//! Mixtures of experts.

use std::ops::Range;

use super::types::Pair;
use super::{ReferenceAssignment, ReferenceRouting, ReferenceTensor, ReferenceWeight, max, run_tree};
use crate::{Program, RouterSpec, math};

/// The experts of one token, and their weights.
pub(super) fn choose(logits: &[f32], spec: RouterSpec) -> Vec<(usize, f32)> {
    assert!(spec.top_k <= logits.len(), "{} of {} experts", spec.top_k, logits.len());
    let m = logits.iter().copied().fold(f32::NEG_INFINITY, max);
    let exp: Vec<f32> = logits.iter().map(|x| math::exp(x - m)).collect();
    let sum = exp.iter().fold(0.0, |sum, x| sum + x);
    let mut left: Vec<(usize, f32)> = exp.iter().map(|x| x / sum).enumerate().collect();
    let mut chosen = Vec::new();
    for _ in 0..spec.top_k {
        let mut best = 0;
        for i in 1..left.len() {
            if left[i].1 > left[best].1 {
                best = i;
            }
        }
        chosen.push(left.remove(best));
    }
    chosen.sort_by_key(|&(expert, _)| expert);
    if spec.normalize {
        let sum = chosen.iter().fold(0.0, |sum, (_, weight)| sum + weight);
        chosen.iter_mut().for_each(|(_, weight)| *weight /= sum);
    }
    chosen
}

pub(super) fn routing_from_host(choices: &[Vec<(u32, f32)>], experts: usize) -> ReferenceRouting {
    for chosen in choices {
        assert!(chosen.is_sorted_by(|a, b| a.0 < b.0), "choices ascend: {chosen:?}");
        assert!(chosen.iter().all(|&(id, _)| (id as usize) < experts), "{chosen:?} of {experts} experts");
    }
    let from_host = |chosen: &Vec<(u32, f32)>| chosen.iter().map(|&(e, w)| (e as usize, w)).collect();
    ReferenceRouting { experts, chosen: choices.iter().map(from_host).collect() }
}

pub(super) fn assign(routing: &ReferenceRouting, experts: Range<usize>) -> ReferenceAssignment {
    assert!(experts.end <= routing.experts, "experts {experts:?} of {}", routing.experts);
    let mut pairs = Vec::new();
    for expert in experts.clone() {
        for (token, chosen) in routing.chosen.iter().enumerate() {
            let weight = chosen.iter().find(|(id, _)| *id == expert);
            pairs.extend(weight.map(|&(_, weight)| Pair { expert, token, weight }));
        }
    }
    ReferenceAssignment { tokens: routing.chosen.len(), experts, pairs }
}

/// Outputs of the experts: 0 where there are none.
fn outputs(assignment: &ReferenceAssignment, weights: &[ReferenceWeight]) -> usize {
    assert_eq!(weights.len(), assignment.experts.len(), "one weight per expert of the assignment");
    weights.first().map_or(0, |w| w.values.rows)
}

pub(super) fn grouped_linear(
    x: &ReferenceTensor,
    assignment: &ReferenceAssignment,
    weights: &[ReferenceWeight],
) -> ReferenceTensor {
    assert_eq!(x.rows, assignment.tokens, "grouped_linear: one row per token");
    ReferenceTensor::from_fn(assignment.pairs.len(), outputs(assignment, weights), |pair, n| {
        let Pair { expert, token, .. } = assignment.pairs[pair];
        weights[expert - assignment.experts.start].sum_of_products(x.row(token), n, 0..x.cols)
    })
}

pub(super) fn grouped_linear_tree(
    x: &ReferenceTensor,
    assignment: &ReferenceAssignment,
    weights: &[ReferenceWeight],
    program: &Program,
) -> ReferenceTensor {
    assert_eq!(x.rows, assignment.pairs.len(), "grouped_linear_tree: one row per pair");
    run_tree(program, x.rows, outputs(assignment, weights), |pair, n, item| {
        let expert = assignment.pairs[pair].expert - assignment.experts.start;
        weights[expert].sum_of_products(x.row(pair), n, program.inputs[item].clone())
    })
}

pub(super) fn combine(
    y: &ReferenceTensor,
    assignment: &ReferenceAssignment,
    program: &Program,
) -> ReferenceTensor {
    assert_eq!(y.rows, assignment.pairs.len(), "combine: one row per pair");
    assert_eq!(program.inputs.len(), assignment.experts.len(), "combine: one item per expert");
    run_tree(program, assignment.tokens, y.cols, |token, n, item| {
        let expert = assignment.experts.start + item;
        let pair = assignment.pairs.iter().position(|p| p.expert == expert && p.token == token);
        pair.map_or(-0.0, |pair| assignment.pairs[pair].weight * y.at(pair, n))
    })
}
