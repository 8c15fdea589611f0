//! Mixtures of experts: choosing, sorting by expert, and the weighted sum.

use std::ops::Range;

use tensor::lanes::Lanes;
use tensor::{Program, RouterSpec, math};

use super::{Exec, grain};
use crate::buffer::Disjoint;
use crate::simd::{F32x16, Kernel, LANES};

/// Chosen experts per token, in ascending order of ids, and their weights. Places that a token does not use are at
/// its end.
pub struct CpuRouting {
    tokens: usize,
    /// Places per token.
    top_k: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
}

/// The (token, expert) pairs of a range of experts, by expert, then by token.
pub struct CpuAssignment {
    tokens: usize,
    top_k: usize,
    /// First pair of each expert of the range, and the number of pairs.
    first_pair: Vec<usize>,
    /// Experts of the range that some token chose.
    busy: Vec<usize>,
    pair_token: Vec<u32>,
    pair_weight: Vec<f32>,
    /// For each token its (expert in the range, pair), by expert; `top_k` places, unused ones at the end.
    by_token: Vec<(u32, u32)>,
}

/// The id in a place of a routing that its token does not use: no expert's.
const NOBODY: u32 = u32::MAX;

/// Fills the places of `by_token` that a token does not use.
const NONE: (u32, u32) = (u32::MAX, u32::MAX);

impl CpuAssignment {
    pub(crate) fn num_experts(&self) -> usize {
        self.first_pair.len() - 1
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn num_pairs(&self) -> usize {
        self.pair_token.len()
    }

    pub(crate) fn pairs_of(&self, expert: usize) -> Range<usize> {
        self.first_pair[expert]..self.first_pair[expert + 1]
    }

    pub(crate) fn busy_experts(&self) -> &[usize] {
        &self.busy
    }

    /// The token of each pair.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.pair_token
    }
}

/// Softmax over all experts, then the largest.
pub(crate) fn route(exec: &Exec, logits: &[f32], tokens: usize, spec: RouterSpec) -> CpuRouting {
    let isa = exec.isa;
    let num_experts = logits.len().checked_div(tokens).unwrap_or(0);
    let top_k = spec.top_k.min(num_experts);
    let mut routing =
        CpuRouting { tokens, top_k, experts: vec![0; tokens * top_k], weights: vec![0.0; tokens * top_k] };
    let mut softmax = exec.scratch::<f32>(logits.len());
    let softmax = Disjoint::new(softmax.as_mut_slice());
    let (experts, weights) = (Disjoint::new(&mut routing.experts), Disjoint::new(&mut routing.weights));
    exec.pool.split(tokens, grain(num_experts * (8 + top_k)), |range| {
        for token in range {
            let (all, chosen) =
                (token * num_experts..(token + 1) * num_experts, token * top_k..(token + 1) * top_k);
            // SAFETY: each token has rows of its own.
            let (p, experts, weights) =
                unsafe { (softmax.part(all.clone()), experts.part(chosen.clone()), weights.part(chosen)) };
            p.copy_from_slice(&logits[all]);
            isa.run(Softmax(p));
            choose(p, experts);
            for (weight, &expert) in weights.iter_mut().zip(&*experts) {
                *weight = p[expert as usize];
            }
            if spec.normalize {
                let sum = weights.iter().fold(0.0, |sum, w| sum + w);
                weights.iter_mut().for_each(|w| *w /= sum);
            }
        }
    });
    routing
}

pub(crate) fn routing_to_host(routing: &CpuRouting) -> Vec<Vec<(u32, f32)>> {
    let of_token = |token: usize| {
        let places = token * routing.top_k..(token + 1) * routing.top_k;
        let pairs = routing.experts[places.clone()].iter().zip(&routing.weights[places]);
        pairs.take_while(|(expert, _)| **expert != NOBODY).map(|(&e, &w)| (e, w)).collect()
    };
    (0..routing.tokens).map(of_token).collect()
}

