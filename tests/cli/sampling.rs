//! What is sampled depends on the seed and on nothing else, and a batch is so many single runs.

use serde_json::Value;

use crate::checkpoints::{Copy, golden, golden_prompt};
use crate::child::{Anysplit, anysplit};

fn tokens(child: Anysplit) -> Value {
    child.json()["token_ids"].clone()
}

fn sample(more: &str) -> Value {
    tokens(anysplit("generate --max-tokens 32 --ignore-eos --json").arg("Once upon a time").args(more))
}

#[test]
fn a_seed_gives_the_same_tokens_on_any_split() {
    for settings in [
        "--temperature 1.2",
        "--temperature 0.9 --top-p 0.8",
        "--temperature 1.5 --top-k 40 --min-p 0.02",
        "--temperature 1 --repetition-penalty 1.3 --presence-penalty 0.5 --frequency-penalty 0.25",
        "--repetition-penalty 1.3 --frequency-penalty 0.5",
    ] {
        let want = sample(&format!("{settings} --seed 11"));
        for split in
            ["--tp 1 --threads-per-rank 2", "--tp 3", "--tp 8 --threads-per-rank 1", "--rank-weights 5,1"]
        {
            assert_eq!(sample(&format!("{settings} --seed 11 {split}")), want, "{settings} {split}");
        }
    }
}

#[test]
fn another_seed_gives_other_tokens() {
    assert_ne!(sample("--temperature 1.5 --seed 1"), sample("--temperature 1.5 --seed 2"));
}

#[test]
fn a_run_without_a_seed_says_which_it_had() {
    let run = |more: &str| {
        anysplit("generate hello --max-tokens 16 --ignore-eos --temperature 1 --json").args(more).json()
    };
    let first = run("");
    let seed = first["seed"].as_u64().expect("the seed is told").to_string();
    assert_eq!(run(&format!("--seed {seed}"))["token_ids"], first["token_ids"]);
}

#[test]
fn the_narrowest_sampling_is_greedy() {
    let greedy = sample("");
    for settings in ["--top-k 1", "--min-p 1", "--top-p 0.000001"] {
        assert_eq!(sample(&format!("--temperature 1 --seed 5 {settings}")), greedy, "{settings}");
    }
}

#[test]
fn penalties_change_what_is_said() {
    // This one repeats itself when it is left alone.
    let run = |more: &str| {
        let child = anysplit("generate --max-tokens 24 --ignore-eos --json --prompt-ids")
            .arg(golden_prompt("llama_eos"));
        tokens(child.model(golden("llama_eos")).args(more))
    };
    let greedy = run("");
    for settings in ["--repetition-penalty 2", "--frequency-penalty 2", "--presence-penalty 2"] {
        assert_ne!(run(settings), greedy, "{settings}");
    }
}

const PROMPTS: [&str; 4] =
    ["In the beginning", "A", "The sea was calm, and the ship lay at", "What is a harbor?"];

#[test]
fn a_batch_gives_each_prompt_what_it_gets_alone() {
    let copy = Copy::empty();
    copy.write("prompts.txt", PROMPTS.join("\n"));
    for settings in ["", "--chat", "--temperature 0.9 --top-p 0.9 --seed 3 --repetition-penalty 1.1"] {
        let base = || anysplit("generate --max-tokens 12 --json").args(settings);
        let alone: Vec<Value> = PROMPTS.iter().map(|prompt| base().arg(prompt).json()).collect();
        for more in ["", "--tp 3", "--max-num-seqs 2", "--max-num-batched-tokens 5 --tp 2"] {
            let batch = base().args(more).arg("--prompt-file").arg(copy.file("prompts.txt")).json();
            let batch = batch.as_array().unwrap();
            assert_eq!(batch.len(), PROMPTS.len());
            for (found, want) in batch.iter().zip(&alone) {
                for key in ["prompt_token_ids", "token_ids", "text", "finish_reason", "usage"] {
                    assert_eq!(found[key], want[key], "{settings} {more}: {key}");
                }
            }
        }
    }
}

#[test]
fn a_batch_prints_its_texts_in_the_order_of_its_prompts() {
    let copy = Copy::empty();
    copy.write("prompts.txt", PROMPTS.join("\n") + "\n");
    let printed = anysplit("generate --max-tokens 12 --prompt-file").arg(copy.file("prompts.txt")).prints();
    let alone: String =
        PROMPTS.iter().map(|prompt| anysplit("generate --max-tokens 12").arg(prompt).prints()).collect();
    assert_eq!(printed, alone);
}
