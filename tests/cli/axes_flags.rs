//! Flags of experts, shared KV caches and compressed sums: what they tell, what they keep, and what they refuse.

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_prompt};
use crate::child::{Anysplit, anysplit, free_port};
use crate::jobs_common::Work;

/// Experts that each token chooses in the golden Qwen3-MoE, and layers.
const CHOICES: u64 = 3;
const LAYERS: usize = 2;

fn score(name: &str, flags: &str) -> Anysplit {
    anysplit("score --json --prompt-ids").arg(golden_prompt(name)).model(golden(name)).args(flags)
}

fn generate(name: &str, flags: &str) -> Anysplit {
    let generate =
        anysplit("generate --json --max-tokens 5 --ignore-eos --prompt-ids").arg(golden_prompt(name));
    generate.model(golden(name)).args(flags)
}

fn numbers(value: &Value) -> Vec<u64> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value} is no list"));
    list.iter().map(|n| n.as_u64().unwrap_or_else(|| panic!("{n} is no whole number"))).collect()
}

/// A list of numbers for each layer.
fn by_layer(value: &Value) -> Vec<Vec<u64>> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list")).iter().map(numbers).collect()
}

/// Tokens that went through a model that generated five: the last is only printed.
fn tokens_run(name: &str) -> u64 {
    golden_prompt(name).split(',').count() as u64 + 4
}

#[test]
fn what_experts_got_is_told_and_is_the_same_on_any_split() {
    let experts = |flags: &str| generate("qwen3_moe", flags).json()["stats"]["experts"].clone();
    let one = experts("--tp 1");
    let counts = by_layer(&one["tokens_per_expert"]);
    assert_eq!(counts.len(), LAYERS);
    for layer in &counts {
        assert_eq!(layer.iter().sum::<u64>(), CHOICES * tokens_run("qwen3_moe"));
    }
    for (flags, form) in [
        ("--tp 2 --ep", "whole"),
        ("--tp 3 --ep --expert-placement round-robin --sp", "whole"),
        ("--tp 2 --ep=false", "sliced"),
        ("--tp 2 --pp 2", "whole"),
    ] {
        let split = experts(flags);
        assert_eq!(by_layer(&split["tokens_per_expert"]), counts, "{flags}");
        assert_eq!((&split["form"], &split["dropped_tokens"]), (&json!(form), &json!(0)), "{flags}");
        let per_rank = by_layer(&split["tokens_per_rank"]);
        if form == "whole" {
            let all = |layers: &[Vec<u64>]| layers.iter().flatten().sum::<u64>();
            assert_eq!(all(&per_rank), all(&counts), "{flags}");
        }
        let mean = |rank: &Vec<u64>| rank.iter().sum::<u64>() as f64 / rank.len() as f64;
        let imbalance = |rank: &Vec<u64>| *rank.iter().max().expect("there are ranks") as f64 / mean(rank);
        let told: Vec<f64> = serde_json::from_value(split["imbalance_per_layer"].clone()).expect("numbers");
        assert_eq!(told, per_rank.iter().map(imbalance).collect::<Vec<_>>(), "{flags}");
        let moved = &split["bytes_per_token"];
        assert!(moved["sliced"].as_u64() > Some(0) && moved["whole_exchanged"].as_u64() > Some(0), "{moved}");
    }
    assert_eq!(generate("llama", "--tp 2").json()["stats"]["experts"], Value::Null);
}

#[test]
fn counts_are_added_up_and_balance_later_runs_with_the_same_bits() {
    let dir = Copy::empty();
    let file = dir.file("counts.json");
    let counted = |command: Anysplit| command.arg("--expert-counts").arg(&file);
    let recorded = || {
        let recorded: Value = serde_json::from_slice(&dir.read("counts.json")).expect("the file is JSON");
        by_layer(&recorded["tokens_per_expert"])
    };
    let plain = generate("qwen3_moe", "--tp 3 --ep").json();
    let first = counted(generate("qwen3_moe", "--tp 3 --ep")).json();
    let once = by_layer(&first["stats"]["experts"]["tokens_per_expert"]);
    assert_eq!(recorded(), once);

    // score adds its own, and so does a job of several processes.
    let want = score("qwen3_moe", "--tp 1").prints();
    let auto = "--tp 3 --ep --expert-placement auto";
    assert_eq!(counted(score("qwen3_moe", auto)).prints(), want);
    let after_score = recorded();
    // Nothing is asked of the last token.
    let tokens = golden_prompt("qwen3_moe").split(',').count() as u64 - 1;
    let (twice, sum) = (after_score[0].iter().sum::<u64>(), once[0].iter().sum::<u64>());
    assert_eq!(twice - sum, CHOICES * tokens);
    let job = Work::score("qwen3_moe").arg("--expert-counts").arg(&file);
    assert_eq!(job.on_one_node(3, auto), want);
    let more =
        |layer: usize| recorded()[layer].iter().zip(&after_score[layer]).map(|(a, b)| a - b).sum::<u64>();
    assert!((0..LAYERS).all(|layer| more(layer) == CHOICES * tokens));

    let balanced = counted(generate("qwen3_moe", auto)).json();
    let imbalance = |run: &Value| run["stats"]["experts"]["imbalance"].as_f64().expect("a number");
    assert!(imbalance(&balanced) < imbalance(&plain), "{} then {}", imbalance(&plain), imbalance(&balanced));
    assert_eq!(balanced["token_ids"], plain["token_ids"]);
}