pub(crate) fn count_choices(routing: &CpuRouting, counts: &mut [f32]) {
    for &expert in routing.experts.iter().filter(|&&expert| expert != NOBODY) {
        counts[expert as usize] += 1.0;
    }
}

pub(crate) fn routing_from_host(choices: &[Vec<(u32, f32)>], experts: usize) -> CpuRouting {
    let (tokens, top_k) = (choices.len(), choices.iter().map(Vec::len).max().unwrap_or(0));
    let mut routing = CpuRouting {
        tokens,
        top_k,
        experts: vec![NOBODY; tokens * top_k],
        weights: vec![0.0; tokens * top_k],
    };
    for (token, chosen) in choices.iter().enumerate() {
        assert!(chosen.is_sorted_by(|a, b| a.0 < b.0), "choices ascend: {chosen:?}");
        assert!(chosen.last().is_none_or(|c| (c.0 as usize) < experts), "{chosen:?} of {experts} experts");
        for (place, &(expert, weight)) in (token * top_k..).zip(chosen) {
            routing.experts[place] = expert;
            routing.weights[place] = weight;
        }
    }
    routing
}

/// In place. The sum is sequential.
struct Softmax<'a>(&'a mut [f32]);

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let mut max = f32::NEG_INFINITY;
        for &x in &*self.0 {
            max = Lanes::max(x, max);
        }
        let (groups, tail) = self.0.as_chunks_mut::<LANES>();
        for x in groups.iter_mut() {
            math::exp(V::load(x).sub(V::splat(max))).store(x);
        }
        for x in tail.iter_mut() {
            *x = math::exp(*x - max);
        }
        let mut sum = 0.0;
        for &x in &*self.0 {
            sum += x;
        }
        for x in self.0 {
            *x /= sum;
        }
    }
}

/// The experts of the largest `p`, ties to the lower id, in ascending order.
fn choose(p: &[f32], chosen: &mut [u32]) {
    for i in 0..chosen.len() {
        let mut best: Option<usize> = None;
        for (expert, &value) in p.iter().enumerate() {
            if best.is_none_or(|b| value > p[b]) && !chosen[..i].contains(&(expert as u32)) {
                best = Some(expert);
            }
        }
        chosen[i] = best.expect("top_k is at most the number of experts") as u32;
    }
    chosen.sort_unstable();
}

/// Sorts the pairs of `experts` by expert, then by token.
pub(crate) fn assign(routing: &CpuRouting, experts: Range<usize>) -> CpuAssignment {
    let top_k = routing.top_k;
    let mut first_pair = vec![0; experts.len() + 1];
    for &expert in &routing.experts {
        if experts.contains(&(expert as usize)) {
            first_pair[expert as usize - experts.start + 1] += 1;
        }
    }
    for e in 0..experts.len() {
        first_pair[e + 1] += first_pair[e];
    }
    let pairs = first_pair[experts.len()];
    let mut next = first_pair.clone();
    let mut assignment = CpuAssignment {
        tokens: routing.tokens,
        top_k,
        busy: (0..experts.len()).filter(|&e| first_pair[e] < first_pair[e + 1]).collect(),
        first_pair,
        pair_token: vec![0; pairs],
        pair_weight: vec![0.0; pairs],
        by_token: vec![NONE; routing.experts.len()],
    };
    for token in 0..routing.tokens {
        let mut used = token * top_k;
        for choice in token * top_k..(token + 1) * top_k {
            let expert = routing.experts[choice] as usize;
            if experts.contains(&expert) {
                let pair = &mut next[expert - experts.start];
                assignment.pair_token[*pair] = token as u32;
                assignment.pair_weight[*pair] = routing.weights[choice];
                assignment.by_token[used] = ((expert - experts.start) as u32, *pair as u32);
                used += 1;
                *pair += 1;
            }
        }
    }
    assignment
}

