//! What is done beside the steps holds up nobody who runs.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use checkpoint::{Checkpoint, WeightSource, config_file};
use model::ModelConfig;

use crate::serving::Event;
use crate::text::Tokenizer;
use crate::{Engine, EngineOptions, GenerateRequest, Grammar, Grammars, PoolOptions};

/// The demo model, over two replicas or one.
fn demo(replicas: usize) -> (Engine, Arc<Grammars>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let config = ModelConfig::parse(&config_file(&dir).unwrap(), None).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_dir(&dir).unwrap());
    let grammars = Arc::new(Grammars::new(tokenizer, config.vocab_size, config.eos_token_ids.clone()));
    let options = EngineOptions {
        grammars: Some(grammars.clone()),
        data_parallel_size: replicas,
        threads_per_rank: Some(1),
        ..EngineOptions::default()
    };
    let source = WeightSource::Files(Checkpoint::open(&dir).unwrap());
    let mut engine = Engine::load(config, source, &options, &|_, _| {}).unwrap();
    let pool = PoolOptions {
        kv_cache_memory_bytes: None,
        memory_share: 0.01,
        prefix_caching: true,
        max_num_batched_tokens: None,
    };
    engine.open(&pool).unwrap();
    (engine, grammars)
}

fn request(max_tokens: usize, grammar: Option<Grammar>) -> GenerateRequest {
    GenerateRequest { prompt: vec![5, 6, 7], max_tokens, grammar, ..GenerateRequest::default() }
}

/// Tokens of each request until `until` says so.
fn run(engine: &mut Engine, tokens: &mut [usize], until: impl Fn(&Engine, &[usize]) -> bool) {
    while !until(engine, tokens) {
        let count = &mut |event: Event| match event {
            Event::Token { id, .. } => tokens[id as usize] += 1,
            Event::Refused { message, .. } => panic!("{message}"),
            _ => {}
        };
        engine.step(count).unwrap();
    }
}

#[test]
fn nobody_waits_for_the_grammar_of_another() {
    for replicas in [1, 2] {
        let (mut engine, grammars) = demo(replicas);
        let digits = Grammar::Regex("[0-9]{9}".into());
        let (ready, is_ready) = channel::<()>();
        let (begun, has_begun) = channel();
        let held = (grammars, digits.clone());
        let hold = move || {
            held.0.hold(&held.1, || {
                begun.send(()).unwrap();
                is_ready.recv().unwrap();
            });
        };
        let holding = std::thread::spawn(hold);
        has_begun.recv().unwrap();
        let mut tokens = [0; 5];
        for (id, grammar) in [Some(digits.clone()), None, Some(digits), None, None].into_iter().enumerate() {
            engine.submit(id as u64, request(4, grammar)).unwrap();
        }
        // Those that came later end before it begins; and an abort of one that waits is heard.
        run(&mut engine, &mut tokens, |_, tokens| tokens[1] + tokens[3] + tokens[4] == 12);
        assert_eq!((tokens[0], tokens[2], engine.load_report().waiting), (0, 0, 2));
        engine.abort(2).unwrap();
        ready.send(()).unwrap();
        run(&mut engine, &mut tokens, |engine, _| engine.is_idle());
        assert_eq!(tokens, [4, 4, 0, 4, 4]);
        holding.join().unwrap();
    }
}

#[test]
fn after_an_abort_the_load_is_told_before_the_engine_rests() {
    let (mut engine, _) = demo(2);
    let mut tokens = [0; 4];
    for id in 0..4 {
        engine.submit(id, request(200, None)).unwrap();
    }
    run(&mut engine, &mut tokens, |_, tokens| tokens.iter().all(|&n| n > 2));
    assert_eq!(engine.load_report().running, 4);
    (0..4).for_each(|id| engine.abort(id).unwrap());
    run(&mut engine, &mut tokens, |engine, _| engine.is_idle());
    let load = engine.load_report();
    assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0));
}

#[test]
fn pulses_of_all_replicas_come_while_requests_run() {
    let (mut engine, _) = demo(2);
    let mut tokens = [0; 2];
    (0..2).for_each(|id| engine.submit(id, request(50, None)).unwrap());
    run(&mut engine, &mut tokens, |_, tokens| tokens.iter().all(|&n| n > 2));
    engine.ask_for_pulses().unwrap();
    engine.ask_for_pulses().unwrap();
    let pulses = loop {
        assert!(!engine.is_idle(), "it rests when all have answered");
        if let Some(pulses) = engine.take_pulses() {
            break pulses;
        }
        engine.step(&mut |_| {}).unwrap();
    };
    assert_eq!(pulses.iter().map(|pulse| pulse.rank).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(engine.take_pulses(), None);
}
