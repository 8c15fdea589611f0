//! What `--json` tells of ranks adds up.

use serde_json::Value;

use crate::checkpoints::{golden, golden_prompt, split_safetensors};
use crate::child::anysplit;

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no array {key}"))
}

fn stats(name: &str, split: &str) -> Value {
    let child =
        anysplit("generate --json --max-tokens 3 --prompt-ids").arg(golden_prompt(name)).model(golden(name));
    child.args(split).json()["stats"].clone()
}

/// Bytes of the tensors of a golden checkpoint whose names the plan has.
fn stored_bytes(name: &str, plan: &Value) -> u64 {
    let files = std::fs::read_dir(golden(name)).unwrap().map(|entry| entry.unwrap().path());
    let mut bytes = 0;
    for file in files.filter(|file| file.extension().is_some_and(|e| e == "safetensors")) {
        let (header, _) = split_safetensors(&std::fs::read(file).unwrap());
        for (tensor, entry) in
            header.as_object().unwrap().iter().filter(|(tensor, _)| *tensor != "__metadata__")
        {
            let is_planned = |w: &Value| w["name"].as_str().unwrap().ends_with(tensor.as_str());
            if list(plan, "weights").iter().any(is_planned) {
                bytes += number(&entry["data_offsets"][1]) - number(&entry["data_offsets"][0]);
            }
        }
    }
    bytes
}

#[test]
fn two_all_reduces_per_layer_are_counted_on_every_rank() {
    for (name, layers) in
        [("llama", 2), ("gemma2", 3), ("mixtral", 2), ("llama_eos", 1), ("gemma3_old_config", 4)]
    {
        for split in ["--tp 1", "--tp 2", "--tp 3", "--rank-weights 1,4"] {
            for rank in list(&stats(name, split), "ranks") {
                assert_eq!(number(&rank["all_reduce_calls"]), 2 * layers, "{name} {split}: {rank}");
            }
        }
    }
}

#[test]
fn weight_bytes_are_the_checkpoint_and_what_is_replicated() {
    for name in ["llama", "llama_tied_bf16_sharded", "gemma2", "phi3", "qwen3_moe", "opt", "llama1"] {
        for split in ["--tp 1", "--tp 3", "--tp 6", "--rank-weights 1,3"] {
            let plan = anysplit("tp-plan --json").args(split).model(golden(name)).json();
            let stats = stats(name, split);
            let held: Vec<u64> =
                list(&stats, "ranks").iter().map(|rank| number(&rank["weight_bytes"])).collect();
            let planned: Vec<u64> = list(&plan, "bytes_per_rank").iter().map(number).collect();
            assert_eq!(held, planned, "{name} {split}");
            // What more than one rank has, counted by the plan's own shapes.
            let elements = |shape: &Value| shape.as_array().unwrap().iter().map(number).product::<u64>();
            let mut replicated = 0;
            for weight in list(&plan, "weights") {
                let ranks = list(weight, "ranks");
                let of_ranks: u64 = ranks.iter().map(|rank| elements(&rank["shape"])).sum();
                let all: u64 = ranks.iter().map(|rank| number(&rank["bytes"])).sum();
                assert!(of_ranks >= elements(&weight["shape"]), "{name} {split}: {weight}");
                replicated += all - all / of_ranks * elements(&weight["shape"]);
            }
            assert_eq!(held.iter().sum::<u64>(), stored_bytes(name, &plan) + replicated, "{name} {split}");
            assert_eq!(replicated == 0, held.len() == 1, "{name} {split}");
        }
    }
}

