//! All axes of a split at once, up to eight ranks: each value of each axis meets each value of every other that it can meet,
//! and no bit changes.

mod common;

use std::collections::BTreeSet;

use common::{Golden, bits};
use engine::{EngineOptions, GenerateRequest, Plan, SamplingParams};
use model::parallel::{ExpertForm, ExpertOptions, ExpertPlacement};

const MOST_RANKS: usize = 8;
/// More than a segment of 1,024 positions, so that ranks that share a KV cache both have some of it.
const LONG: usize = 1040;

/// Tensor-parallel groups, of equal ranks and of unequal ones.
const WEIGHTS: [&[f64]; 8] = [
    &[1.0],
    &[1.0; 2],
    &[3.0, 1.0],
    &[1.0; 3],
    &[1.0, 4.0, 2.0],
    &[1.0; 4],
    &[3.0, 1.0, 2.0, 2.0],
    &[1.0; 8],
];
const STAGES: [usize; 2] = [1, 2];
const REPLICAS: [usize; 3] = [1, 2, 3];
const CONTEXT: [usize; 3] = [1, 2, 4];

/// How experts are split: sliced, or whole in every placement. A dense model has one way.
fn experts(golden: &Golden, ranks: usize) -> Vec<ExpertOptions> {
    let Some(moe) = golden.config.moe else { return vec![ExpertOptions::default()] };
    let backwards: Vec<usize> = (0..moe.num_experts).map(|e| (ranks - 1).saturating_sub(e / 2)).collect();
    let tokens: Vec<u64> = (0..moe.num_experts as u64).map(|e| 1 + (e * e * 37) % 101).collect();
    let whole = |placement| ExpertOptions { form: Some(ExpertForm::Whole), placement };
    vec![
        ExpertOptions { form: Some(ExpertForm::Sliced), ..ExpertOptions::default() },
        whole(ExpertPlacement::Contiguous),
        whole(ExpertPlacement::RoundRobin),
        whole(ExpertPlacement::Given(vec![backwards])),
        whole(ExpertPlacement::Balanced(vec![tokens])),
    ]
}

/// The number of a value for each axis: tensor, pipeline, data, experts, sequence, context.
type Combination = [usize; 6];

fn options(golden: &Golden, [tp, pp, dp, ep, sp, dcp]: Combination) -> EngineOptions {
    EngineOptions {
        rank_weights: WEIGHTS[tp].to_vec(),
        pipeline_parallel_size: STAGES[pp],
        data_parallel_size: REPLICAS[dp],
        experts: experts(golden, WEIGHTS[tp].len()).swap_remove(ep),
        sequence_parallel: sp == 1,
        decode_context_parallel_size: CONTEXT[dcp],
        threads_per_rank: Some(1),
        max_num_seqs: 3,
        max_num_batched_tokens: 300,
        ..Default::default()
    }
}

/// Whether there are ranks enough, and context groups of that size.
fn can_be(golden: &Golden, combination: Combination) -> bool {
    let alone = EngineOptions { decode_context_parallel_size: 1, ..options(golden, combination) };
    let plan = Plan::new(golden.config.clone(), &alone, None).expect("context groups of one can always be");
    let sizes = plan.layout.context_parallel_sizes();
    plan.mesh.size() <= MOST_RANKS && sizes.contains(&CONTEXT[combination[5]])
}

/// Every pair of values that a combination brings together.
fn pairs(combination: &Combination) -> impl Iterator<Item = [(usize, usize); 2]> {
    let values: Vec<(usize, usize)> = combination.iter().copied().enumerate().collect();
    (0..values.len()).flat_map(move |i| {
        let values = values.clone();
        (0..i).map(move |j| [values[j], values[i]])
    })
}

