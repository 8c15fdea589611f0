//! Steps are such that nobody waits long, and what is done beside them holds up nobody.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use checkpoint::{Checkpoint, WeightSource, config_file};
use model::ModelConfig;
use scheduler::Batch;

use super::{Flight, Prepare, Replica};
use crate::serving::{self, Event, FromEngine, ToEngine};
use crate::text::Tokenizer;
use crate::{Engine, EngineOptions, GenerateRequest, Grammar, Grammars, PoolOptions};

/// The demo model, over two replicas or one.
fn demo(replicas: usize) -> (Engine, Arc<Grammars>) {
    demo_of(replicas, EngineOptions::default().max_num_seqs)
}

/// The same with so many places in each.
fn demo_of(replicas: usize, max_num_seqs: usize) -> (Engine, Arc<Grammars>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let config = ModelConfig::parse(&config_file(&dir).unwrap(), None).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_dir(&dir).unwrap());
    let grammars = Arc::new(Grammars::new(tokenizer, config.vocab_size, config.eos_token_ids.clone()));
    let options = EngineOptions {
        grammars: Some(grammars.clone()),
        data_parallel_size: replicas,
        max_num_seqs,
        threads_per_rank: Some(1),
        memory_share: Some(0.01),
        ..EngineOptions::default()
    };
    let source = WeightSource::Files(Checkpoint::open(&dir).unwrap());
    let mut engine = Engine::load(config, source, &options, &|_, _| {}).unwrap();
    let pool =
        PoolOptions { kv_cache_memory_bytes: None, prefix_caching: true, max_num_batched_tokens: None };
    engine.open(&pool).unwrap();
    (engine, grammars)
}

fn request(max_tokens: usize, grammar: Option<Grammar>) -> GenerateRequest {
    GenerateRequest {
        prompt: vec![5, 6, 7],
        max_tokens,
        grammar: grammar.map(Arc::new),
        ..GenerateRequest::default()
    }
}