#[test]
fn heads_and_caches_are_those_of_the_split() {
    // 8 query heads on 4 KV heads, 2 layers, heads of 8, kept in float32.
    for (split, query, kv) in [
        ("--tp 1", vec![8], vec![4]),
        ("--tp 2", vec![4, 4], vec![2, 2]),
        ("--tp 8", vec![1; 8], vec![1; 8]),
        ("--rank-weights 3,1", vec![6, 2], vec![3, 1]),
    ] {
        let stats = stats("llama", split);
        let ranks = list(&stats, "ranks");
        let of = |key: &str| ranks.iter().map(|rank| number(&rank[key])).collect::<Vec<_>>();
        assert_eq!((of("query_heads"), of("kv_heads")), (query, kv.clone()), "{split}");
        let per_token: Vec<u64> = kv.iter().map(|heads| heads * 2 * 2 * 8 * 4).collect();
        assert_eq!(of("kv_bytes_per_token"), per_token, "{split}");
        // Whole blocks for the prompt of 120 and the answer of 3.
        for (cache, per_token) in of("kv_cache_bytes").iter().zip(per_token) {
            assert!(
                *cache >= 123 * per_token && *cache % per_token == 0 && *cache < 256 * per_token,
                "{split}: {cache}"
            );
        }
    }
    let halved = stats("llama", "--kv-cache-dtype bfloat16");
    assert_eq!(number(&halved["ranks"][0]["kv_bytes_per_token"]), 4 * 2 * 2 * 8 * 2);
    // Any rank of an odd split holds the KV heads that its query heads read, some of them shared.
    let odd = stats("gemma3_old_config", "--tp 5");
    let odd = list(&odd, "ranks");
    assert_eq!(odd.iter().map(|rank| number(&rank["query_heads"])).sum::<u64>(), 8);
    assert!(odd.iter().all(|rank| number(&rank["kv_heads"]) == 1));
}

#[test]
fn one_rank_alone_waits_for_nobody() {
    let stats = stats("llama", "--tp 1");
    let rank = &list(&stats, "ranks")[0];
    assert_eq!(rank["all_reduce_s"], 0.0);
}

/// What `--stats --json` says; the tables are on stderr.
fn with_breakdown(flags: &str) -> Value {
    let run = anysplit("generate hello --threads-per-rank 1 --ignore-eos --stats --json").args(flags);
    let found: Value = serde_json::from_str(&run.run().succeeds().0).expect("one JSON value");
    found["stats"].clone()
}

#[test]
fn a_step_through_stages_takes_no_longer_than_there_is_time_between_tokens() {
    let stats = with_breakdown("--pp 2 --max-tokens 60");
    let step = &stats["steps"]["decode"];
    let between_ms = 1e3 / stats["decode_tokens_per_s"].as_f64().unwrap();
    let ms = step["ms"].as_f64().unwrap();
    // With the waiting of the second stage, in which the first works, it would be half as much again.
    assert!(ms < 1.2 * between_ms, "{ms} ms of {between_ms}");
    assert_eq!(step["ranks_at_work"], 1, "one request is in one stage at a time");
}

#[test]
fn one_request_on_two_replicas_has_the_machine_for_itself() {
    let stats = with_breakdown("--dp 2 --max-tokens 3");
    assert_eq!(stats["steps"]["decode"]["ranks_at_work"], 1);
}

#[test]
fn all_parts_together_have_bytes_and_a_fraction_of_the_limit() {
    let (_, stderr) = anysplit("generate hello --tp 1 --max-tokens 3 --ignore-eos --stats").run().succeeds();
    let all: Vec<&str> = stderr.lines().filter(|line| line.trim_start().starts_with("all ")).collect();
    assert_eq!(all.len(), 2, "{stderr}");
    assert!(all.iter().all(|line| line.contains("MB") && line.trim_end().ends_with('%')), "{stderr}");
    assert!(!stderr.contains(" all-reduce "), "one rank has nobody to add up with: {stderr}");
    assert!(stderr.contains("packed: what they take"), "{stderr}");
}

#[test]
fn stats_are_a_table_on_stderr() {
    let (stdout, stderr) =
        anysplit("generate hello --tp 2 --max-tokens 4 --ignore-eos --stats").run().succeeds();
    assert!(!stdout.contains("query heads"), "{stdout}");
    for part in ["2 ranks", "query heads", "KV heads", "all-reduces", "peak memory", "activations", "scratch"]
    {
        assert!(stderr.contains(part), "{stderr}\nshould have {part}");
    }
    for part in ["last prefill step", "median of 3 decode steps", " qkv ", " all-reduce ", " sampling "] {
        assert!(stderr.contains(part), "{stderr}\nshould have {part}");
    }
    // A line per rank, in each of two tables.
    let rows = stderr.lines().filter(|line| line.trim_start().starts_with(['0', '1'])).count();
    assert_eq!(rows, 4, "{stderr}");
}
