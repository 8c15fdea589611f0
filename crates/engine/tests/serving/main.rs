//! Requests that come and go while the engine runs: each gets, to the bit, what it gets alone, whatever runs beside it, on any
//! split, in any chunks, from whatever cache, and however often it loses its place.

#[path = "../common/mod.rs"]
mod common;
mod grammars;

use std::collections::BTreeMap;

use common::Golden;
use engine::serving::{Event, LoadReport};
use engine::{Engine, EngineOptions, FinishReason, GenerateRequest, Logprobs, PoolOptions, SamplingParams};

/// Requests that arrive over time.
const REQUESTS: usize = 64;

fn pool() -> PoolOptions {
    PoolOptions { kv_cache_memory_bytes: None, prefix_caching: true, max_num_batched_tokens: Some(64) }
}

fn options(tp: usize, pp: usize, dp: usize) -> EngineOptions {
    EngineOptions {
        rank_weights: vec![1.0; tp],
        pipeline_parallel_size: pp,
        data_parallel_size: dp,
        threads_per_rank: Some(1),
        max_num_seqs: 9,
        memory_share: Some(0.01),
        ..EngineOptions::default()
    }
}

/// Mixed lengths, several with a beginning in common, greedy and sampled, some with log-probabilities.
fn requests(golden: &Golden) -> Vec<GenerateRequest> {
    let text: Vec<u32> = golden.prompt.iter().copied().cycle().take(300).collect();
    let request = |i: usize| {
        let seed = i as u64;
        let sampled = SamplingParams { temperature: 0.9, top_p: 0.95, seed, ..Default::default() };
        let penalised = SamplingParams {
            temperature: 1.1,
            top_k: 30,
            repetition_penalty: 1.2,
            frequency_penalty: 0.2,
            seed,
            ..Default::default()
        };
        let length = [5, 17, 33, 90, 150, 64, 1][i % 7];
        let from = if i.is_multiple_of(3) { 0 } else { i % 5 };
        GenerateRequest {
            prompt: text[from..from + length].to_vec(),
            max_tokens: 1 + i * 7 % 29,
            sampling: [SamplingParams::default(), sampled, penalised][i % 3].clone(),
            logprobs: (i % 4 == 1).then_some(3),
            prompt_logprobs: (i % 8 == 5).then_some(1),
            logit_bias: if i % 9 == 2 { vec![(7, 3.0), (11, -5.0)] } else { Vec::new() },
            ..GenerateRequest::default()
        }
    };
    (0..REQUESTS).map(request).collect()
}

/// All that a request is told.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    tokens: Vec<u32>,
    logprobs: Vec<Option<Logprobs>>,
    prompt: Vec<Option<Logprobs>>,
    end: Option<FinishReason>,
}

impl Told {
    fn take(&mut self, event: Event) {
        match event {
            Event::Token { token, logprobs, end, .. } => {
                assert_eq!(self.end, None, "nothing follows the end");
                self.tokens.push(token);
                self.logprobs.push(logprobs);
                self.end = end;
            }
            Event::Prompt { logprobs, .. } => self.prompt.extend(logprobs),
            Event::Refused { message, .. } => panic!("{message}"),
            Event::Started { .. } | Event::Preempted { .. } => {}
        }
    }
}

/// Runs requests as they come, `at_once` at first and then one with every step; those in `aborted` end after their first token.
fn run(
    engine: &mut Engine,
    requests: &[GenerateRequest],
    at_once: usize,
    aborted: &[usize],
) -> (Vec<Told>, LoadReport) {
    let mut told = vec![Told::default(); requests.len()];
    let mut to_come = requests.iter().cloned().enumerate();
    for (id, request) in to_come.by_ref().take(at_once) {
        engine.submit(id as u64, request).unwrap();
    }
    loop {
        let mut events = Vec::new();
        engine.step(&mut |event| events.push(event)).unwrap();
        for event in events {
            let id = event.id() as usize;
            let is_token = matches!(event, Event::Token { end: None, .. });
            told[id].take(event);
            if is_token && aborted.contains(&id) && told[id].tokens.len() == 1 {
                engine.abort(id as u64).unwrap();
            }
        }
        match to_come.next() {
            Some((id, request)) => engine.submit(id as u64, request).unwrap(),
            None if engine.is_idle() => return (told, engine.load_report()),
            None => {}
        }
    }
}

