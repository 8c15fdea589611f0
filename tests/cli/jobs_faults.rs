//! A rank that dies or stops, at any time, ends its job on all ranks: exit status 1, one line that names it, nothing left
//! behind.

use rustix::process::Signal;
use serde_json::json;

use crate::checkpoints::Copy;
use crate::child::{anysplit, free_port};
use crate::job_child::Running;

/// Seconds.
const COMM_TIMEOUT: u64 = 2;

/// A model that takes a while to load and to run, of random weights.
fn slow_model() -> Copy {
    Copy::of_config(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false
    }))
}

fn launch(ranks: usize) -> crate::child::Anysplit {
    anysplit(&format!(
        "launch --nproc-per-node {ranks} --master-port {} --comm-timeout {COMM_TIMEOUT} -- anysplit",
        free_port()
    ))
}

/// When the fault happens.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Load,
    Prefill,
    Decode,
}

/// Brings a job to a phase.
fn job(phase: Phase, split: &str, ranks: usize) -> (Running, Copy) {
    let model = slow_model();
    let prompt = (0..6000).map(|i| (i % 4096).to_string()).collect::<Vec<_>>().join(",");
    let command = match phase {
        Phase::Decode => launch(ranks)
            .args("generate --ignore-eos --max-tokens 4000 --threads-per-rank 1")
            .args(split)
            .arg("Once upon a time"),
        _ => launch(ranks)
            .args("score --load-format random --threads-per-rank 1")
            .args(split)
            .model(&model)
            .args("--prompt-ids")
            .arg(prompt),
    };
    let mut job = Running::start(command.command());
    job.ranks(ranks);
    match phase {
        // What a rank holds before it loads is far less.
        Phase::Load => job.holds(ranks - 1, ranks, 48 << 20),
        Phase::Prefill => job.says("ranks: --tp"),
        Phase::Decode => job.prints(),
    }
    (job, model)
}

fn fault(phase: Phase, split: &str, ranks: usize, victim: usize, signal: Signal) {
    let (mut job, _model) = job(phase, split, ranks);
    job.signal_rank(victim, ranks, signal);
    let end = job.ends();
    let line = end.names(victim);
    println!("{phase:?} {split}: rank {victim} {signal:?}: {:.1} s: {line}", end.took.as_secs_f64());
}

#[test]
fn a_killed_rank_ends_the_job_while_it_loads() {
    (0..2).for_each(|victim| fault(Phase::Load, "--tp 2", 2, victim, Signal::KILL));
}

#[test]
fn a_killed_rank_ends_the_job_in_prefill() {
    (0..2).for_each(|victim| fault(Phase::Prefill, "--tp 2", 2, victim, Signal::KILL));
    (0..2).for_each(|victim| fault(Phase::Prefill, "--pp 2", 2, victim, Signal::KILL));
}

#[test]
fn a_killed_rank_ends_the_job_in_decode() {
    (0..2).for_each(|victim| fault(Phase::Decode, "--tp 2", 2, victim, Signal::KILL));
    (0..3).for_each(|victim| fault(Phase::Decode, "--pp 3", 3, victim, Signal::KILL));
}

#[test]
fn a_stopped_rank_ends_the_job_while_it_loads() {
    (0..2).for_each(|victim| fault(Phase::Load, "--tp 2", 2, victim, Signal::STOP));
}

#[test]
fn a_stopped_rank_ends_the_job_in_prefill() {
    (0..2).for_each(|victim| fault(Phase::Prefill, "--pp 2", 2, victim, Signal::STOP));
}

#[test]
fn a_stopped_rank_ends_the_job_in_decode() {
    (0..2).for_each(|victim| fault(Phase::Decode, "--tp 2", 2, victim, Signal::STOP));
}

#[test]
fn a_launcher_that_is_killed_or_stopped_takes_its_ranks_with_it() {
    for signal in [Signal::KILL, Signal::STOP] {
        let (job, _model) = job(Phase::Decode, "--tp 2", 2);
        job.signal(signal);
        // `ends` waits for the ranks too.
        assert_eq!(job.ends().status, None, "{signal:?}");
    }
}

#[test]
fn a_rank_of_another_node_that_is_killed_ends_both_nodes() {
    let port = free_port();
    let node = |rank: usize| {
        anysplit(&format!(
            "launch --nnodes 2 --nproc-per-node 1 --node-rank {rank} --master-port {port} --comm-timeout {COMM_TIMEOUT} \
             -- anysplit generate --ignore-eos --max-tokens 4000 --threads-per-rank 1 --tp 2"
        ))
        .arg("Once upon a time")
        .command()
    };
    let (mut first, mut second) = (Running::start(node(0)), Running::start(node(1)));
    first.ranks(1);
    second.ranks(1);
    first.prints();
    second.signal_rank(1, 1, Signal::KILL);
    second.ends().names(1);
    first.ends().names(1);
}

#[test]
fn ranks_that_do_not_belong_together_are_refused_by_what_differs() {
    let port = free_port();
    let rank = |rank: usize, more: &str| {
        let command = anysplit("score --text x --threads-per-rank 1 --comm-timeout 5").args(more);
        let variables =
            [("RANK", rank.to_string()), ("WORLD_SIZE", "2".into()), ("MASTER_ADDR", "127.0.0.1".into())];
        let command = variables.into_iter().fold(command, |c, (name, value)| c.env(name, value));
        command.env("MASTER_PORT", port.to_string())
    };
    let second = Running::start(rank(1, "--pp 2").command());
    let line = rank(0, "--tp 2").run().fails_with(2);
    assert!(line.contains("plan") && line.contains("rank 1"), "{line}");
    assert_eq!(second.ends().status, Some(2));
}

#[test]
fn sizes_that_are_not_the_ranks_at_hand_are_refused_with_those_that_work() {
    let line = launch(3).args("score --text x --tp 2").run().fails_with(2);
    for part in ["--tp 2 --pp 1 --dp 1", "3 ranks", "--tp 3 --pp 1 --dp 1", "--tp 1 --pp 3 --dp 1"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let command = anysplit("score --text x --tp 2 --comm-timeout 1").env("RANK", "0").env("WORLD_SIZE", "2");
    let command = command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", free_port().to_string());
    let line = command.run().fails_with(1);
    assert!(line.contains("rank 1"), "{line}");
}
