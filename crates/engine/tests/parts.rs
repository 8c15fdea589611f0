//! Where the time of a step went: nothing is lost, nothing is counted twice, and traces say the same.

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::Golden;
use engine::{
    Engine, EngineError, EngineOptions, GenerateRequest, RankReport, RankTrace, SamplingParams, StepReport,
    cost_of_step,
};
use model::parallel::{ExpertForm, ExpertOptions};
use tensor::{Category, Part};

/// Generates tokens. How long it took from the first to the last.
fn generate(engine: &mut Engine, golden: &Golden, max_tokens: usize) -> Duration {
    let request = GenerateRequest {
        prompt: golden.prompt.clone(),
        max_tokens,
        sampling: SamplingParams::default(),
        stop_token_ids: Vec::new(),
        ..GenerateRequest::default()
    };
    let mut tokens = Vec::new();
    let mut on_token = |_, _| {
        tokens.push(Instant::now());
        false
    };
    engine.generate(&[request], &mut on_token).unwrap();
    tokens[tokens.len() - 1] - tokens[0]
}

fn decode(reports: &[RankReport]) -> StepReport {
    StepReport::through_stages(reports, |rank| &rank.decode).expect("there were such steps")
}

fn options(tp: usize, pp: usize) -> EngineOptions {
    EngineOptions {
        rank_weights: vec![1.0; tp],
        pipeline_parallel_size: pp,
        threads_per_rank: Some(1),
        ..EngineOptions::default()
    }
}

#[test]
fn parts_cover_the_time_of_all_decode_steps() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&options(1, 1));
    // The median of some runs: a machine may be busy with something else between two parts.
    let mut covered: Vec<f64> = (0..5)
        .map(|_| {
            let seconds = generate(&mut engine, &golden, 100).as_secs_f64();
            let rank = &engine.reports().unwrap()[0];
            assert_eq!(rank.decode_steps, 99);
            rank.decode_s / seconds
        })
        .collect();
    covered.sort_by(f64::total_cmp);
    assert!((0.95..=1.05).contains(&covered[2]), "{covered:?}");
}

#[test]
fn the_median_decode_step_costs_what_the_forward_pass_costs() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&options(2, 1));
    // A single step: of several, any may be the one that half of the others take longer than.
    generate(&mut engine, &golden, 2);
    let reports = engine.reports().unwrap();
    let step = decode(&reports);
    let names: Vec<&str> = step.parts.iter().map(|part| part.name()).collect();
    for part in ["embedding", "norm", "qkv", "attention", "output", "all-reduce", "ffn", "head", "sampling"] {
        assert_eq!(names.iter().filter(|name| **name == part).count(), 1, "{part} among {names:?}");
    }
    let plan = engine.plan();
    let meta = plan.step_alone(golden.prompt.len(), 1);
    let cost =
        cost_of_step(&plan.layout, &plan.stages[0], 0, engine.kept_as(), engine.kv_cache_dtype(), &meta);
    let flops_up_to_logits: u64 =
        step.parts.iter().filter(|part| part.part != Part::Sampling).map(|part| part.flops).sum();
    assert_eq!(flops_up_to_logits, cost.unwrap().total().flops);
    let prefill = StepReport::through_stages(&reports, |rank| &rank.prefill).unwrap();
    assert_eq!((prefill.rows, step.rows), (golden.prompt.len(), 1));
}

#[test]
fn ranks_that_differ_have_parts_too() {
    let golden = Golden::named("llama");
    for weights in [vec![1.0; 3], vec![1.0, 4.0], vec![1.0; 8]] {
        let mut engine = golden.engine(&EngineOptions { rank_weights: weights, ..options(1, 1) });
        generate(&mut engine, &golden, 3);
        for rank in engine.reports().unwrap() {
            let sampling = rank.decode.unwrap().parts.into_iter().find(|part| part.part == Part::Sampling);
            assert!(sampling.is_some_and(|part| part.flops > 0), "rank {}", rank.rank);
        }
        engine.begin_trace().unwrap();
        engine.score(&golden.prompt).unwrap();
        assert!(engine.take_trace().unwrap().iter().all(|trace| trace.dropped == 0));
    }
}

