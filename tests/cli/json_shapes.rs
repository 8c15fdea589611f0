//! What `--json` prints has the keys and the types of the contract.

use checkpoint::{Checkpoint, WeightSource, config_file};
use engine::{Engine, EngineOptions};
use model::ModelConfig;
use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_prompt};
use crate::child::anysplit;

/// Whether `found` has every key of `like`, with values of the same type; one element stands for all of an array.
/// `null` in `like` is any number or null; an integer is a whole number.
#[track_caller]
pub fn assert_shape(found: &Value, like: &Value, place: &str) {
    match (found, like) {
        (Value::Object(found), Value::Object(like)) => {
            for (key, like) in like {
                let value = found.get(key).unwrap_or_else(|| panic!("{place}: no {key} among {found:?}"));
                assert_shape(value, like, &format!("{place}.{key}"));
            }
        }
        (Value::Array(found), Value::Array(like)) => {
            assert!(!found.is_empty(), "{place} is empty");
            found.iter().for_each(|value| assert_shape(value, &like[0], place));
        }
        (found, Value::Null) => assert!(found.is_null() || found.is_number(), "{place}: {found}"),
        (found, Value::Number(n)) if n.is_u64() => {
            assert!(found.is_u64(), "{place}: {found} is no whole number")
        }
        (found, Value::Number(_)) => assert!(found.is_f64(), "{place}: {found} is no fraction"),
        (Value::String(_), Value::String(_)) | (Value::Bool(_), Value::Bool(_)) => {}
        (found, like) => panic!("{place}: {found} is of another type than {like}"),
    }
}

fn generation() -> Value {
    json!({
        "model": "", "parallel": { "tp": 1, "pp": 1, "dp": 1, "ep": 1, "sp": false }, "dtype": "",
        "prompt_token_ids": [1], "token_ids": [1], "finish_reason": "",
        "usage": { "prompt_tokens": 1, "completion_tokens": 1 },
        "stats": {
            "load_s": 0.1, "ttft_ms": 0.1, "prefill_tokens_per_s": 0.1, "decode_tokens_per_s": 0.1, "peak_rss_bytes": 1,
            "ranks": [{
                "rank": 0, "query_heads": 1, "kv_heads": 1, "weight_bytes": 1, "kv_cache_bytes": 1,
                "kv_bytes_per_token": 1, "all_reduce_calls": 1, "all_reduce_bytes": 1, "all_reduce_s": 0.1,
                "vocab_collective_calls": 1, "activation_bytes": 1, "scratch_bytes": 1, "peak_rss_bytes": 1,
            }],
        },
    })
}

