//! Requests that come and go while the engine runs: each gets, to the bit, what it gets alone, whatever runs beside it, on any
//! split, in any chunks, from whatever cache, and however often it loses its place.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use checkpoint::{Checkpoint, WeightSource};
use common::Golden;
use engine::serving::{Event, LoadReport};
use engine::text::Tokenizer;
use engine::{
    Engine, EngineOptions, FinishReason, GenerateRequest, Grammar, Grammars, Logprobs, Opened, PoolOptions,
    SamplingParams,
};
use model::ModelConfig;

/// Requests that arrive over time.
const REQUESTS: usize = 64;

fn pool() -> PoolOptions {
    PoolOptions {
        kv_cache_memory_bytes: None,
        memory_share: 0.01,
        prefix_caching: true,
        max_num_batched_tokens: Some(64),
    }
}

fn options(tp: usize, pp: usize, dp: usize) -> EngineOptions {
    EngineOptions {
        rank_weights: vec![1.0; tp],
        pipeline_parallel_size: pp,
        data_parallel_size: dp,
        threads_per_rank: Some(1),
        max_num_seqs: 9,
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

/// The demo model: the golden checkpoints have no tokenizer.
fn demo() -> (Engine, Arc<Grammars>, Arc<Tokenizer>) {
    let (mut engine, grammars, tokenizer) = demo_on(options(2, 1, 2));
    engine.open(&pool()).unwrap();
    (engine, grammars, tokenizer)
}

fn demo_on(options: EngineOptions) -> (Engine, Arc<Grammars>, Arc<Tokenizer>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let config = ModelConfig::parse(&checkpoint::config_file(&dir).unwrap(), None).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_dir(&dir).unwrap());
    let grammars =
        Arc::new(Grammars::new(tokenizer.clone(), config.vocab_size, config.eos_token_ids.clone()));
    let options = EngineOptions { grammars: Some(grammars.clone()), ..options };
    let source = WeightSource::Files(Checkpoint::open(&dir).unwrap());
    (Engine::load(config, source, &options, &|_, _| {}).unwrap(), grammars, tokenizer)
}

fn held_to(grammar: Grammar, prompt: &[u32], temperature: f32, seed: u64) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        max_tokens: 200,
        sampling: SamplingParams { temperature, seed, ..Default::default() },
        stop_token_ids: vec![1, 3],
        grammar: Some(grammar.into()),
        ..GenerateRequest::default()
    }
}

#[test]
fn completions_conform_to_their_grammars() {
    let (mut engine, _, tokenizer) = demo();
    let prompt = tokenizer.encode("Once upon a time", true).unwrap();
    let schema = r#"{"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 7, "maximum": 90},
        "kind": {"enum": ["cat", "ship"]}, "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        "required": ["name", "age", "kind", "tags"], "additionalProperties": false}"#;
    let json = Grammar::JsonSchema(schema.into());
    let date = Grammar::Regex("[12][0-9]{3}-(0[1-9]|1[0-2])".into());
    let word = Grammar::Lark("start: \"yes\" | \"no\" \" \" (\"way\" | \"idea\")".into());
    let mut requests = Vec::new();
    for seed in 0..4 {
        for grammar in [&json, &date, &word] {
            requests.push(held_to(grammar.clone(), &prompt, seed as f32 * 0.6, seed));
        }
    }
    let (told, _) = run(&mut engine, &requests, requests.len(), &[]);
    for (told, request) in told.iter().zip(&requests) {
        assert_eq!(told.end, Some(FinishReason::Stop));
        let text = tokenizer.decode(&told.tokens, true).unwrap();
        let text = text.trim_start();
        match request.grammar.as_deref().unwrap() {
            Grammar::JsonSchema(_) => {
                let value: serde_json::Value =
                    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
                assert!(value["age"].as_u64().is_some_and(|age| (7..=90).contains(&age)), "{text}");
                assert!(["cat", "ship"].contains(&value["kind"].as_str().unwrap()), "{text}");
            }
            Grammar::Regex(_) => assert!(text.len() == 7 && text.as_bytes()[4] == b'-', "{text}"),
            Grammar::Lark(_) => assert!(["yes", "no way", "no idea"].contains(&text), "{text}"),
            Grammar::Opened(_) => unreachable!("none was asked for"),
        }
    }
}

/// Completions of every kind of grammar and of none, some penalised, some with the same text.
fn mixed(tokenizer: &Tokenizer) -> Vec<GenerateRequest> {
    let schema = r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 9}},
        "required": ["a", "b"], "additionalProperties": false}"#;
    let call = Opened {
        openers: vec![" the".into(), " a".into()],
        first_openers: vec!["{".into()],
        grammar: "start: / (the|a)/ /[a-z ]{4,20}/ \".\"".into(),
        repeats: true,
    };
    let grammars = [
        Some(Grammar::JsonSchema(schema.into())),
        Some(Grammar::Regex("([0-9]{2,5} )+end".into())),
        None,
        Some(Grammar::Opened(Box::new(call))),
        Some(Grammar::Lark("start: (\"yes\" | \"no\") (\", \" /[a-z]+/)*".into())),
    ];
    let prompt = tokenizer.encode("Once upon a time, there was a little girl", true).unwrap();
    let request = |i: usize| {
        let prompt = &prompt[..prompt.len() - i % 4];
        let mut request = held_to(Grammar::Regex("x".into()), prompt, 0.4 * (i % 3) as f32, i as u64);
        request.grammar = grammars[i % grammars.len()].clone().map(Arc::new);
        request.sampling.repetition_penalty = if i % 4 == 1 { 1.2 } else { 1.0 };
        request.min_tokens = i % 7;
        request.logprobs = i.is_multiple_of(6).then_some(2);
        GenerateRequest { max_tokens: 20 + i, ..request }
    };
    (0..15).map(request).collect()
}

