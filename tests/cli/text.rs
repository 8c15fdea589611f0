//! Text comes out as it is made, and ends where it should.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::checkpoints::{
    Copy, ENDLESS_TOKENS, comma_separated, endless, golden, golden_json, golden_prompt,
};
use crate::child::{Anysplit, anysplit};
use crate::job_child::LIMIT;

/// The golden prompt's completion by a golden checkpoint.
fn generate(name: &str, more: &str) -> Anysplit {
    anysplit("generate --prompt-ids").arg(golden_prompt(name)).model(golden(name)).args(more)
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn text_is_that_of_hugging_face() {
    for name in ["llama", "qwen3"] {
        let golden = golden_json(name);
        let want = golden["greedy_text"].as_str().unwrap();
        let found = generate(name, "--dtype float32 --max-tokens 24 --ignore-eos --json").json();
        assert_eq!(
            (&found["token_ids"], found["text"].as_str().unwrap()),
            (&golden["greedy_token_ids"], want),
            "{name}"
        );
        let streamed = generate(name, "--dtype float32 --max-tokens 24 --ignore-eos").prints();
        assert_eq!(streamed, format!("{want}\n"), "{name}");
    }
}

#[test]
fn prompts_become_the_ids_of_hugging_face() {
    for name in ["llama", "qwen3"] {
        let text: Value =
            serde_json::from_slice(&std::fs::read(golden(name).join("text.json")).unwrap()).unwrap();
        for case in text["texts"].as_array().unwrap() {
            let words = case["text"].as_str().unwrap();
            if words.is_empty() {
                continue;
            }
            let found =
                anysplit("generate --max-tokens 1 --json").model(golden(name)).arg("--").arg(words).json();
            assert_eq!(found["prompt_token_ids"], case["token_ids"], "{name}: {words:?}");
        }
    }
}

#[test]
fn chat_writes_the_prompt_of_the_models_template() {
    let text: Value =
        serde_json::from_slice(&std::fs::read(golden("llama").join("text.json")).unwrap()).unwrap();
    // The golden conversation has a system message before the user's; each message begins with the same token.
    let whole = ids(&text["chat"]["token_ids"]);
    let begins: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] == whole[1]).collect();
    let want = [&whole[..begins[0]], &whole[begins[1]..]].concat();
    let said = text["chat"]["messages"][1]["content"].as_str().unwrap();
    let found = anysplit("generate --chat --max-tokens 1 --json").arg(said).model(golden("llama")).json();
    assert_eq!(ids(&found["prompt_token_ids"]), want);

    let demo = |more: &str| {
        anysplit("generate hello --max-tokens 1 --json").args(more).json()["prompt_token_ids"].clone()
    };
    let (plain, chat) = (ids(&demo("")), ids(&demo("--chat")));
    assert!(chat.len() > plain.len(), "{chat:?}");
    assert_eq!(chat.iter().filter(|&&id| id == plain[0]).count(), 1, "one begin of sequence: {chat:?}");
    assert_eq!(ids(&demo("--chat --tp 3")), chat);
}

#[test]
fn a_stop_string_is_found_across_tokens_and_is_not_printed() {
    let whole = golden_json("llama")["greedy_text"].as_str().unwrap().to_owned();
    // Each of these characters is a token of its own.
    for stop in ["<h_:", "h", "_", "f\u{fffd}", &whole[whole.len() - 2..]] {
        let at = whole.find(stop).expect("the stop string is there");
        let run = |more: &str| generate("llama", "--max-tokens 24 --ignore-eos --stop").arg(stop).args(more);
        let found = run("--json").json();
        assert_eq!(
            (found["text"].as_str().unwrap(), &found["finish_reason"]),
            (&whole[..at], &json!("stop")),
            "{stop:?}"
        );
        assert!(found["token_ids"].as_array().unwrap().len() <= 24);
        assert_eq!(run("").prints(), format!("{}\n", &whole[..at]), "{stop:?}");
        assert_eq!(run("--tp 3").prints(), format!("{}\n", &whole[..at]), "{stop:?}");
    }
    // Of several, whichever comes first; what only begins like one is printed.
    let several = generate("llama", "--max-tokens 24 --ignore-eos --stop _: --stop <hx --stop |4");
    assert_eq!(several.prints(), format!("{}\n", whole.split("_:").next().unwrap()));
    let none = generate("llama", "--max-tokens 24 --ignore-eos --stop |5");
    assert_eq!(none.prints(), format!("{whole}\n"));
}