/// What each request gets in an engine that has nothing else to do and remembers nothing.
fn alone(golden: &Golden, requests: &[GenerateRequest]) -> Vec<Told> {
    let mut engine = golden.engine(&options(1, 1, 1));
    engine
        .open(&PoolOptions { prefix_caching: false, max_num_batched_tokens: Some(4096), ..pool() })
        .unwrap();
    let one = |(id, request): (usize, &GenerateRequest)| {
        let mut told = Told::default();
        engine.submit(id as u64, request.clone()).unwrap();
        while !engine.is_idle() {
            engine.step(&mut |event| told.take(event)).unwrap();
        }
        told
    };
    requests.iter().enumerate().map(one).collect()
}

fn assert_same(what: &str, got: &[Told], want: &[Told], aborted: &[usize]) {
    for (id, (got, want)) in got.iter().zip(want).enumerate() {
        if aborted.contains(&id) {
            assert_eq!(got.tokens[0], want.tokens[0], "{what}: request {id}");
        } else {
            assert_eq!(got, want, "{what}: request {id}");
        }
    }
}

#[test]
fn requests_that_come_and_go_get_what_each_gets_alone() {
    let golden = Golden::named("llama");
    let requests = requests(&golden);
    let want = alone(&golden, &requests);
    assert!(want.iter().any(|told| told.prompt.len() > 80 && told.prompt[0].is_none()));
    let splits =
        [("tp 1", 1, 1, 1), ("tp 2", 2, 1, 1), ("tp 3", 3, 1, 1), ("pp 2", 1, 2, 1), ("dp 2", 1, 1, 2)];
    for (name, tp, pp, dp) in splits {
        for (prefix_caching, tokens) in
            [(true, Some(4096)), (true, Some(19)), (false, Some(33)), (true, None)]
        {
            let mut engine = golden.engine(&options(tp, pp, dp));
            engine.open(&PoolOptions { prefix_caching, max_num_batched_tokens: tokens, ..pool() }).unwrap();
            let aborted = [3, 20, 47];
            let (got, load) = run(&mut engine, &requests, 20, &aborted);
            let what = format!("{name}, steps of {tokens:?}, prefix caching {prefix_caching}");
            assert_same(&what, &got, &want, &aborted);
            assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0), "{what}");
            assert_eq!(load.prefix_hits > 0, prefix_caching, "{what}: {load:?}");
            let steps = engine.take_steps();
            assert_eq!(steps.len() as u64, load.steps, "{what}: each step of each replica is told of");
            assert!(steps.iter().sum::<usize>() as u64 >= load.prompt_tokens, "{what}: {steps:?}");
        }
    }
}

#[test]
fn a_tiny_cache_gives_the_bits_of_a_large_one_after_preemptions() {
    for name in ["llama", "qwen3_moe", "gemma3"] {
        let golden = Golden::named(name);
        let requests = requests(&golden);
        let want = alone(&golden, &requests);
        for (tp, pp, dp) in [(1, 1, 1), (2, 1, 1), (1, 2, 1)] {
            // No longer than 15 blocks, so that a pipeline has two lanes of so many.
            let mut engine =
                golden.engine(&EngineOptions { max_model_len: Some(16 * 15), ..options(tp, pp, dp) });
            let per_token =
                engine.reports().unwrap().iter().map(|rank| rank.kv_bytes_per_token).max().unwrap();
            // 15 blocks for each lane: the longest request needs 12.
            let bytes = per_token * 16 * 15 * pp as u64;
            engine.open(&PoolOptions { kv_cache_memory_bytes: Some(bytes), ..pool() }).unwrap();
            let (got, load) = run(&mut engine, &requests, REQUESTS, &[]);
            assert_same(name, &got, &want, &[]);
            assert!(load.preemptions > 0, "{name}: else this proves nothing: {load:?}");
            assert_eq!(load.kv_blocks, 15 * pp, "{name}");
        }
    }
}

#[test]
fn who_asks_for_too_much_is_refused_and_nobody_else_notices() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&options(1, 1, 1));
    engine.open(&pool()).unwrap();
    let good = golden.request(5);
    engine.submit(0, good.clone()).unwrap();
    let vocab = golden.config.vocab_size as u32;
    let wrong = [
        GenerateRequest { prompt: Vec::new(), ..good.clone() },
        GenerateRequest { prompt: vec![vocab], ..good.clone() },
        GenerateRequest { prompt: vec![1; engine.max_model_len()], ..good.clone() },
        GenerateRequest { max_tokens: 0, ..good.clone() },
        GenerateRequest {
            sampling: SamplingParams { top_p: f32::NAN, ..Default::default() },
            ..good.clone()
        },
    ];
    for (id, request) in wrong.into_iter().enumerate() {
        let error = engine.submit(1 + id as u64, request).unwrap_err();
        assert!(error.is_usage() && !error.to_string().contains('\n'), "{error}");
    }
    let mut told = Told::default();
    while !engine.is_idle() {
        engine.step(&mut |event| told.take(event)).unwrap();
    }
    assert_eq!(told.tokens, golden.greedy[..5]);
}

