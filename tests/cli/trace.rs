//! `--trace` writes a file that Perfetto opens, whole or not at all.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, safetensors_of, split_safetensors};
use crate::child::{anysplit, free_port, is_crowded};
use crate::job_child::{Running, is_ignored};
use crate::jobs_common::together;
use crate::jobs_faults::{Phase, TIMEOUT, launch, work};

fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).expect("the trace is written")).expect("it is JSON")
}

/// What a directory has.
fn names(copy: &Copy) -> Vec<String> {
    let entries = std::fs::read_dir(copy.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Its complete events by process and thread.
fn threads(trace: &Value) -> BTreeMap<(u64, u64), Vec<&Value>> {
    let mut threads: BTreeMap<_, Vec<&Value>> = BTreeMap::new();
    for event in trace["traceEvents"].as_array().expect("events").iter().filter(|e| e["ph"] == "X") {
        let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("{event} has no {key}"));
        threads.entry((number("pid"), number("tid"))).or_default().push(event);
    }
    threads
}

/// Nanoseconds.
fn ns(event: &Value, key: &str) -> i64 {
    (event[key].as_f64().unwrap_or_else(|| panic!("{event} has no {key}")) * 1e3).round() as i64
}

fn assert_nested(events: &[&Value]) {
    let mut times: Vec<(i64, i64)> = events.iter().map(|e| (ns(e, "ts"), -ns(e, "dur"))).collect();
    times.sort();
    let mut open: Vec<i64> = Vec::new();
    for (began, took) in times {
        let end = began - took;
        open.retain(|&outer| outer > began);
        assert!(
            open.last().is_none_or(|&outer| end <= outer),
            "an event at {began} ns ends behind its parent"
        );
        open.push(end);
    }
}

fn categories(events: &[&Value]) -> BTreeSet<String> {
    events.iter().map(|event| event["cat"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn ranks_are_processes_threads_are_threads_and_events_nest() {
    let copy = Copy::empty();
    let file = copy.file("trace.json");
    let run = anysplit("generate hello --tp 2 --threads-per-rank 2 --max-tokens 8 --ignore-eos --trace");
    let (stdout, _) = run.arg(&file).run().succeeds();
    let plain = anysplit("generate hello --tp 2 --threads-per-rank 2 --max-tokens 8 --ignore-eos");
    assert_eq!(stdout, plain.run().succeeds().0, "a run that is recorded prints the same");
    let trace = read(&file);
    let threads = threads(&trace);
    assert_eq!(threads.keys().copied().collect::<Vec<_>>(), [(0, 1), (0, 2), (1, 1), (1, 2)]);
    threads.values().for_each(|events| assert_nested(events));
    for rank in 0..2 {
        let steps = threads[&(rank, 1)].iter().filter(|event| event["name"] == "step").count();
        assert_eq!(steps, 8, "rank {rank}");
        assert!(
            categories(&threads[&(rank, 1)])
                .is_superset(&["communication", "compute"].map(String::from).into())
        );
    }
    let all: Vec<&Value> = threads.values().flatten().copied().collect();
    let expected = ["communication", "compute", "host", "waiting"].map(String::from);
    assert_eq!(categories(&all), expected.into());
    for name in ["tokenize", "load", "scheduler", "text", "sampling", "qkv", "all-reduce", "layer 0", "idle"]
    {
        assert!(all.iter().any(|event| event["name"] == name), "no {name}");
    }
    let ffn = all.iter().find(|event| event["name"] == "ffn").unwrap();
    assert!(ffn["args"]["flops"].as_u64() > Some(0) && ffn["args"]["bytes"].as_u64() > Some(0), "{ffn}");
    assert!(ffn["args"]["ops"].as_str().is_some_and(|ops| ops.starts_with("linear ")), "{ffn}");
    for event in all.iter().filter(|event| event["cat"] == "communication" && event["tid"] == 1) {
        let args = &event["args"];
        assert!(args["op"].is_string() && args["bytes"].is_u64(), "{event}");
    }
    assert_eq!(trace["otherData"].get("incomplete"), None);
    // Names for all of them.
    let named = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "M");
    let of = |key: &str| named.clone().filter(|event| event["name"] == key).count();
    assert_eq!((of("process_name"), of("thread_name")), (2, 4));
    assert_eq!(names(&copy), ["trace.json"], "nothing else is left");
}

#[test]
fn processes_of_a_job_are_in_one_file_by_one_clock() {
    let copy = Copy::empty();
    let file = copy.file("trace.json");
    let port = free_port();
    let node = |node: usize| {
        let flags = format!(
            "launch --nnodes 2 --nproc-per-node 1 --node-rank {node} --master-addr 127.0.0.1 --master-port {port}"
        );
        anysplit(&flags).args("-- anysplit score --text hello --tp 2 --threads-per-rank 1 --trace").arg(&file)
    };
    together(vec![node(0), node(1)]);
    let trace = read(&file);
    let threads = threads(&trace);
    assert_eq!(threads.keys().copied().collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    threads.values().for_each(|events| assert_nested(events));
    let clock = trace["otherData"]["clock"].as_str().unwrap();
    assert!(clock.contains("were compared") && clock.contains("µs"), "{clock}");
    // Also over a network it is known who waited.
    let waits = threads.values().flatten().filter(|event| event["name"] == "waiting");
    assert!(waits.clone().count() > 0 && waits.clone().all(|event| event["cat"] == "waiting"));
    // Both are in the same all-reduces.
    let began = |rank: u64| {
        let all = threads[&(rank, 1)].iter().filter(|event| event["name"] == "all-reduce");
        all.map(|event| (ns(event, "ts"), ns(event, "ts") + ns(event, "dur"))).collect::<Vec<_>>()
    };
    // As far as that is known: processes that are held up compare clocks badly, and say so.
    let error_us: f64 = clock.split(" µs").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let error_ns = (error_us * 1e3) as i64 + 100_000;
    for (a, b) in began(0).into_iter().zip(began(1)) {
        assert!(a.0 < b.1 + error_ns && b.0 < a.1 + error_ns, "{a:?} and {b:?} should overlap");
    }
}

#[test]
fn a_path_that_cannot_be_written_is_refused_before_the_run_and_nothing_is_left() {
    let copy = Copy::empty();
    std::fs::create_dir(copy.file("dir")).unwrap();
    for (path, why) in [
        (copy.file("none/trace.json"), "there is no directory"),
        (copy.file("dir"), "it is a directory; give a file"),
        ("/dev/null".into(), "no regular file"),
        (copy.file("new/"), "it ends as a directory does"),
        (copy.file(&"long".repeat(100)), "too long"),
        (copy.file("dir/file/").join("x.json"), "there is no directory"),
    ] {
        for command in ["generate hello", "score --text hello", "bench decode"] {
            anysplit(command).arg("--trace").arg(&path).refused(&["--trace", why]);
        }
    }
    anysplit("generate hello").env("ANYSPLIT_TRACE", copy.file("dir")).refused(&["it is a directory"]);
    anysplit("bench decode --splits 1x1,2x1 --trace").arg(copy.file("t.json")).refused(&["of one run"]);
    assert_eq!(names(&copy), ["dir"]);
}

#[test]
fn a_run_that_is_refused_leaves_the_file_as_it_was() {
    let copy = Copy::empty();
    copy.write("trace.json", "what was there");
    let run = anysplit("generate hello --max-model-len 1 --trace").arg(copy.file("trace.json"));
    run.refused(&["leaves no room"]);
    assert_eq!(std::fs::read_to_string(copy.file("trace.json")).unwrap(), "what was there");
    assert_eq!(names(&copy), ["trace.json"]);
}

/// Checks a trace of a run that did not come to its end: it has steps of some ranks, and says which are missing.
fn assert_incomplete(trace: &Value, why: &str, ranks: &[u64], missing_ranks: &[u64]) {
    let about = &trace["otherData"];
    assert!(about["incomplete"].as_str().is_some_and(|told| told.contains(why)), "{about}");
    assert_eq!(about["missing_ranks"], json!(missing_ranks));
    let threads = threads(trace);
    threads.values().for_each(|events| assert_nested(events));
    for &rank in ranks {
        let is_step = |event: &&&Value| event["name"] == "step";
        assert!(threads[&(rank, 1)].iter().filter(is_step).count() > 0, "rank {rank}");
    }
}

#[test]
fn a_run_that_fails_leaves_a_trace_of_all_its_ranks_that_says_so() {
    let copy = Copy::of("llama");
    let (header, mut data) = split_safetensors(&copy.read("model.safetensors"));
    let at = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    copy.write("model.safetensors", safetensors_of(&header.to_string(), &data));
    for (tp, ranks) in [("1", &[0][..]), ("2", &[0, 1])] {
        let file = copy.file("trace.json");
        let run = anysplit("generate --prompt-ids 1,2,3 --tp").arg(tp).model(&copy).arg("--trace").arg(&file);
        let line = run.run().fails_with(1);
        assert!(line.contains("not a finite number"), "{line}");
        assert_incomplete(&read(&file), &line, ranks, &[]);
    }
}

#[test]
fn a_run_that_is_interrupted_leaves_a_trace_of_all_its_ranks_that_says_so() {
    for (signal, shown, status) in
        [(Signal::INT, "ended by SIGINT", 130), (Signal::TERM, "ended by SIGTERM", 143)]
    {
        if is_ignored(signal) {
            continue;
        }
        // Ranks as threads, and as processes, which are all asked to end.
        // (A launched rank 0 is asked by its launcher.)
        for (run, why) in [(anysplit(""), shown), (launch(2), "ended by SIG")] {
            let copy = Copy::empty();
            let file = copy.file("trace.json");
            let run = work(Phase::Decode, run, "--tp 2 --trace").arg(&file);
            let mut job = Running::start(run.command());
            job.prints();
            let asked = job.signal(signal);
            let end = job.ends(asked);
            assert_eq!((end.status, end.line()), (Some(status), &*format!("error: {shown}")));
            assert_incomplete(&read(&file), why, &[0, 1], &[]);
            assert_eq!(names(&copy), ["trace.json"]);
        }
    }
}

#[test]
fn a_rank_that_is_lost_leaves_the_trace_of_rank_0() {
    // A second request to end is heeded at once, like the first one of a rank that is not recorded.
    for signals in [&[Signal::KILL][..], &[Signal::TERM, Signal::INT]] {
        if signals.iter().any(|&signal| is_ignored(signal)) {
            continue;
        }
        let copy = Copy::empty();
        let file = copy.file("trace.json");
        let split = "--tp 2 --trace";
        let mut job = Running::start(work(Phase::Decode, launch(2), split).arg(&file).command());
        job.prints();
        let faults: Vec<_> = signals.iter().map(|&signal| job.signal_rank(1, signal)).collect();
        job.ends(faults[0]).names(1, TIMEOUT);
        assert_incomplete(&read(&file), "rank 1", &[0], &[1]);
        assert_eq!(names(&copy), ["trace.json"]);
    }
}

#[test]
fn a_benchmark_is_recorded_in_a_run_of_its_own() {
    let copy = Copy::empty();
    let file = copy.file("trace.json");
    let args = "bench decode --prompt-len 16 --gen-len 4 --repeats 1 --threads-per-rank 1 --json --trace";
    let rows = anysplit(args).arg(&file).json();
    assert_eq!(rows["rows"][0]["repeats"], 1);
    let trace = read(&file);
    let steps = threads(&trace)[&(0, 1)].iter().filter(|event| event["name"] == "step").count();
    assert_eq!(steps, 4);
}

/// Whether a process does something of its own at a signal.
fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    bits >> (signal.as_raw() - 1) & 1 == 1
}

/// Whether only its parent's taking note of its end is missing.
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, fields)| fields.starts_with(" Z"))
}