/// Keeps a grammar from being ready until it is told to be.
fn hold(grammars: Arc<Grammars>, grammar: Grammar) -> (Sender<()>, JoinHandle<()>) {
    let (ready, is_ready) = channel::<()>();
    let (begun, has_begun) = channel();
    let hold = move || {
        grammars.hold(&grammar, || {
            begun.send(()).unwrap();
            is_ready.recv().unwrap();
        });
    };
    let holding = std::thread::spawn(hold);
    has_begun.recv().unwrap();
    (ready, holding)
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
        let (ready, holding) = hold(grammars, digits.clone());
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
fn grammars_that_are_not_ready_take_nobodys_place() {
    for (replicas, max_num_seqs) in [(1, 2), (2, 1)] {
        let (mut engine, grammars) = demo_of(replicas, max_num_seqs);
        let digits = Grammar::Regex("[0-9]{9}".into());
        let (ready, holding) = hold(grammars, digits.clone());
        let mut tokens = [0; 6];
        // More than there are places, the plain ones behind them.
        for (id, grammar) in [Some(&digits); 3].into_iter().chain([None; 3]).enumerate() {
            engine.submit(id as u64, request(4, grammar.cloned())).unwrap();
        }
        run(&mut engine, &mut tokens, |_, tokens| tokens[3] + tokens[4] + tokens[5] == 12);
        assert_eq!((&tokens[..3], engine.load_report().waiting), (&[0, 0, 0][..], 3));
        engine.abort(1).unwrap();
        ready.send(()).unwrap();
        run(&mut engine, &mut tokens, |engine, _| engine.is_idle());
        assert_eq!(tokens, [4, 0, 4, 4, 4, 4]);
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
fn idle_time_is_not_time_between_steps_however_the_last_request_ended() {
    const IDLE: Duration = Duration::from_secs(60);
    let (mut engine, _) = demo(1);
    let mut tokens = [0; 3];
    for id in 0..3 {
        engine.submit(id, request(20, None)).unwrap();
        run(&mut engine, &mut tokens, |_, tokens| tokens[id as usize] > 2);
        match id {
            0 => engine.abort(0).unwrap(),
            _ => run(&mut engine, &mut tokens, |engine, _| engine.is_idle()),
        }
        assert!(engine.is_idle());
        // As if that had been a while ago.
        engine.replica.collected = engine.replica.collected.map(|at| at - IDLE);
    }
    let load = engine.load_report();
    assert!(load.between_steps_s > 0.0 && load.between_steps_s < IDLE.as_secs_f64(), "{load:?}");
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

#[test]
fn load_is_told_when_it_changes_and_not_before() {
    let (mut engine, _) = demo(2);
    let (to_engine, inbox) = channel();
    let (outbox, told) = channel();
    // The second one's replica works on when the first has nothing to do.
    for (id, max_tokens) in [(0, 2), (1, 60)] {
        to_engine.send(ToEngine::Submit { id, batch: request(max_tokens, None).into() }).unwrap();
    }
    let watch = std::thread::spawn(move || {
        let (mut loads, mut tokens, mut ended) = (Vec::new(), 0, 0);
        for message in told {
            match message {
                FromEngine::Load(load, _) => loads.push(load),
                FromEngine::Events(events) => {
                    tokens += events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
                    ended += events.iter().filter(|event| event.is_last()).count();
                    if ended == 2 {
                        to_engine.send(ToEngine::Stop).unwrap();
                    }
                }
                _ => {}
            }
        }
        (loads, tokens)
    });
    serving::run(&mut engine, &inbox, &outbox).unwrap();
    drop(outbox);
    let (loads, tokens) = watch.join().unwrap();
    assert!(loads.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(loads.iter().any(|load| load.running > 0), "one is told while they run");
    // However few reports a busy machine comes to, the last one tells of all that there was.
    let last = loads.last().unwrap();
    assert_eq!((last.running, last.waiting, last.generation_tokens), (0, 0, tokens as u64));
}

/// A replica that nothing runs: with its lanes, four places, and steps that have taken a millisecond per row.
fn replica(stages: usize) -> Replica {
    let mut replica = Replica::new(None);
    replica.prepare(Prepare {
        lanes: stages,
        blocks_per_lane: 400,
        max_num_seqs: 4,
        max_num_batched_tokens: 4096,
        follows_time: true,
        prefix_caching: false,
        stages,
        context: 1,
    });
    replica.budget.observe(0, 1000, 1.0);
    replica
}

/// Runs a lane's prompts, so that they decode.
fn decode(replica: &mut Replica, lane: usize) {
    let scheduler = &mut replica.lanes[lane].scheduler;
    let batch = scheduler.schedule(4096).unwrap();
    let outputs: Vec<(u64, u32, bool)> = batch.items.iter().map(|item| (item.id, 9, false)).collect();
    scheduler.complete(&batch, &outputs);
}

#[test]
fn a_pipeline_takes_prompts_in_steps_that_leave_no_stage_waiting_long() {
    assert_eq!(replica(1).step_tokens(0), 1000);
    assert_eq!(replica(2).step_tokens(0), 250);
    let mut slow = replica(2);
    (0..30).for_each(|_| slow.budget.observe(0, 100, 2.0));
    assert_eq!(slow.step_tokens(0), 64);
}

#[test]
fn prompts_of_one_lane_leave_room_for_the_streams_of_another() {
    let mut replica = replica(2);
    replica.submit(0, request(50, None)).unwrap();
    decode(&mut replica, 0);
    replica.budget.observe(1, 0, 0.02);
    // Beside one stream as many rows as make a step two and a half times as long, over the stages.
    let beside = replica.budget.rows(1, 4096) - 1;
    assert!((8..100).contains(&beside), "{beside}");
    assert_eq!(
        (replica.step_tokens(0), replica.step_tokens(1)),
        (1 + beside.div_ceil(2), beside.div_ceil(2))
    );
    let prompt = |lane| Flight {
        lane,
        batch: Batch::default(),
        issued: Instant::now(),
        prompt_rows: beside,
        asks: Vec::new(),
    };
    replica.flight.push_back(prompt(1));
    assert!(!replica.must_wait(1));
    replica.flight.push_back(prompt(1));
    assert!(replica.must_wait(1) && !replica.must_wait(0), "the stream itself goes on");
}

#[test]
fn prompts_take_shorter_steps_while_streams_of_other_replicas_wait_for_their_ends() {
    let mut replica = replica(1);
    replica.others_decode = true;
    assert_eq!(replica.step_tokens(0), 100);
}

#[test]
fn a_lane_with_a_free_place_goes_before_one_with_less_work() {
    let mut replica = replica(2);
    for (id, max_tokens) in [(0, 1), (1, 500), (2, 1)] {
        replica.submit(id, request(max_tokens, None)).unwrap();
    }
    assert_eq!([0, 1, 2].map(|id| replica.running[&id].lane), [0, 1, 0]);
    assert_eq!(replica.lane_for(&request(1, None)), 1);
}
