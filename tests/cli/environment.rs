//! Every flag has a twin in the environment; what is typed wins, also over twins of flags that it can't go with.

use std::io::Write;

use tempfile::NamedTempFile;

use crate::child::{Anysplit, anysplit};

const ONE_RUN: &str = "bench decode --json --prompt-len 4 --gen-len 2 --repeats 1";

/// What was run: ranks, threads, quantisation of each row.
fn rows(bench: Anysplit) -> Vec<String> {
    let value = bench.json();
    let row = |row: &serde_json::Value| {
        format!(
            "{}x{} {}",
            row["tp"],
            row["threads_per_rank"],
            row["quantization"].as_str().unwrap_or("none")
        )
    };
    value["rows"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_list_that_is_typed_wins_over_the_single_one_of_the_environment() {
    let bench = |more: &str| anysplit(ONE_RUN).args(more).env("ANYSPLIT_QUANTIZATION", "int8");
    assert_eq!(rows(bench("--threads-per-rank 1")), ["1x1 int8"]);
    assert_eq!(rows(bench("--threads-per-rank 1 --quantizations none,int4")), ["1x1 none", "1x1 int4"]);
    let split = |more: &str| {
        let bench = anysplit(ONE_RUN).args(more).env("ANYSPLIT_TENSOR_PARALLEL_SIZE", "3");
        bench.env("ANYSPLIT_THREADS_PER_RANK", "1").env("ANYSPLIT_RANK_WEIGHTS", "2,1,1")
    };
    assert_eq!(rows(split("")), ["3x1 none"]);
    assert_eq!(rows(split("--splits 1x1,2x1")), ["1x1 none", "2x1 none"]);
}

#[test]
fn a_single_one_that_is_typed_wins_over_the_list_of_the_environment() {
    let bench = |more: &str| {
        let bench = anysplit(ONE_RUN).args(more).env("ANYSPLIT_SPLITS", "1x1,2x1");
        bench.env("ANYSPLIT_QUANTIZATIONS", "int8")
    };
    assert_eq!(rows(bench("")), ["1x1 int8", "2x1 int8"]);
    assert_eq!(rows(bench("--tp 3 --threads-per-rank 1")), ["3x1 int8"]);
    assert_eq!(rows(bench("--quantization none")), ["1x1 none", "2x1 none"]);
}

#[test]
fn a_prompt_that_is_typed_wins_over_one_of_the_environment() {
    let score = |more: &str| anysplit("score --json").args(more);
    let (ids, text) = (score("--prompt-ids 1,2,3").prints(), score("--text hello").prints());
    assert_eq!(score("--prompt-ids 1,2,3").env("ANYSPLIT_TEXT", "hello").prints(), ids);
    assert_eq!(score("--text hello").env("ANYSPLIT_PROMPT_IDS", "1,2,3").prints(), text);
    let generate = |more: &str| anysplit("generate --max-tokens 4").args(more);
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "a harbor").unwrap();
    let (typed, ids) = (generate("hello").prints(), generate("--prompt-ids 1,2,3").prints());
    assert_eq!(generate("hello").env("ANYSPLIT_PROMPT_FILE", file.path()).prints(), typed);
    assert_eq!(generate("hello").env("ANYSPLIT_PROMPT_IDS", "1,2,3").prints(), typed);
    assert_eq!(generate("--prompt-ids 1,2,3").env("ANYSPLIT_CHAT", "1").prints(), ids);
}

#[test]
fn two_that_cannot_go_together_are_refused_if_both_are_typed_or_neither() {
    let bench = || anysplit(ONE_RUN);
    let parts = ["--quantization", "--quantizations", "cannot be used with"];
    bench().args("--quantization int8 --quantizations none").refused(&parts);
    bench().args("--splits 1x1 --tp 2").refused(&["--splits", "cannot be used with"]);
    let both = bench().env("ANYSPLIT_QUANTIZATION", "int8").env("ANYSPLIT_QUANTIZATIONS", "none");
    both.refused(&parts);
    // A word that nobody knows is told, whatever else there is.
    let wrong = bench().args("--quantizations none --no-such-flag").env("ANYSPLIT_QUANTIZATION", "int8");
    wrong.refused(&["--no-such-flag"]);
}