#[test]
fn a_step_through_a_pipeline_has_the_parts_of_all_stages() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&options(1, 2));
    generate(&mut engine, &golden, 4);
    let step = decode(&engine.reports().unwrap());
    for part in [Part::Embedding, Part::Send, Part::Receive, Part::Ffn, Part::Head, Part::Sampling] {
        assert_eq!(step.parts.iter().filter(|p| p.part == part).count(), 1, "{part}");
    }
}

#[test]
fn a_rank_alone_communicates_nothing_and_several_tell_the_bytes_that_moved() {
    let golden = Golden::named("llama");
    for (tp, moves) in [(1, false), (2, true)] {
        let mut engine = golden.engine(&options(tp, 1));
        generate(&mut engine, &golden, 2);
        let reports = engine.reports().unwrap();
        let step = decode(&reports);
        let communication = step.parts.iter().filter(|part| part.is_communication());
        assert_eq!(communication.clone().count() > 0, moves, "{step:?}");
        assert!(communication.clone().all(|part| part.bytes > 0), "{step:?}");
        let all_reduces = communication.filter(|part| part.part == Part::AllReduce);
        let moved: u64 = all_reduces.map(|part| part.bytes).sum();
        assert_eq!(moved, reports[0].all_reduce_bytes);
    }
}

#[test]
fn memory_is_that_of_activations_and_of_operations_themselves() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&options(1, 1));
    generate(&mut engine, &golden, 2);
    let rank = &engine.reports().unwrap()[0];
    let stream = (golden.prompt.len() * golden.config.hidden_size * size_of::<f32>()) as u64;
    assert!(rank.activation_bytes >= 2 * stream && rank.activation_bytes < 100 * stream, "{rank:?}");
    assert!(rank.scratch_bytes > 0);
}

#[test]
fn a_trace_has_every_part_with_its_cost_and_its_events_nest() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&EngineOptions { threads_per_rank: Some(2), ..options(2, 1) });
    engine.begin_trace().unwrap();
    generate(&mut engine, &golden, 4);
    let traces = engine.take_trace().unwrap();
    assert_eq!(traces.iter().map(|trace| trace.rank).collect::<Vec<_>>(), [0, 1]);
    for trace in &traces {
        assert_eq!((trace.threads.len(), trace.dropped, trace.clock_error_ns), (2, 0, 0));
        let named = |name: &str| {
            trace.threads[0].iter().filter(|e| trace.words[e.name as usize] == name).collect::<Vec<_>>()
        };
        assert_eq!(named("step").len(), 4);
        assert_eq!(named("layer 1").len(), 4);
        assert!(named("ffn").iter().all(|ffn| ffn.flops > 0 && ffn.bytes > 0 && ffn.detail.is_some()));
        assert!(named("all-reduce").iter().all(|e| e.category == Category::Communication && e.bytes > 0));
        for events in &trace.threads {
            let mut open: Vec<i64> = Vec::new();
            for event in events {
                let end = event.began_ns + event.took_ns as i64;
                open.retain(|&outer| outer > event.began_ns);
                assert!(open.last().is_none_or(|&outer| end <= outer), "{event:?} ends behind its parent");
                open.push(end);
            }
        }
    }
    // It has ended: nothing is recorded any more, and another can begin.
    generate(&mut engine, &golden, 2);
    engine.begin_trace().unwrap();
    let again = engine.take_trace().unwrap();
    assert!(again.iter().all(|trace| trace.threads[0].iter().all(|event| event.flops == 0)));
}

