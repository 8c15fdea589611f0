//! Jobs of several processes print the bytes of one rank, on one node and on two, whatever the split.

use std::io::Write;

use tempfile::NamedTempFile;

use crate::checkpoints::{golden, golden_prompt};
use crate::jobs_common::Work;

/// Ranks and how they split a dense model of 8 heads in 2 layers.
const DENSE: [(usize, &str); 9] = [
    (2, "--tp 2"),
    (3, "--tp 3"),
    (3, "--rank-weights 2,1,3"),
    (2, "--pp 2"),
    (4, "--tp 2 --pp 2"),
    (3, "--tp 3 --sp"),
    (4, "--tp 2 --pp 2 --sp"),
    (2, "--dp 2"),
    (8, "--tp 2 --pp 2 --dp 2 --sp --max-num-batched-tokens 17"),
];

#[test]
fn processes_of_one_node_print_the_bytes_of_one_rank() {
    for name in ["llama", "qwen3_moe"] {
        let work = Work::score(name);
        let want = work.alone();
        for (ranks, split) in DENSE {
            assert_eq!(work.on_one_node(ranks, split), want, "{name} {split}");
        }
    }
}

#[test]
fn two_nodes_on_loopback_print_the_bytes_of_one_rank() {
    for name in ["llama", "mixtral"] {
        let work = Work::score(name);
        let want = work.alone();
        for (per_node, split) in [
            (1, "--tp 2"),
            (1, "--pp 2"),
            (2, "--tp 2 --pp 2"),
            (2, "--tp 4"),
            (2, "--rank-weights 1,2,2,1 --sp"),
            (1, "--tp 2 --sp"),
            (1, "--dp 2"),
        ] {
            assert_eq!(work.on_two_nodes(per_node, split), want, "{name} {split}");
        }
    }
}

#[test]
fn the_demo_model_scores_a_text_with_the_same_bytes_on_any_split() {
    let work = Work::new("score --json")
        .arg("--text")
        .arg("In the beginning there was a harbor, and a girl who lived by it.");
    let want = work.alone();
    for (ranks, split) in [(2, "--tp 2"), (3, "--tp 3 --sp"), (4, "--tp 2 --pp 2")] {
        assert_eq!(work.on_one_node(ranks, split), want, "{split}");
    }
    for (per_node, split) in [(1, "--tp 2"), (1, "--pp 2"), (2, "--tp 2 --pp 2")] {
        assert_eq!(work.on_two_nodes(per_node, split), want, "{split}");
    }
}

#[test]
fn a_size_that_nobody_gives_is_what_the_ranks_at_hand_make() {
    let work = Work::score("llama");
    let want = work.alone();
    assert_eq!(work.on_one_node(2, ""), want);
    assert_eq!(work.on_one_node(4, "--pp 2"), want);
}

#[test]
fn ranks_of_one_host_may_exchange_over_tcp() {
    let work = Work::score("qwen3_moe").arg("--comm-backend").arg("tcp");
    let want = work.alone();
    for (ranks, split) in [(3, "--tp 3 --ep --sp"), (4, "--tp 2 --pp 2")] {
        assert_eq!(work.on_one_node(ranks, split), want, "{split}");
    }
}

/// A file with each expert's rank.
fn placement(ranks: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("there is room for temporary files");
    file.write_all(ranks.as_bytes()).expect("there is room for temporary files");
    file
}

