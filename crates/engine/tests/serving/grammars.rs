//! Requests that are held to grammars.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use checkpoint::{Checkpoint, WeightSource};
use engine::serving::Event;
use engine::text::Tokenizer;
use engine::{
    Engine, EngineOptions, FinishReason, GenerateRequest, Grammar, Grammars, Opened, PoolOptions,
    SamplingParams,
};
use model::ModelConfig;

use super::{Told, assert_same, options, pool, run};

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
