//! Whatever keys and values are kept in, neither split nor batch nor chunks change a bit.

mod common;

use common::{Golden, bits};
use engine::{EngineOptions, GenerateRequest, SamplingParams};
use tensor::{DType, KvDType};

/// More than a segment of 1,024 positions, so that ranks that share a KV cache both have some of it.
const LONG: usize = 1040;

fn options(kv: KvDType) -> EngineOptions {
    EngineOptions { kv_cache_dtype: Some(kv), threads_per_rank: Some(1), ..Default::default() }
}

/// Every axis that a dense model has, unequal ranks, two threads, small chunks.
fn splits(kv: KvDType) -> [EngineOptions; 4] {
    let tp = |weights: &[f64]| EngineOptions { rank_weights: weights.to_vec(), ..options(kv) };
    [
        EngineOptions { threads_per_rank: Some(2), max_num_batched_tokens: 100, ..tp(&[1.0; 2]) },
        EngineOptions { sequence_parallel: true, max_num_batched_tokens: 17, ..tp(&[3.0, 1.0, 2.0]) },
        EngineOptions { decode_context_parallel_size: 2, max_num_batched_tokens: 300, ..tp(&[1.0; 4]) },
        EngineOptions { pipeline_parallel_size: 2, data_parallel_size: 2, max_num_seqs: 2, ..tp(&[1.0; 2]) },
    ]
}

fn long(golden: &Golden) -> Vec<u32> {
    golden.prompt.iter().copied().cycle().take(LONG).collect()
}

fn requests(golden: &Golden) -> Vec<GenerateRequest> {
    let sampled = SamplingParams { temperature: 0.9, top_p: 0.9, seed: 3, ..Default::default() };
    let request = |prompt: Vec<u32>, sampling| GenerateRequest {
        prompt,
        max_tokens: 6,
        sampling,
        stop_token_ids: Vec::new(),
        ..GenerateRequest::default()
    };
    vec![
        request(golden.prompt[..30].to_vec(), sampled.clone()),
        request(long(golden), SamplingParams::default()),
        request(golden.prompt[..1].to_vec(), sampled),
    ]
}

fn has_the_bits_of_one_rank(kv: KvDType) {
    let golden = Golden::named("llama_tied_bf16_sharded");
    let (long, requests) = (long(&golden), requests(&golden));
    let mut alone = golden.engine(&options(kv));
    let scores = bits(&alone.score(&long).unwrap());
    let each = |request| alone.generate(std::slice::from_ref(request), &mut |_, _| false).unwrap().remove(0);
    let answers: Vec<_> = requests.iter().map(each).collect();
    for options in splits(kv) {
        let mut engine = golden.engine(&options);
        assert!(bits(&engine.score(&long).unwrap()) == scores, "{options:?} scores otherwise");
        let got = engine.generate(&requests, &mut |_, _| false).unwrap();
        assert!(got == answers, "{options:?} gives {got:?}, alone {answers:?}");
    }
}

#[test]
fn fp8_has_the_bits_of_one_rank_on_any_split() {
    has_the_bits_of_one_rank(KvDType::Fp8);
}

#[test]
fn bfloat16_has_the_bits_of_one_rank_on_any_split() {
    has_the_bits_of_one_rank(DType::BF16.into());
}

#[test]
fn fp8_is_used_by_every_model_and_all_that_it_gives_is_finite() {
    for golden in Golden::all() {
        let score = |kv| golden.engine(&options(kv)).score(&golden.prompt).unwrap();
        let (exact, rounded) = (score(DType::F32.into()), score(KvDType::Fp8));
        assert!(rounded.iter().flatten().all(|logprob| logprob.is_finite()), "{}", golden.name);
        assert!(bits(&exact) != bits(&rounded), "{}: fp8 is not used", golden.name);
    }
}