/// The bytes of a trace's operations between ranks. A rank may have nothing to give, but not all of them.
fn operations(traces: &[RankTrace]) -> BTreeMap<&str, u64> {
    let mut operations = BTreeMap::new();
    for trace in traces {
        for event in trace.threads[0].iter().filter(|event| event.category == Category::Communication) {
            let op = event.detail.unwrap_or_else(|| panic!("{event:?} has no operation")) as usize;
            *operations.entry(trace.words[op].as_str()).or_default() += event.bytes;
        }
    }
    operations
}

#[test]
fn communication_says_its_operation_and_its_bytes() {
    let moe = ExpertOptions { form: Some(ExpertForm::Whole), ..ExpertOptions::default() };
    for (name, options, expected) in [
        ("llama", options(2, 1), &["all_gather", "all_gather_host", "all_reduce", "broadcast"][..]),
        ("llama", options(1, 2), &["recv", "send", "send_bytes"]),
        ("llama", EngineOptions { sequence_parallel: true, ..options(2, 1) }, &["reduce_scatter"]),
        (
            "mixtral",
            EngineOptions { sequence_parallel: true, experts: moe, ..options(2, 1) },
            &["all_to_all", "all_to_all_host"],
        ),
    ] {
        let golden = Golden::named(name);
        let mut engine = golden.engine(&options);
        engine.begin_trace().unwrap();
        generate(&mut engine, &golden, 4);
        let traces = engine.take_trace().unwrap();
        let operations = operations(&traces);
        for op in expected {
            assert!(operations.get(op) > Some(&0), "{op} among {operations:?}");
        }
    }
}

#[test]
fn what_a_run_recorded_until_it_was_stopped_is_there_and_all_goes_on() {
    let golden = Golden::named("llama");
    for options in [options(1, 1), options(2, 1), options(1, 2), options(2, 2)] {
        for replicas in [1, 2] {
            let options = EngineOptions { data_parallel_size: replicas, ..options.clone() };
            let mut engine = golden.engine(&options);
            let stop = Rc::new(Cell::new(false));
            let asked = stop.clone();
            engine.stop_when(move || asked.get());
            engine.begin_trace().unwrap();
            let request = GenerateRequest {
                prompt: golden.prompt.clone(),
                max_tokens: 40,
                sampling: SamplingParams::default(),
                stop_token_ids: Vec::new(),
                ..GenerateRequest::default()
            };
            // Every replica has made some steps then.
            let mut tokens = [0; 3];
            let stopped = engine.generate(&vec![request; tokens.len()], &mut |index, _| {
                tokens[index] += 1;
                stop.set(tokens.iter().all(|&n| n > 1));
                false
            });
            assert!(matches!(stopped, Err(EngineError::Interrupted)), "{stopped:?}");
            let traces = engine.take_trace_so_far();
            let ranks: Vec<usize> = traces.iter().map(|trace| trace.rank).collect();
            assert_eq!(ranks, (0..engine.plan().mesh.size()).collect::<Vec<_>>());
            for trace in &traces {
                let is_step = |event: &&engine::TraceEvent| trace.words[event.name as usize] == "step";
                assert!(trace.threads[0].iter().filter(is_step).count() > 1, "rank {}", trace.rank);
            }
            assert!(matches!(engine.score(&golden.prompt), Err(EngineError::Interrupted)));
            stop.set(false);
            generate(&mut engine, &golden, 3);
        }
    }
}

#[test]
fn a_score_that_is_stopped_ends_before_its_next_chunk() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&EngineOptions { max_num_batched_tokens: 1, ..options(1, 1) });
    let asked = Cell::new(0);
    engine.stop_when(move || asked.replace(asked.get() + 1) == 2);
    engine.begin_trace().unwrap();
    assert!(golden.prompt.len() > 4);
    assert!(matches!(engine.score(&golden.prompt), Err(EngineError::Interrupted)));
    let traces = engine.take_trace_so_far();
    let is_step = |event: &&engine::TraceEvent| traces[0].words[event.name as usize] == "step";
    assert_eq!(traces[0].threads[0].iter().filter(is_step).count(), 2);
}
