//! A rank that dies or stops, at any time, ends its job on all ranks: exit status 1, one line that names it, nothing left
//! behind.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::checkpoints::{ENDLESS_TOKENS, endless};
use crate::child::{Anysplit, anysplit, free_port};
use crate::job_child::{End, LONG, Running, is_ignored};

/// Short enough to wait for.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// When a fault happens.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    Start,
    Load,
    Prefill,
    Decode,
}

/// A model that takes a while to load and to run, of random weights.
fn slow_model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
            "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false
        });
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slow-model");
        std::fs::create_dir_all(&dir).expect("cargo's directory for tests");
        std::fs::write(dir.join("config.json"), config.to_string()).expect("written");
        dir
    })
}

/// `launch` of so many ranks, up to the command.
pub fn launch(ranks: usize) -> Anysplit {
    launch_with(ranks, TIMEOUT)
}

/// The same with another `--comm-timeout`. Ranks that don't end when they are asked to are killed too late for any test.
pub fn launch_with(ranks: usize, timeout: Duration) -> Anysplit {
    anysplit(&format!(
        "launch --nproc-per-node {ranks} --master-port {} --comm-timeout {} --shutdown-timeout {} -- anysplit",
        free_port(),
        timeout.as_secs(),
        LONG.as_secs()
    ))
}

/// What a job does that will be in some phase for long.
pub fn work(phase: Phase, launch: Anysplit, split: &str) -> Anysplit {
    match phase {
        Phase::Decode => tells_a_story(launch, ENDLESS_TOKENS).args(split),
        Phase::Start | Phase::Load | Phase::Prefill => {
            let prompt = (0..6000).map(|i| (i % 4096).to_string()).collect::<Vec<_>>().join(",");
            let command = launch.args("score --load-format random --threads-per-rank 1").args(split);
            command.model(slow_model()).args("--prompt-ids").arg(prompt)
        }
    }
}

/// The demo model goes on for so many tokens, whatever it says.
fn tells_a_story(command: Anysplit, tokens: usize) -> Anysplit {
    let command = command.args(&format!("generate --ignore-eos --max-tokens {tokens} --threads-per-rank 1"));
    command.model(endless()).arg("Once upon a time")
}

/// Waits for a phase. `rank` is one of this node's.
#[track_caller]
pub fn reach(phase: Phase, job: &mut Running, rank: usize) {
    match phase {
        Phase::Start => drop(job.pid(rank)),
        // What a rank holds before it loads is far less.
        Phase::Load => job.holds(rank, 48 << 20),
        Phase::Prefill => drop(job.says("ranks: --tp")),
        Phase::Decode => job.prints(),
    }
}

/// What one rank prints of the story's beginning.
fn story() -> &'static str {
    static STORY: OnceLock<String> = OnceLock::new();
    STORY.get_or_init(|| tells_a_story(anysplit(""), 1800).args("--tp 1").prints())
}

/// Checks that what was printed before a fault is what would have been printed without one, as far as that is known.
#[track_caller]
pub fn printed_no_garbage(end: &End) {
    let (story, printed) = (story().trim_end(), &end.stdout);
    assert!(story.starts_with(printed.as_str()) || printed.starts_with(story), "{printed:?}");
}

/// Every rank of every split in turn.
fn faults(phase: Phase, signal: Signal, splits: &[&str]) {
    let one = |split: &str, victim: usize| {
        let mut job = Running::start(work(phase, launch(2), split).command());
        reach(phase, &mut job, 1);
        let fault = job.signal_rank(victim, signal);
        let end = job.ends(fault);
        let line = match phase {
            // It may have died before it knew of any collectives.
            Phase::Start => end.names_rank(victim, TIMEOUT),
            _ => end.names(victim, TIMEOUT),
        };
        let how = if signal == Signal::KILL { "was killed by SIGKILL" } else { "was stopped for 2 s" };
        assert!(line.contains(how), "{line}");
        printed_no_garbage(&end);
        println!("{phase:?} {split} rank {victim} {signal:?}: {:.2} s: {line}", end.took.as_secs_f64());
    };
    std::thread::scope(|scope| {
        for split in splits {
            scope.spawn(move || (0..2).for_each(|victim| one(split, victim)));
        }
    });
}

#[test]
fn a_killed_or_stopped_rank_ends_the_job_while_it_starts() {
    faults(Phase::Start, Signal::KILL, &["--tp 2", "--pp 2", "--dp 2"]);
    faults(Phase::Start, Signal::STOP, &["--tp 2", "--pp 2"]);
}

#[test]
fn a_killed_rank_ends_the_job_while_it_loads() {
    faults(Phase::Load, Signal::KILL, &["--tp 2", "--pp 2", "--dp 2"]);
}

#[test]
fn a_killed_rank_ends_the_job_in_prefill() {
    faults(Phase::Prefill, Signal::KILL, &["--tp 2", "--pp 2", "--dp 2"]);
}

#[test]
fn a_killed_rank_ends_the_job_in_decode() {
    faults(Phase::Decode, Signal::KILL, &["--tp 2", "--pp 2", "--dp 2"]);
}

#[test]
fn a_stopped_rank_ends_the_job_while_it_loads() {
    faults(Phase::Load, Signal::STOP, &["--tp 2", "--pp 2", "--dp 2"]);
}

#[test]
fn a_stopped_rank_ends_the_job_in_prefill() {
    faults(Phase::Prefill, Signal::STOP, &["--tp 2", "--pp 2", "--dp 2"]);
}

#[test]
fn a_stopped_rank_ends_the_job_in_decode() {
    faults(Phase::Decode, Signal::STOP, &["--tp 2", "--pp 2", "--dp 2"]);
}

#[test]
fn a_request_to_end_that_one_rank_gets_ends_all() {
    for (victim, signal, name) in [(0, Signal::TERM, "SIGTERM"), (1, Signal::INT, "SIGINT")] {
        if is_ignored(signal) {
            continue;
        }
        let mut job = Running::start(work(Phase::Decode, launch(2), "--tp 2").command());
        reach(Phase::Decode, &mut job, 1);
        let fault = job.signal_rank(victim, signal);
        let end = job.ends(fault);
        assert!(end.names(victim, TIMEOUT).contains(&format!("was killed by {name}")), "{:?}", end.stderr);
        printed_no_garbage(&end);
    }
}

#[test]
fn of_more_ranks_than_cores_each_can_die() {
    for victim in 0..3 {
        let mut job = Running::start(work(Phase::Decode, launch(3), "--pp 3").command());
        reach(Phase::Decode, &mut job, 1);
        let fault = job.signal_rank(victim, Signal::KILL);
        job.ends(fault).names(victim, TIMEOUT);
    }
}
