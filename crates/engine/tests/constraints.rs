//! Biases and `min_tokens` do what they say, alike on any split, in any batch.

mod common;

use common::Golden;
use engine::{EngineOptions, GenerateRequest, SamplingParams};

fn splits() -> [EngineOptions; 5] {
    let split = |tp, pp, dp| EngineOptions {
        rank_weights: vec![1.0; tp],
        pipeline_parallel_size: pp,
        data_parallel_size: dp,
        threads_per_rank: Some(1),
        ..Default::default()
    };
    let chunked = EngineOptions { max_num_batched_tokens: 11, max_num_seqs: 2, ..split(1, 1, 1) };
    [split(1, 1, 1), split(2, 1, 1), split(3, 1, 2), split(1, 2, 1), chunked]
}

fn tokens(golden: &Golden, options: &EngineOptions, requests: &[GenerateRequest]) -> Vec<Vec<u32>> {
    let completions = golden.engine(options).generate(requests, &mut |_, _| false).unwrap();
    completions.into_iter().map(|completion| completion.token_ids).collect()
}

#[test]
fn a_bias_makes_a_token_certain_or_impossible_on_any_split() {
    let golden = Golden::named("llama");
    let greedy = golden.greedy[0];
    let with = |logit_bias: Vec<(u32, f32)>, temperature| GenerateRequest {
        logit_bias,
        sampling: SamplingParams { temperature, seed: 5, ..Default::default() },
        ..golden.request(6)
    };
    let never = golden.greedy.iter().map(|&id| (id, -100.0)).collect();
    let requests = [
        with(vec![(200, 100.0)], 0.7),
        with(never, 0.0),
        with(vec![(greedy, -100.0)], 1.0),
        with(Vec::new(), 1.0),
    ];
    let [one, others @ ..] = splits();
    let want = tokens(&golden, &one, &requests);
    assert_eq!(want[0], [200; 6]);
    assert!(want[1].iter().all(|id| !golden.greedy.contains(id)) && !want[2].contains(&greedy));
    for options in others {
        assert_eq!(tokens(&golden, &options, &requests), want, "{options:?}");
    }
}

#[test]
fn no_stop_token_comes_before_min_tokens_on_any_split() {
    let golden = Golden::named("llama");
    let stops: Vec<u32> = golden.greedy[..4].to_vec();
    let with = |min_tokens| GenerateRequest {
        stop_token_ids: stops.clone(),
        min_tokens,
        // Such that a stop is near.
        logit_bias: stops.iter().map(|&id| (id, 30.0)).collect(),
        ..golden.request(12)
    };
    let requests: Vec<GenerateRequest> = [0, 1, 5, 12, 40].map(with).into();
    let [one, others @ ..] = splits();
    let want = tokens(&golden, &one, &requests);
    for (completion, shortest) in want.iter().zip([0, 1, 5, 12, 12]) {
        let ends = completion.iter().position(|id| stops.contains(id));
        assert_eq!(
            (completion.len(), ends.unwrap_or(12)),
            (12.min(shortest + 1), shortest),
            "{completion:?}"
        );
    }
    for options in others {
        assert_eq!(tokens(&golden, &options, &requests), want, "{options:?}");
    }
}

#[test]
fn a_bias_of_an_id_that_is_none_is_refused_before_anything_runs() {
    let golden = Golden::named("llama");
    let request = GenerateRequest { logit_bias: vec![(277, 1.0)], ..golden.request(2) };
    let error = golden.engine(&splits()[0]).generate(&[request], &mut |_, _| false).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("id 277"), "{error}");
}