#[test]
fn a_second_prompt_with_the_same_beginning_computes_only_its_end() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&options(2, 1, 1));
    engine.open(&pool()).unwrap();
    let prompt: Vec<u32> = golden.prompt.iter().copied().cycle().take(203).collect();
    let longer = [&prompt[..], &[5, 6, 7]].concat();
    let of = |prompt: Vec<u32>, salt| GenerateRequest {
        prompt,
        max_tokens: 2,
        cache_salt: salt,
        ..Default::default()
    };
    let mut started = BTreeMap::new();
    for (id, request) in [of(prompt, 0), of(longer.clone(), 0), of(longer, 1)].into_iter().enumerate() {
        engine.submit(id as u64, request).unwrap();
        while !engine.is_idle() {
            let note = &mut |event| {
                if let Event::Started { id, cached_tokens } = event {
                    started.insert(id, cached_tokens);
                }
            };
            engine.step(note).unwrap();
        }
    }
    // Also what is in a block that the first prompt did not fill.
    assert_eq!(started, BTreeMap::from([(0, 0), (1, 203), (2, 0)]));
}

#[test]
fn once_all_is_done_ranks_have_taken_the_steps_that_are_told_of() {
    let golden = Golden::named("llama");
    for (tp, pp, dp) in [(2, 1, 1), (1, 2, 1), (1, 1, 2)] {
        let mut engine = golden.engine(&options(tp, pp, dp));
        engine.open(&pool()).unwrap();
        let (_, load) = run(&mut engine, &requests(&golden)[..6], 3, &[]);
        engine.ask_for_pulses().unwrap();
        let pulses = loop {
            match engine.take_pulses() {
                Some(pulses) => break pulses,
                None => engine.step(&mut |_| {}).unwrap(),
            }
        };
        let steps: Vec<u64> = pulses.iter().map(|pulse| pulse.steps).collect();
        assert!(dp > 1 || steps.iter().all(|&of_rank| of_rank == load.steps), "{steps:?} of {}", load.steps);
        assert!(dp == 1 || steps.iter().sum::<u64>() == load.steps, "{steps:?} of {}", load.steps);
    }
}

#[test]
fn a_cache_that_memory_has_no_room_for_is_refused_with_both_sizes() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&EngineOptions { max_num_seqs: 1_000_000_000, ..options(1, 1, 1) });
    let asked = 1 << 50;
    let pool = PoolOptions { kv_cache_memory_bytes: Some(asked), ..pool() };
    let error = engine.open(&pool).unwrap_err();
    let told = error.to_string();
    assert!(error.is_usage() && told.contains(&format!("--kv-cache-memory-bytes {asked}")), "{told}");
    assert!(told.contains("bytes of memory left"), "{told}");
}

#[test]
fn a_small_cache_holds_as_long_a_prompt_for_a_pipeline_as_for_one_stage_and_says_what_it_lacks() {
    let golden = Golden::named("llama");
    let prompt = golden.prompt.iter().copied().cycle().take(16 * 60 - 5).collect();
    let request = GenerateRequest { prompt, ..golden.request(5) };
    let want = alone(&golden, std::slice::from_ref(&request));
    for (pp, warnings) in [(1, 1), (2, 2)] {
        let mut engine = golden.engine(&options(1, pp, 1));
        let per_token = engine.reports().unwrap().iter().map(|rank| rank.kv_bytes_per_token).max().unwrap();
        let bytes = Some(per_token * 16 * 60);
        engine.open(&PoolOptions { kv_cache_memory_bytes: bytes, ..pool() }).unwrap();
        assert_eq!((engine.max_model_len(), engine.full_model_len()), (960, 4096));
        assert_eq!(engine.kv_cache_warnings().len(), warnings, "{:?}", engine.kv_cache_warnings());
        let (got, _) = run(&mut engine, std::slice::from_ref(&request), 1, &[]);
        assert_same("llama", &got, &want, &[]);
        let long = GenerateRequest { prompt: vec![1; 960], ..request.clone() };
        let error = engine.submit(9, long).unwrap_err().to_string();
        assert!(error.contains("at most 960 positions, for which the KV cache has room"), "{error}");
    }
}