/// Few combinations in which all pairs meet that can: always the one that has the most new pairs.
fn combinations(golden: &Golden) -> Vec<Combination> {
    let of_axes = [WEIGHTS.len(), STAGES.len(), REPLICAS.len(), experts(golden, 1).len(), 2, CONTEXT.len()];
    let all = (0..of_axes.iter().product::<usize>()).map(|mut n| {
        of_axes.map(|values| {
            let value = n % values;
            n /= values;
            value
        })
    });
    let all: Vec<Combination> = all.filter(|&combination| can_be(golden, combination)).collect();
    let mut left: BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !left.is_empty() {
        let next = all.iter().max_by_key(|c| pairs(c).filter(|pair| left.contains(pair)).count());
        let next = *next.expect("what is left is of some combination");
        for pair in pairs(&next) {
            left.remove(&pair);
        }
        chosen.push(next);
    }
    chosen
}

/// Prompts of different lengths and settings; one is long.
fn batch(golden: &Golden, long: &[u32]) -> Vec<GenerateRequest> {
    let sampled = SamplingParams { temperature: 0.9, top_p: 0.9, seed: 3, ..Default::default() };
    let request = |i: usize| GenerateRequest {
        prompt: if i == 2 { long.to_vec() } else { golden.prompt[..1 + (i * 29) % 60].to_vec() },
        max_tokens: 3 + i,
        sampling: if i.is_multiple_of(2) { SamplingParams::default() } else { sampled.clone() },
        stop_token_ids: Vec::new(),
        ..GenerateRequest::default()
    };
    (0..5).map(request).collect()
}

fn has_the_bits_of_one_rank(name: &str) {
    let golden = Golden::named(name);
    let long: Vec<u32> = golden.prompt.iter().copied().cycle().take(LONG).collect();
    let requests = batch(&golden, &long);
    let mut alone = golden.engine(&options(&golden, [0; 6]));
    let scores = bits(&alone.score(&long).unwrap());
    let each = |request| alone.generate(std::slice::from_ref(request), &mut |_, _| false).unwrap().remove(0);
    let answers: Vec<_> = requests.iter().map(each).collect();
    for combination in combinations(&golden) {
        let options = options(&golden, combination);
        let mut engine = golden.engine(&options);
        assert!(bits(&engine.score(&long).unwrap()) == scores, "{name}: {options:?} scores otherwise");
        let got = engine.generate(&requests, &mut |_, _| false).unwrap();
        assert!(got == answers, "{name}: {options:?} gives {got:?}, alone {answers:?}");
    }
}

#[test]
fn a_dense_model_has_the_bits_of_one_rank_however_axes_meet() {
    has_the_bits_of_one_rank("llama_tied_bf16_sharded");
}

#[test]
fn mixtral_has_the_bits_of_one_rank_however_axes_meet() {
    has_the_bits_of_one_rank("mixtral");
}

#[test]
fn qwen3_moe_has_the_bits_of_one_rank_however_axes_meet() {
    has_the_bits_of_one_rank("qwen3_moe");
}

#[test]
fn eight_ranks_are_used_and_context_groups_meet_every_other_axis() {
    let golden = Golden::named("mixtral");
    let chosen = combinations(&golden);
    let sizes = |c: &&Combination| WEIGHTS[c[0]].len() * STAGES[c[1]] * REPLICAS[c[2]];
    assert_eq!(chosen.iter().map(|c| sizes(&c)).max(), Some(MOST_RANKS));
    let meets = |axis: usize, value: usize| chosen.iter().any(|c| CONTEXT[c[5]] > 1 && c[axis] == value);
    assert!(meets(1, 1) && meets(2, 1) && meets(4, 1) && (0..5).all(|way| meets(3, way)), "{chosen:?}");
    let unequal = |c: &&Combination| WEIGHTS[c[0]].iter().any(|weight| *weight != WEIGHTS[c[0]][0]);
    assert!(chosen.iter().filter(unequal).any(|c| CONTEXT[c[5]] > 1), "{chosen:?}");
}