#[test]
fn completions_under_grammars_are_the_same_alone_beside_others_on_any_split_and_after_preemptions() {
    let (mut engine, _, tokenizer) = demo_on(options(1, 1, 1));
    engine.open(&PoolOptions { prefix_caching: false, ..pool() }).unwrap();
    let requests = mixed(&tokenizer);
    let mut want = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        let mut told = Told::default();
        engine.submit(100 + id as u64, request.clone()).unwrap();
        while !engine.is_idle() {
            engine.step(&mut |event| told.take(event)).unwrap();
        }
        want.push(told);
    }
    for (tp, pp, dp) in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2)] {
        for (prefix_caching, is_tiny) in [(true, false), (false, true), (true, true)] {
            let (mut engine, _, _) = demo_on(options(tp, pp, dp));
            let per_token =
                engine.reports().unwrap().iter().map(|rank| rank.kv_bytes_per_token).max().unwrap();
            // For each lane enough for the longest, and no more.
            let bytes = is_tiny.then_some(per_token * 16 * 4 * pp as u64);
            engine.open(&PoolOptions { prefix_caching, kv_cache_memory_bytes: bytes, ..pool() }).unwrap();
            let (got, load) = run(&mut engine, &requests, 9, &[2]);
            let what = format!("tp {tp}, pp {pp}, dp {dp}, prefix caching {prefix_caching}, tiny {is_tiny}");
            assert_same(&what, &got, &want, &[2]);
            assert_eq!(load.preemptions > 0, is_tiny, "{what}: {load:?}");
        }
    }
}

#[test]
fn a_completion_that_has_all_its_tokens_needs_no_further_mask() {
    let (mut engine, _, tokenizer) = demo();
    let prompt = tokenizer.encode("The", true).unwrap();
    // Nothing conforms behind the first letter, which is found out there.
    let dead = held_to(Grammar::Lark("start: \"a\" X\nX: /b/ & /c/".into()), &prompt, 0.0, 0);
    engine.submit(0, GenerateRequest { max_tokens: 1, ..dead.clone() }).unwrap();
    engine.submit(1, GenerateRequest { max_tokens: 2, ..dead }).unwrap();
    let mut ends = BTreeMap::new();
    while !engine.is_idle() {
        let on = &mut |event: Event| match event {
            Event::Token { id, end: Some(end), .. } => drop(ends.insert(id, Some(end))),
            Event::Refused { id, .. } => drop(ends.insert(id, None)),
            _ => {}
        };
        engine.step(on).unwrap();
    }
    assert_eq!(ends, BTreeMap::from([(0, Some(FinishReason::Length)), (1, None)]));
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
fn grammars_that_cannot_be_used_are_refused_in_one_line() {
    let (mut engine, grammars, tokenizer) = demo();
    let nested = "(".repeat(20_000);
    let wrong = [
        Grammar::JsonSchema("{".into()),
        Grammar::JsonSchema(r#"{"type": "strange"}"#.into()),
        Grammar::JsonSchema(r#"{"$ref": "http://127.0.0.1:9/elsewhere.json"}"#.into()),
        Grammar::JsonSchema(r##"{"$ref": "#/$defs/none"}"##.into()),
        Grammar::Regex("[a".into()),
        Grammar::Regex(nested.clone()),
        Grammar::Lark("start: missing".into()),
        Grammar::Lark("x".repeat(2 << 20)),
    ];
    let prompt = tokenizer.encode("The", true).unwrap();
    for (id, grammar) in wrong.into_iter().enumerate() {
        let error = grammars.check(&grammar).unwrap_err().to_string();
        assert!(error.contains("can't be used") && !error.contains('\n'), "{error}");
        assert!(error.len() < 1000, "{} bytes", error.len());
        // The same from any replica, while it runs.
        engine.submit(id as u64, held_to(grammar, &prompt, 0.0, 0)).unwrap();
    }
    let mut refused = 0;
    while !engine.is_idle() {
        engine.step(&mut |event| refused += u32::from(matches!(event, Event::Refused { .. }))).unwrap();
    }
    assert_eq!(refused, 8);
}

#[test]
fn a_grammar_that_costs_much_while_it_runs_changes_nothing_for_others() {
    let (mut engine, _, tokenizer) = demo();
    let prompt = tokenizer.encode("Once upon a time", true).unwrap();
    let good = GenerateRequest { grammar: None, ..held_to(Grammar::Regex("x".into()), &prompt, 0.8, 5) };
    let (want, _) = run(&mut engine, std::slice::from_ref(&good), 1, &[]);
    let bomb = held_to(Grammar::Regex("((a{1,1000}){1,1000}){1,1000}".into()), &prompt, 0.0, 0);
    engine.submit(10, bomb).unwrap();
    engine.submit(11, good).unwrap();
    // It runs to its end, or is ended with an error: both end only itself.
    let (mut told, mut ends) = (Told::default(), 0);
    while !engine.is_idle() {
        let on = &mut |event: Event| match event.id() {
            10 => ends += u32::from(event.is_last()),
            _ => told.take(event),
        };
        engine.step(on).unwrap();
    }
    assert_eq!((told, ends), (want[0].clone(), 1));
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