#[test]
fn experts_wherever_they_are_print_the_bytes_of_one_rank() {
    // Mixtral has 8 experts, this Qwen3-MoE 7; 2 layers each.
    let files = [
        ("mixtral", placement("[1,0,0,1,1,1,0,1]")),
        ("qwen3_moe", placement("[[1,1,1,0,1,1,1],[0,1,0,1,0,1,0]]")),
    ];
    for (name, file) in files {
        let work = Work::score(name);
        let want = work.alone();
        for (ranks, split) in [
            (2, "--tp 2 --ep=false"),
            (2, "--tp 2 --ep"),
            (3, "--tp 3 --ep --sp"),
            (2, "--tp 2 --ep --expert-placement round-robin"),
            (4, "--tp 2 --pp 2 --ep --expert-placement round-robin --sp"),
            (2, &format!("--tp 2 --ep --expert-placement {}", file.path().display())),
        ] {
            assert_eq!(work.on_one_node(ranks, split), want, "{name} {split}");
        }
        for (per_node, split) in [
            (1, "--tp 2 --ep"),
            (2, "--tp 4 --ep --sp"),
            (2, "--tp 4 --ep --expert-placement round-robin"),
            (1, &format!("--tp 2 --ep --expert-placement {}", file.path().display())),
        ] {
            assert_eq!(work.on_two_nodes(per_node, split), want, "{name} {split}");
        }
    }
}

#[test]
fn a_kv_cache_that_ranks_share_prints_the_bytes_of_one_rank() {
    // 8 query heads read 2 KV heads. A rank's part is whole segments of 1,024 positions, so that three have two owners.
    for name in ["mixtral", "qwen3_moe"] {
        let work = Work::score_long(name, 2100);
        let want = work.alone();
        for split in ["--tp 4 --decode-context-parallel-size 2", "--tp 4 --dcp 2 --ep --sp"] {
            assert_eq!(work.on_one_node(4, split), want, "{name} {split}");
            assert_eq!(work.on_two_nodes(2, split), want, "{name} {split}");
        }
    }
}

#[test]
fn experts_in_other_processes_choose_the_same_tokens() {
    for name in ["mixtral", "qwen3_moe"] {
        let ids = golden_prompt(name);
        let work = Work::new("generate --max-tokens 9 --ignore-eos --temperature 0.7 --seed 5");
        let work = work.arg("--prompt-ids").arg(ids).arg("--model").arg(golden(name));
        let want = work.alone();
        for (ranks, split) in
            [(2, "--tp 2 --ep"), (3, "--tp 3 --sp"), (4, "--tp 2 --pp 2 --ep"), (4, "--tp 4 --dcp 2")]
        {
            assert_eq!(work.on_one_node(ranks, split), want, "{name} {split}");
        }
        assert_eq!(work.on_two_nodes(2, "--tp 4 --ep --sp"), want, "{name}");
    }
}

/// Prompts of different lengths, and requests that end at different times.
fn prompts() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("there is room for temporary files");
    for line in [
        "hello",
        "a harbor",
        "In the beginning there was the sea, and nobody to look at it",
        "x",
        "one two three",
        "or so",
    ] {
        writeln!(file, "{line}").expect("there is room for temporary files");
    }
    file
}

#[test]
fn a_file_of_prompts_gets_the_same_text_from_replicas_in_other_processes() {
    let file = prompts();
    for how in ["--temperature 0 --model", "--temperature 0.8 --top-p 0.9 --seed 3 --max-num-seqs 2 --model"]
    {
        let work = Work::new("generate --max-tokens 12").arg("--prompt-file").arg(file.path());
        let work = how.split(' ').fold(work, Work::arg).arg(golden("llama"));
        let want = work.alone();
        assert!(want.lines().count() >= 6, "a text for each prompt: {want:?}");
        for (ranks, split) in
            [(2, "--dp 2"), (3, "--dp 3"), (4, "--tp 2 --dp 2 --sp"), (2, "--pp 2"), (4, "--pp 2 --dp 2")]
        {
            assert_eq!(work.on_one_node(ranks, split), want, "{how} {split}");
        }
        for (per_node, split) in [(1, "--dp 2"), (2, "--dp 2 --tp 2"), (2, "--pp 2 --dp 2")] {
            assert_eq!(work.on_two_nodes(per_node, split), want, "{how} {split}");
        }
    }
}