/// Hundredths of a second for which all threads of a process have run.
fn worked_cs(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|cs| cs.parse::<u64>().ok()).sum()
}

#[test]
fn what_is_interrupted_before_anything_is_recorded_says_so_at_once() {
    if is_ignored(Signal::INT) {
        return;
    }
    let copy = Copy::empty();
    let endless = anysplit("bench decode --prompt-len 16 --gen-len 4 --repeats 1000000 --threads-per-rank 1");
    let mut bench = Running::start(endless.arg("--trace").arg(copy.file("trace.json")).command());
    bench.waits_until("listens", |pid| catches(pid, Signal::INT));
    let asked = bench.signal(Signal::INT);
    let end = bench.ends(asked);
    assert_eq!(end.stderr, ["error: ended by SIGINT; nothing was recorded yet"]);
    assert_eq!((end.status, &*end.stdout, names(&copy)), (Some(130), "", Vec::new()));
}

#[test]
fn a_benchmark_that_is_interrupted_in_the_recorded_run_leaves_a_trace_that_says_so() {
    if is_ignored(Signal::INT) {
        return;
    }
    let copy = Copy::empty();
    let (file, counts) = (copy.file("trace.json"), copy.file("counts.json"));
    // What is recorded takes as long as what is measured before, so it can't be without an end: where this test is held up for
    // all of it, it does the same again.
    let interrupted = || {
        let _ = std::fs::remove_file(&counts);
        let command =
            anysplit("bench decode --prompt-len 16 --gen-len 4000 --repeats 1 --threads-per-rank 1")
                .model(golden("qwen3_moe"))
                .arg("--expert-counts")
                .arg(&counts);
        let mut bench = Running::start(command.arg("--trace").arg(&file).command());
        // They are written before the recorded run, which is the only thing that then takes time.
        let before = Cell::new(None);
        bench.waits_until("records", |pid| {
            if before.get().is_none() && counts.exists() {
                before.set(Some(worked_cs(pid)));
            }
            has_ended(pid) || before.get().is_some_and(|before| worked_cs(pid) > before + 4)
        });
        let asked = bench.signal(Signal::INT);
        bench.ends(asked)
    };
    let end = std::iter::repeat_with(interrupted).take(4).find(|end| end.status != Some(0));
    let end = end.expect("it is interrupted before its end");
    assert_eq!((end.status, end.line(), &*end.stdout), (Some(130), "error: ended by SIGINT", ""));
    assert_incomplete(&read(&file), "ended by SIGINT", &[0], &[]);
}

#[test]
fn a_run_that_the_file_has_no_room_for_is_warned_of() {
    // Many small layers: few steps are many events.
    let copy = Copy::empty();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 400, "num_attention_heads": 1,
        "num_key_value_heads": 1, "vocab_size": 16, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false
    });
    copy.write("config.json", config.to_string());
    let file = copy.file("trace.json");
    let run = anysplit("generate --prompt-ids 1 --ignore-eos --load-format random --threads-per-rank 1");
    let run = run.model(&copy).args("--max-tokens 60 --trace").arg(&file);
    let (_, stderr) = run.run().succeeds();
    let warnings: Vec<&str> = stderr.lines().filter(|line| !is_crowded(line)).collect();
    let trace = read(&file);
    let dropped = trace["otherData"]["dropped_events"].as_u64().unwrap();
    let [warning] = warnings[..] else { panic!("one warning, of {dropped} events: {stderr}") };
    let told = format!("warning: --trace {}: there was no room for {dropped} of ", file.display());
    assert!(dropped > 0 && warning.starts_with(&told) && warning.contains("fewer tokens"), "{warning}");
}