#[test]
fn generate_prints_one_object() {
    let found = anysplit("generate hello --json --tp 2 --max-tokens 5 --ignore-eos").json();
    assert_shape(&found, &generation(), "generate");
    assert_eq!(found["model"], "anysplit-demo");
    assert_eq!(found["parallel"], json!({ "tp": 2, "pp": 1, "dp": 1, "ep": 1, "sp": false }));
    assert_eq!((&found["dtype"], &found["quantization"]), (&json!("bfloat16"), &Value::Null));
    assert!(found["text"].is_string());
    assert_eq!(found["finish_reason"], "length");
    assert_eq!(found["token_ids"].as_array().unwrap().len(), 5);
    assert_eq!(found["usage"]["completion_tokens"], 5);
    let prompt = found["prompt_token_ids"].as_array().unwrap();
    assert_eq!(found["usage"]["prompt_tokens"], prompt.len());
    let ranks = found["stats"]["ranks"].as_array().unwrap();
    assert_eq!(ranks.iter().map(|r| r["rank"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn generate_prints_an_array_for_a_file_of_prompts() {
    let copy = Copy::empty();
    for prompts in ["one\n", "one\ntwo words\nthree words here"] {
        copy.write("prompts.txt", prompts);
        let child = anysplit("generate --json --max-tokens 4 --ignore-eos --prompt-file");
        let found = child.arg(copy.file("prompts.txt")).json();
        let results = found.as_array().expect("an array, of one prompt too");
        assert_eq!(results.len(), prompts.lines().count());
        results.iter().for_each(|result| assert_shape(result, &generation(), "generate"));
    }
}

#[test]
fn stats_say_where_a_step_went() {
    let found =
        anysplit("generate hello --json --stats --tp 2 --max-tokens 4 --ignore-eos").run().succeeds().0;
    let found: Value = serde_json::from_str(&found).unwrap();
    let breakdown = json!([{ "op": "", "ms": 0.1, "bytes": 1, "flops": 1, "fraction": 0.1 }]);
    for (step, key) in [("decode", "breakdown"), ("prefill", "prefill_breakdown")] {
        let parts = &found["stats"][key];
        assert_shape(parts, &breakdown, key);
        let parts = parts.as_array().unwrap();
        let ops: Vec<&str> = parts.iter().map(|row| row["op"].as_str().unwrap()).collect();
        for op in ["embedding", "qkv", "attention", "output", "all-reduce", "ffn", "head", "sampling"] {
            assert!(ops.contains(&op), "{op} among {ops:?}");
        }
        let sum: f64 = parts.iter().map(|row| row["ms"].as_f64().unwrap()).sum();
        let whole = found["stats"]["steps"][step]["ms"].as_f64().unwrap();
        assert!((sum / whole - 1.0).abs() < 1e-6, "{sum} of {whole}");
    }
    assert_eq!(found["stats"]["steps"]["decode_steps"], 3);
    assert_eq!(found["stats"]["steps"]["decode"]["tokens"], 1);
    // It takes a measurement, so it is made only when it is asked for.
    let plain = anysplit("generate hello --json --max-tokens 4").json();
    assert_eq!(plain["stats"]["breakdown"], json!([]));
}

#[test]
fn text_is_null_without_a_tokenizer() {
    let found = anysplit("generate --prompt-ids 1,2 --max-tokens 3 --json").model(golden("qwen2")).json();
    assert_shape(&found, &generation(), "generate");
    assert_eq!(found["text"], Value::Null);
    assert_eq!(found["prompt_token_ids"], json!([1, 2]));
    // With one, ids become text, too.
    let found = anysplit("generate --prompt-ids 1,2 --max-tokens 3 --json").model(golden("llama")).json();
    assert!(found["text"].is_string());
}

#[test]
fn rates_of_what_did_not_happen_are_null() {
    let found = anysplit("generate hello --max-tokens 1 --json").json();
    assert_eq!(found["stats"]["decode_tokens_per_s"], Value::Null);
    assert!(found["stats"]["prefill_tokens_per_s"].is_f64());
}

#[test]
fn score_prints_a_log_probability_for_each_token_but_the_first() {
    let found = anysplit("score --json --text").arg("the other ranks").model(golden("llama")).json();
    assert_shape(&found, &json!({ "token_ids": [1], "logprobs": [null], "perplexity": 0.1 }), "score");
    let (ids, logprobs) = (found["token_ids"].as_array().unwrap(), found["logprobs"].as_array().unwrap());
    assert_eq!(ids.len(), logprobs.len());
    assert!(logprobs[0].is_null() && logprobs[1..].iter().all(|l| l.as_f64().unwrap() < 0.0));
    let mean = logprobs[1..].iter().map(|l| l.as_f64().unwrap()).sum::<f64>() / (logprobs.len() - 1) as f64;
    assert!(((-mean).exp() / found["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-9);
}

#[test]
fn one_token_has_no_perplexity() {
    let found = anysplit("score --json --prompt-ids 7").model(golden("llama")).json();
    assert_eq!(found, json!({ "token_ids": [7], "logprobs": [null], "perplexity": null }));
}

#[test]
fn log_probabilities_parse_back_to_the_exact_float32() {
    let dir = golden("gemma2");
    let config = ModelConfig::parse(&config_file(&dir).unwrap(), None).unwrap();
    let source = WeightSource::Files(Checkpoint::open(&dir).unwrap());
    let options = EngineOptions { rank_weights: vec![1.0; 3], ..Default::default() };
    let mut engine = Engine::load(config, source, &options, &|_, _| {}).unwrap();
    let ids: Vec<u32> = golden_prompt("gemma2").split(',').map(|id| id.parse().unwrap()).collect();
    let want = engine.score(&ids).unwrap();

    let child = anysplit("score --json --prompt-ids").arg(golden_prompt("gemma2")).model(dir);
    let printed = child.prints();
    // As text, so that no parser of ours stands between.
    let (_, list) = printed.split_once("\"logprobs\":[null,").expect("the first is null");
    let (list, _) = list.split_once(']').unwrap();
    let literals: Vec<&str> = list.split(',').collect();
    assert_eq!(literals.len() + 1, want.len());
    for (literal, want) in literals.iter().zip(want.iter().skip(1)) {
        let bits = want.expect("only the first has none").to_bits();
        assert_eq!(literal.parse::<f32>().unwrap().to_bits(), bits, "{literal}");
        assert_eq!((literal.parse::<f64>().unwrap() as f32).to_bits(), bits, "{literal} by way of a double");
    }
}

#[test]
fn tp_plan_prints_its_shape() {
    let found = anysplit("tp-plan --tp 2 --json").model(golden("llama")).json();
    let like = json!({
        "tp": 2, "supported": true, "dtype": "", "plan": {},
        "weights": [{ "name": "", "style": "", "shape": [1], "ranks": [{ "rank": 0, "shape": [1], "bytes": 1 }] }],
        "ranks": [{ "rank": 0, "query_heads": 1, "kv_heads": 1 }], "bytes_per_rank": [1],
    });
    assert_shape(&found, &like, "tp-plan");
    assert!(found["plan"].as_object().unwrap().values().all(Value::is_string));
    let q = "model.layers.0.self_attn.q_proj.weight";
    let weight = found["weights"].as_array().unwrap().iter().find(|w| w["name"] == q).unwrap();
    let half = |rank: usize| json!({ "rank": rank, "shape": [32, 32], "bytes": 32 * 32 * 4 });
    assert_eq!(
        *weight,
        json!({ "name": q, "style": "colwise", "shape": [64, 32], "ranks": [half(0), half(1)] })
    );
}