#[test]
fn sliced_experts_are_left_alone_by_a_balance() {
    let dir = Copy::empty();
    let want = generate("mixtral", "--tp 1").json();
    // The first run records what the second goes by.
    for _ in 0..2 {
        let run = generate("mixtral", "--tp 4 --expert-placement auto").arg("--expert-counts");
        let (stdout, _) = run.arg(dir.file("counts.json")).run().succeeds();
        let run: Value = serde_json::from_str(&stdout).expect("one JSON value");
        assert_eq!((&run["token_ids"], &run["parallel"]["ep"]), (&want["token_ids"], &1.into()));
    }
}

#[test]
fn a_balance_without_counts_is_told_of_once_for_all_ranks() {
    let dir = Copy::empty();
    let work = Work::score("qwen3_moe").arg("--expert-counts").arg(dir.file("none.json"));
    let flags = format!("--nproc-per-node 3 --master-port {}", free_port());
    let (stdout, stderr) = work.launched(&flags, "--tp 3 --expert-placement auto").run().succeeds();
    assert_eq!(stdout, score("qwen3_moe", "--tp 1").prints());
    assert_eq!(stderr.matches("no counts are recorded").count(), 1, "{stderr}");
}

#[test]
fn flags_of_experts_are_refused_for_a_dense_model() {
    let file = Copy::empty();
    file.write("experts.json", "[0,1]");
    let path = file.file("experts.json").display().to_string();
    for (flags, flag) in [
        ("--ep", "--enable-expert-parallel"),
        ("--expert-placement round-robin", "--expert-placement"),
        (&format!("--expert-placement {path}"), "--expert-placement"),
        (&format!("--expert-counts {path}"), "--expert-counts"),
    ] {
        for command in
            ["score --prompt-ids 1,2", "generate --prompt-ids 1,2", "tp-plan", "bench decode --prompt-len 4"]
        {
            let command = anysplit(command).args("--tp 2").args(flags).model(golden("llama"));
            command.refused(&[flag, "this model has no experts; leave it out"]);
        }
    }
    score("llama", "--tp 2 --ep=false").prints();
}

#[test]
fn files_of_experts_that_cannot_be_used_are_refused_by_name() {
    let dir = Copy::empty();
    let path = dir.file("experts.json").display().to_string();
    let with = |text: &str, flags: &str| {
        dir.write("experts.json", text);
        score("mixtral", "--tp 2 --ep").args(flags)
    };
    let placement = format!("--expert-placement {path}");
    with("[0,1]", &placement).refused(&["expert placement", "8"]);
    with("[0,1,2,3,0,1,2,3]", &placement).refused(&["expert placement", "rank 2 is not one of 0 to 1"]);
    with("[[0,0,0,0,1,1,1,1]]", &placement).prints();
    with("[[0,0,0,0,1,1,1,1],[0,0],[0]]", &placement).refused(&["expert placement"]);
    with("[-1,0,0,0,1,1,1,1]", &placement).refused(&[
        "--expert-placement",
        "experts.json",
        "a list of ranks",
    ]);
    with("{\"a\": 1}", &placement).refused(&["--expert-placement", "experts.json", "a list of ranks"]);
    with("[0,", &placement).refused(&["experts.json", "not valid JSON"]);
    with("", "--expert-placement /nowhere/experts.json").refused(&["/nowhere/experts.json", "No such file"]);

    let counts = format!("--expert-counts {path}");
    with("{\"tokens_per_expert\": [[1,2],[3,4]]}", &counts)
        .refused(&["--expert-counts", "counts of another model"]);
    with("[\"many\"]", &counts).refused(&["--expert-counts", "experts.json", "numbers of tokens"]);
    with("{", &counts).refused(&["experts.json", "not valid JSON"]);
    with("", "--expert-counts /nowhere/counts.json")
        .refused(&["--expert-counts /nowhere/counts.json", "no directory"]);
    assert_eq!(dir.read("experts.json"), b"", "a file that is refused is as it was");
}

