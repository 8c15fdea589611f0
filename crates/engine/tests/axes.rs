//! Tensor, pipeline, data, expert and sequence parallelism, in any combination, never change a bit.

mod common;

use common::{Golden, bits};
use engine::{EngineOptions, GenerateRequest, SamplingParams};

fn axes(tp: usize, pp: usize, dp: usize, sp: bool) -> EngineOptions {
    EngineOptions {
        rank_weights: vec![1.0; tp],
        pipeline_parallel_size: pp,
        data_parallel_size: dp,
        sequence_parallel: sp,
        threads_per_rank: Some(1),
        ..Default::default()
    }
}

/// Every golden checkpoint of few positions.
fn goldens() -> impl Iterator<Item = Golden> {
    Golden::all().into_iter().filter(|golden| golden.prompt.len() < 500)
}

fn assert_scores_alike(golden: &Golden, options: EngineOptions) {
    let want = bits(&golden.engine(&axes(1, 1, 1, false)).score(&golden.prompt).unwrap());
    let got = bits(&golden.engine(&options).score(&golden.prompt).unwrap());
    assert!(got == want, "{}, {options:?}: the bits differ", golden.name);
}

#[test]
fn stages_give_the_bits_of_one_rank() {
    for golden in goldens() {
        let layers = golden.config.num_layers();
        assert_scores_alike(&golden, axes(1, layers.min(2), 1, false));
        assert_scores_alike(&golden, axes(2, layers.min(3), 1, false));
    }
}

#[test]
fn a_split_residual_stream_gives_the_bits_of_one_rank() {
    for golden in goldens() {
        let heads = golden.config.num_heads;
        for tp in [2, 3, 5].into_iter().filter(|&tp| tp <= heads) {
            assert_scores_alike(&golden, axes(tp, 1, 1, true));
        }
        assert_scores_alike(&golden, axes(2, golden.config.num_layers().min(2), 1, true));
        // One row per step: most ranks have none.
        let single = EngineOptions { max_num_batched_tokens: 1, ..axes(3.min(heads), 1, 1, true) };
        assert_scores_alike(&golden, single);
    }
}

/// Prompts of different lengths and settings.
fn batch(golden: &Golden) -> Vec<GenerateRequest> {
    let sampled = SamplingParams { temperature: 0.9, top_p: 0.9, seed: 3, ..Default::default() };
    let request = |i: usize| GenerateRequest {
        prompt: golden.prompt[..1 + (i * 13) % 60].to_vec(),
        max_tokens: 4 + i,
        sampling: if i.is_multiple_of(2) { SamplingParams::default() } else { sampled.clone() },
        stop_token_ids: Vec::new(),
        ..GenerateRequest::default()
    };
    (0..7).map(request).collect()
}

#[test]
fn replicas_and_lanes_give_each_request_what_it_gets_alone() {
    for name in ["llama", "mixtral", "qwen3_moe"] {
        let golden = Golden::named(name);
        let requests = batch(&golden);
        let mut alone = golden.engine(&axes(1, 1, 1, false));
        let want: Vec<_> = requests
            .iter()
            .map(|r| alone.generate(std::slice::from_ref(r), &mut |_, _| false).unwrap().remove(0))
            .collect();
        for (tp, pp, dp, sp) in [
            (1, 1, 2, false),
            (1, 2, 1, false),
            (1, 2, 2, true),
            (2, 2, 2, true),
            (2, 1, 3, false),
            (2, 2, 1, false),
        ] {
            let options =
                EngineOptions { max_num_seqs: 3, max_num_batched_tokens: 70, ..axes(tp, pp, dp, sp) };
            let mut engine = golden.engine(&options);
            // Twice: what the first call leaves must not matter to the second.
            for _ in 0..2 {
                let got = engine.generate(&requests, &mut |_, _| false).unwrap();
                assert!(got == want, "{name}: {options:?} gives {got:?}, alone {want:?}");
            }
            let reports = engine.reports().unwrap();
            assert_eq!(reports.len(), tp * pp * dp, "every rank reports");
        }
    }
}

#[test]
fn a_request_that_its_caller_ends_ends_on_every_replica() {
    let golden = Golden::named("llama");
    let requests = batch(&golden);
    let mut engine = golden.engine(&axes(1, 2, 2, false));
    let mut heard = vec![0; requests.len()];
    for _ in 0..2 {
        heard.fill(0);
        let got = engine.generate(&requests, &mut |index, _| {
            heard[index] += 1;
            heard[index] == 2
        });
        assert!(got.unwrap().iter().all(|completion| completion.token_ids.len() == 2));
        assert!(heard.iter().all(|&n| n == 2), "nothing comes after the end: {heard:?}");
    }
}