/// `out [nodes · tokens, n]`: the program over the experts of the assignment, for every token.
pub(crate) fn combine(
    exec: &Exec,
    y: &[f32],
    n: usize,
    assignment: &CpuAssignment,
    program: &Program,
    out: &mut [f32],
) {
    let isa = exec.isa;
    let tokens = assignment.tokens;
    assert_eq!(program.merges.len(), assignment.num_experts(), "one item per expert of the assignment");
    assert_eq!(out.len(), program.num_nodes() * tokens * n);
    let out = Disjoint::new(out);
    exec.pool.split(
        tokens,
        grain(n * (assignment.top_k + program.num_nodes()) + program.merges.len()),
        |range| {
            let mut sums = Sums::default();
            for token in range {
                let chosen = &assignment.by_token[token * assignment.top_k..(token + 1) * assignment.top_k];
                sums.plan(chosen, program);
                for (node, pairs) in sums.nodes.iter().enumerate() {
                    let row = (node * tokens + token) * n;
                    // SAFETY: each token has rows of its own.
                    let out = unsafe { out.part(row..row + n) };
                    let Some(steps) = pairs.clone() else {
                        out.fill(-0.0);
                        continue;
                    };
                    isa.run(Sum { y, n, weights: &assignment.pair_weight, steps: &sums.steps[steps], out });
                }
            }
        },
    );
}

/// One node's sum for one token: push a pair, or merge the top two.
#[derive(Clone, Copy)]
enum Step {
    Push(u32),
    Merge,
}

/// What is left of a program where only some items are there: −0 adds nothing, so merges with it vanish.
#[derive(Default)]
struct Sums {
    steps: Vec<Step>,
    /// The steps of each node, or none if no item of it is there. A stack while it is planned.
    nodes: Vec<Option<Range<usize>>>,
}

impl Sums {
    fn plan(&mut self, chosen: &[(u32, u32)], program: &Program) {
        self.steps.clear();
        self.nodes.clear();
        let mut chosen = chosen.iter().copied().peekable();
        for (item, &merges) in program.merges.iter().enumerate() {
            let at = self.steps.len();
            self.nodes.push(chosen.next_if(|c| c.0 as usize == item).map(|(_, pair)| {
                self.steps.push(Step::Push(pair));
                at..at + 1
            }));
            for _ in 0..merges {
                let right = self.nodes.pop().expect("a program merges only what it pushed");
                let left = self.nodes.pop().expect("a program merges only what it pushed");
                self.nodes.push(match (left, right) {
                    (Some(left), Some(_)) => {
                        self.steps.push(Step::Merge);
                        Some(left.start..self.steps.len())
                    }
                    (left, right) => left.or(right),
                });
            }
        }
    }
}

struct Sum<'a> {
    y: &'a [f32],
    n: usize,
    weights: &'a [f32],
    steps: &'a [Step],
    out: &'a mut [f32],
}

/// Pairs that wait to be merged are fewer than the depth of any tree over 2^32 experts.
const MAX_STACK: usize = 34;

impl Kernel for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let whole = self.n / LANES * LANES;
        for col in (0..whole).step_by(LANES) {
            let mut stack = [V::splat(0.0); MAX_STACK];
            self.steps(&mut stack, |pair| {
                V::load(self.y[pair * self.n + col..].first_chunk().expect("a whole group"))
            });
            stack[0].store((&mut self.out[col..col + LANES]).try_into().expect("a whole group"));
        }
        for col in whole..self.n {
            let mut stack = [0f32; MAX_STACK];
            self.steps(&mut stack, |pair| self.y[pair * self.n + col]);
            self.out[col] = stack[0];
        }
    }
}

impl Sum<'_> {
    #[inline(always)]
    fn steps<L: Lanes>(&self, stack: &mut [L; MAX_STACK], load: impl Fn(usize) -> L) {
        let mut depth = 0;
        for step in self.steps {
            match *step {
                Step::Push(pair) => {
                    stack[depth] = L::splat(self.weights[pair as usize]).mul(load(pair as usize));
                    depth += 1;
                }
                Step::Merge => {
                    depth -= 1;
                    stack[depth - 1] = stack[depth - 1].add(stack[depth]);
                }
            }
        }
    }
}