#[test]
fn a_stop_token_ends_the_completion_and_is_its_last_id() {
    let greedy = ids(&golden_json("llama")["greedy_token_ids"]);
    let run = |more: &str| generate("llama", "--max-tokens 24 --json --ignore-eos").args(more).json();
    let whole = run("");
    let found = run(&format!("--stop-token-ids 276,{}", greedy[9]));
    let end = greedy.iter().position(|id| *id == greedy[9]).unwrap() + 1;
    assert_eq!(ids(&found["token_ids"]), greedy[..end]);
    assert_eq!(found["finish_reason"], "stop");
    let (text, whole) = (found["text"].as_str().unwrap(), whole["text"].as_str().unwrap());
    assert!(whole.starts_with(text.trim_end_matches('\u{fffd}')), "{text:?} {whole:?}");
}

#[test]
fn the_end_of_sequence_is_generation_configs_unless_it_is_ignored() {
    let golden = golden_json("llama_eos");
    let (greedy, stops_after) =
        (ids(&golden["greedy_token_ids"]), golden["stops_after"].as_u64().unwrap() as usize);
    let run = |more: &str| generate("llama_eos", "--dtype float32 --max-tokens 24 --json").args(more).json();
    for split in ["", "--tp 3"] {
        let found = run(split);
        assert_eq!(ids(&found["token_ids"]), greedy[..stops_after]);
        assert_eq!(
            (&found["finish_reason"], &found["usage"]["completion_tokens"]),
            (&json!("stop"), &json!(stops_after))
        );
    }
    let ignored = run("--ignore-eos");
    assert_eq!((ids(&ignored["token_ids"]), &ignored["finish_reason"]), (greedy.clone(), &json!("length")));
    // Without that file config.json's single id counts, which does not come.
    let copy = Copy::of("llama_eos");
    copy.remove("generation_config.json");
    let prompt = comma_separated(&golden["prompt_token_ids"]);
    let child = anysplit("generate --json --dtype float32 --max-tokens 24 --prompt-ids").arg(prompt);
    assert_eq!(ids(&child.model(&copy).json()["token_ids"]), greedy);
}

#[test]
fn a_completion_ends_where_the_model_does() {
    let found = generate("opt", "--max-tokens 1000 --ignore-eos --json").json();
    let (prompt, completion) = (&found["usage"]["prompt_tokens"], &found["usage"]["completion_tokens"]);
    assert_eq!(prompt.as_u64().unwrap() + completion.as_u64().unwrap(), 160);
    assert_eq!(found["finish_reason"], "length");
    let shorter = generate("opt", "--max-model-len 140 --max-tokens 1000 --ignore-eos --json").json();
    assert_eq!(shorter["usage"]["completion_tokens"], 10);
}

#[test]
fn ids_are_printed_where_there_is_no_tokenizer() {
    let printed = generate("qwen2", "--dtype float32 --max-tokens 24 --ignore-eos").prints();
    assert_eq!(printed, format!("{}\n", comma_separated(&golden_json("qwen2")["greedy_token_ids"])));
}

#[test]
fn text_is_printed_as_it_is_made() {
    let work =
        format!("generate hello --ignore-eos --max-tokens {ENDLESS_TOKENS} --tp 2 --threads-per-rank 1");
    // Of this kind of socket it is seen what was written at once, however late it is read.
    let (reader, writer) = UnixDatagram::pair().unwrap();
    reader.set_read_timeout(Some(LIMIT)).unwrap();
    let mut child = anysplit(&work).model(endless()).command();
    let mut child = child.stdout(OwnedFd::from(writer)).stderr(Stdio::null()).spawn().unwrap();
    let mut piece = [0; 1000];
    // It has far more to make, so this is before the end.
    let pieces = [(); 20].map(|()| reader.recv(&mut piece));
    child.kill().unwrap();
    child.wait().unwrap();
    let lengths = pieces.map(|length| length.expect("text comes before the end"));
    // No more than a word or two.
    assert!(lengths.iter().all(|length| (1..40).contains(length)), "{lengths:?}");
}
