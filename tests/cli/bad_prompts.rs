//! A prompt that can't be run is refused.

use serde_json::json;

use crate::checkpoints::{Copy, golden};
use crate::child::anysplit;

#[test]
fn an_empty_prompt_is_refused_however_it_comes() {
    anysplit("generate").refused(&["no prompt", "--prompt-ids"]);
    anysplit("generate").arg("").refused(&["the prompt is empty"]);
    anysplit("generate --chat").arg("").refused(&["the prompt is empty"]);
    anysplit("generate --prompt-ids").arg("").refused(&["--prompt-ids is empty", "1,2,3"]);
    anysplit("score").refused(&["--text"]);
    anysplit("score --text").arg("").refused(&["--text is empty"]);
    anysplit("score --prompt-ids").arg(" ").refused(&["--prompt-ids is empty"]);
}

#[test]
fn an_empty_file_or_line_of_prompts_is_refused() {
    let copy = Copy::empty();
    let with = |text: &[u8], parts: &[&str]| {
        copy.write("prompts.txt", text);
        anysplit("generate --prompt-file")
            .arg(copy.file("prompts.txt"))
            .refused(&[&["prompts.txt"], parts].concat());
    };
    with(b"", &["no lines"]);
    with(b"\n", &["line 1 is empty"]);
    with(b"one\n\ntwo\n", &["line 2 is empty"]);
    with(b"one\n\xff\n", &["UTF-8"]);
    anysplit("generate --prompt-file").arg(copy.file("none.txt")).refused(&["none.txt"]);
    anysplit("generate --prompt-file").arg(copy.path()).refused(&["--prompt-file"]);
}

#[test]
fn a_token_id_beyond_the_vocabulary_is_named() {
    for command in ["generate", "score"] {
        for (ids, id) in [("277", "277"), ("1,2,4294967295", "4294967295"), ("300,1", "300")] {
            let child = anysplit(command).arg("--prompt-ids").arg(ids).model(golden("llama"));
            child.refused(&[&format!("token id {id} "), "277 ids"]);
        }
        for (ids, part) in [
            ("1,4294967296", "4294967296"),
            ("1,-2", "-2"),
            ("1,two", "two"),
            ("1,,2", "\"\""),
            ("1.5", "1.5"),
        ] {
            anysplit(command).arg("--prompt-ids").arg(ids).refused(&["--prompt-ids", part, "1,2,3"]);
        }
    }
}

#[test]
fn a_tokenizer_with_more_ids_than_the_model_is_found_at_the_prompt() {
    let copy = Copy::of("llama");
    copy.edit("config.json", |config| config["vocab_size"] = json!(100));
    let child = anysplit("generate hello --load-format random").model(&copy);
    child.refused(&["token id 272 ", "100 ids"]);
}

#[test]
fn a_prompt_longer_than_the_model_is_refused_with_both_lengths() {
    let ids = |n: usize| vec!["1"; n].join(",");
    let run =
        |command: &str, n: usize| anysplit(command).arg("--prompt-ids").arg(ids(n)).model(golden("opt"));
    run("generate", 161).refused(&["161 tokens", "160 positions"]);
    // A prompt that fills the model leaves no room for an answer, but can be scored.
    run("generate", 160).refused(&["160 tokens", "160 positions"]);
    run("generate --max-tokens 1", 159).prints();
    run("score", 161).refused(&["161 tokens", "160 positions"]);
    run("score", 160).prints();
    run("generate --max-model-len 10", 10).refused(&["10 tokens", "10 positions"]);
    run("score --max-model-len 10", 11).refused(&["11 tokens", "10 positions"]);

    let long = "word ".repeat(3000);
    anysplit("generate").arg(&long).refused(&["tokens", "2048 positions"]);
    anysplit("score --text").arg(&long).refused(&["tokens", "2048 positions"]);
}

#[test]
fn one_bad_prompt_of_a_file_is_refused_before_any_runs() {
    let copy = Copy::empty();
    copy.write("prompts.txt", format!("short\n{}\n", "word ".repeat(3000)));
    anysplit("generate --prompt-file").arg(copy.file("prompts.txt")).refused(&["2048 positions"]);
}