#[test]
fn a_shared_kv_cache_is_told_of_and_takes_its_share() {
    let run = |flags: &str| generate("mixtral", flags).json()["stats"].clone();
    // 8 query heads read 2 KV heads, in 2 layers of heads of 8, kept in bfloat16.
    let one_head = 2 * 2 * 8 * 2;
    let (copies, split) = (run("--tp 8"), run("--tp 8 --decode-context-parallel-size 4"));
    for (stats, size, kv) in [(&copies, 1, one_head), (&split, 4, one_head / 4)] {
        let told = json!({
            "size": size, "largest_size": 4, "kv_bytes_per_token_replicated": one_head,
            "kv_bytes_per_token_split": one_head / 4
        });
        assert_eq!(stats["context_parallel"], told);
        for rank in stats["ranks"].as_array().expect("ranks") {
            assert_eq!(
                (&rank["kv_bytes_per_token"], &rank["kv_replicated_bytes_per_token"]),
                (&json!(kv), &json!(one_head))
            );
        }
    }
    assert_eq!(run("--tp 2")["context_parallel"], Value::Null, "no two ranks read the same heads");
}

#[test]
fn a_size_of_context_groups_that_cannot_be_is_refused_with_those_that_can() {
    for (name, flags, sizes) in [
        ("mixtral", "--tp 8 --dcp 3", "works for 1, 2, 4"),
        ("mixtral", "--tp 8 --dcp 8", "works for 1, 2, 4"),
        ("mixtral", "--tp 4 --dcp 0", "works for 1, 2"),
        ("llama", "--tp 2 --dcp 2", "works for 1"),
    ] {
        let line = score(name, flags).refused(&["decode context parallel size"]);
        assert!(line.ends_with(sizes), "{line}");
    }
    let launch =
        format!("launch --nproc-per-node 2 --master-port {} -- anysplit score --prompt-ids 1,2", free_port());
    let line = anysplit(&launch).args("--tp 2 --dcp 2").model(golden("llama")).refused(&["works for 1"]);
    assert!(line.contains("rank "), "{line}");
}

#[test]
fn compressed_sums_are_warned_of_in_one_line_with_what_they_cost() {
    for dtype in ["bfloat16", "fp8", "int8"] {
        let (_, stderr) = score("llama", &format!("--tp 2 --all-reduce-dtype {dtype}")).run().succeeds();
        // A machine of one core is told that the ranks share it.
        let told: Vec<&str> = stderr.lines().filter(|line| !line.contains(" share ")).collect();
        let [line] = told[..] else { panic!("one line: {stderr}") };
        let start = format!("warning: --all-reduce-dtype {dtype} turns off the promise of equal bits");
        assert!(line.starts_with(&start) && line.contains("perplexity changes by "), "{line}");
    }
    let exact = score("llama", "--tp 1").prints();
    for flags in [
        "--tp 2 --all-reduce-dtype auto",
        "--tp 2 --all-reduce-dtype float32",
        "--tp 1 --all-reduce-dtype fp8",
    ] {
        assert_eq!(score("llama", flags).prints(), exact, "{flags}: nothing is compressed");
    }
    score("llama", "--tp 2 --all-reduce-dtype fp4").refused(&["fp4", "auto, float32, bfloat16, fp8 or int8"]);
}

#[test]
fn compressed_sums_are_the_same_from_threads_and_processes() {
    for flags in [
        "--tp 2 --all-reduce-dtype int8",
        "--tp 3 --all-reduce-dtype bfloat16 --sp",
        "--tp 2 --pp 2 --all-reduce-dtype fp8",
    ] {
        let ranks = if flags.contains("--pp") { 4 } else { usize::from(flags.as_bytes()[5] - b'0') };
        let (threads, _) = score("llama", flags).run().succeeds();
        let work = Work::score("llama");
        let launch = format!("--nproc-per-node {ranks} --master-port {}", free_port());
        let (processes, stderr) = work.launched(&launch, flags).run().succeeds();
        assert_eq!(processes, threads, "{flags}");
        assert_eq!(stderr.matches("turns off the promise of equal bits").count(), 1, "{stderr}");
    }
}
