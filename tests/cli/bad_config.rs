//! A config.json that can't be used is refused with the key and what it may be.

use serde_json::{Value, json};

use crate::checkpoints::Copy;
use crate::child::anysplit;

/// What `score` and `tp-plan` both say of a golden checkpoint with another config.json.
fn refused(golden: &str, change: impl Fn(&mut Value), parts: &[&str]) {
    let copy = Copy::of(golden);
    copy.edit("config.json", change);
    let parts = [&["config.json"], parts].concat();
    let score = anysplit("score --prompt-ids 1,2,3").model(&copy).refused(&parts);
    let plan = anysplit("tp-plan").model(&copy).refused(&parts);
    assert_eq!(score, plan);
}

#[test]
fn a_missing_config_is_named() {
    let copy = Copy::of("llama");
    copy.remove("config.json");
    anysplit("score --prompt-ids 1,2,3").model(&copy).refused(&["config.json"]);
    anysplit("tp-plan").model(&copy).refused(&["config.json"]);
    anysplit("generate --prompt-ids 1").model(copy.file("nowhere")).refused(&["nowhere", "does not exist"]);
    anysplit("tp-plan").model(copy.file("other.json")).refused(&["other.json"]);
}

#[test]
fn a_malformed_config_says_where() {
    let whole = Copy::of("llama").read("config.json");
    let malformed: &[(&[u8], &str)] = &[
        (b"", "line 1"),
        (&whole[..whole.len() / 2], "line"),
        (b"[1, 2]", "JSON object"),
        (b"{\"vocab_size\": 3,}", "line 1 column 18"),
        (b"{\"vocab_size\": NaN}", "line 1 column 16"),
        (b"\xff\xfe{}", "config.json"),
    ];
    for (bytes, part) in malformed {
        let copy = Copy::of("llama");
        copy.write("config.json", bytes);
        anysplit("score --prompt-ids 1,2,3").model(&copy).refused(&["config.json", part]);
        anysplit("tp-plan").model(&copy).refused(&["config.json", part]);
    }
}

#[test]
fn a_directory_in_place_of_a_config_is_named() {
    let copy = Copy::of("llama");
    copy.remove("config.json");
    std::fs::create_dir(copy.file("config.json")).unwrap();
    anysplit("tp-plan").model(&copy).refused(&["config.json"]);
}

#[test]
fn impossible_sizes_are_named_with_what_is_possible() {
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    let impossible =
        [json!(0), json!(-1), json!(1.5), json!("64"), json!([8]), json!(1e300), json!(u64::MAX)];
    for (key, value) in sizes.iter().zip(impossible.iter().cycle()) {
        refused(
            "llama",
            |config| config[*key] = value.clone(),
            &[key, &value.to_string(), "whole number from 1"],
        );
    }
    for value in impossible {
        refused(
            "llama",
            |config| config["hidden_size"] = value.clone(),
            &["hidden_size", &value.to_string()],
        );
    }
}

#[test]
fn impossible_numbers_are_named() {
    for (key, value) in
        [("rms_norm_eps", json!(-1e-5)), ("rms_norm_eps", json!("small")), ("rms_norm_eps", json!(0))]
    {
        refused("llama", |config| config[key] = value.clone(), &[key, &value.to_string(), "positive number"]);
    }
    for value in [json!(0.0), json!(-10000.0), json!("10000"), json!(1e300)] {
        let parts = ["rope_theta", &value.to_string(), "positive number"];
        refused("llama", |config| config["rope_parameters"]["rope_theta"] = value.clone(), &parts);
        refused("llama1", |config| config["rope_theta"] = value.clone(), &parts);
    }
    refused(
        "gemma2",
        |config| config["attn_logit_softcapping"] = json!(-50),
        &["attn_logit_softcapping", "-50"],
    );
    refused("mistral", |config| config["sliding_window"] = json!(0), &["sliding_window", "0"]);
    refused("llama1", |config| config["eos_token_id"] = json!("</s>"), &["eos_token_id", "</s>"]);
    refused("llama1", |config| config["eos_token_id"] = json!([2, -1]), &["eos_token_id", "-1"]);
    refused(
        "llama",
        |config| config["tie_word_embeddings"] = json!("no"),
        &["tie_word_embeddings", "true or false"],
    );
}

#[test]
fn numbers_that_do_not_go_together_are_named() {
    refused(
        "llama",
        |config| config["num_key_value_heads"] = json!(3),
        &["num_attention_heads 8", "num_key_value_heads 3"],
    );
    refused("llama", |config| config["head_dim"] = json!(7), &["head_dim 7", "even"]);
    let without_head_dim = |config: &mut Value| {
        config.as_object_mut().unwrap().remove("head_dim");
        config["num_attention_heads"] = json!(5);
        config["num_key_value_heads"] = json!(5);
    };
    refused("llama", without_head_dim, &["hidden_size 32", "num_attention_heads 5", "head_dim"]);
    refused("mixtral", |config| config["num_experts_per_tok"] = json!(9), &["num_experts_per_tok 9", "8"]);
    refused("gemma3", |config| config["layer_types"] = json!(["full_attention"]), &["layer_types", "3"]);
    let low_over_high = |config: &mut Value| config["rope_parameters"]["low_freq_factor"] = json!(40.0);
    refused("llama31", low_over_high, &["low_freq_factor", "high_freq_factor"]);
}

#[test]
fn missing_keys_are_named_with_the_architecture() {
    for key in ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size"]
    {
        let remove = |config: &mut Value| drop(config.as_object_mut().unwrap().remove(key));
        refused("llama", remove, &[key, "missing", "Llama"]);
    }
}

#[test]
fn what_is_not_known_is_named_with_what_is() {
    let architectures = ["MambaForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM", "OPTForCausalLM"];
    refused("llama", |config| config["architectures"] = json!(["MambaForCausalLM"]), &architectures);
    let nameless = |config: &mut Value| {
        config.as_object_mut().unwrap().remove("architectures");
        config.as_object_mut().unwrap().remove("model_type");
    };
    refused("llama", nameless, &["architectures", "model_type"]);
    refused("llama", |config| config["hidden_act"] = json!("mish"), &["hidden_act", "mish", "silu"]);
    refused("llama", |config| config["dtype"] = json!("int8"), &["dtype", "int8", "bfloat16"]);
    let yarn = |config: &mut Value| config["rope_parameters"]["rope_type"] = json!("yarn");
    refused("llama", yarn, &["yarn", "llama3", "linear"]);
    refused("gemma3", |config| config["layer_types"][0] = json!("mamba"), &["mamba", "sliding_attention"]);
    let quantized =
        |config: &mut Value| config["quantization_config"] = json!({ "quant_method": "awq", "bits": 4 });
    refused("llama", quantized, &["quantization_config", "bfloat16"]);
    let post_norm = anysplit("tp-plan").model(crate::checkpoints::golden("opt_post_norm"));
    post_norm.refused(&["config.json", "do_layer_norm_before"]);
}

#[test]
fn a_generation_config_that_cannot_be_used_is_named() {
    let copy = Copy::of("llama");
    for (text, part) in
        [("{", "line 1"), ("[]", "JSON object"), ("{\"eos_token_id\": \"</s>\"}", "eos_token_id")]
    {
        copy.write("generation_config.json", text);
        anysplit("generate --prompt-ids 1").model(&copy).refused(&["generation_config.json", part]);
    }
}

#[test]
fn a_model_larger_than_any_memory_is_refused() {
    let copy = Copy::of("llama");
    copy.edit("config.json", |config| {
        config["hidden_size"] = json!(1 << 16);
        config["intermediate_size"] = json!(1 << 18);
        config["num_hidden_layers"] = json!(200);
    });
    anysplit("generate --prompt-ids 1 --load-format random --tp 2").model(&copy).refused(&["memory"]);
}

#[test]
fn a_cache_larger_than_any_memory_is_refused() {
    let copy = Copy::of("llama");
    copy.edit("config.json", |config| {
        config["max_position_embeddings"] = json!(1 << 28);
        config["head_dim"] = json!(1 << 12);
        config["num_key_value_heads"] = json!(8);
    });
    let long = "generate --load-format random --prompt-ids 1 --max-tokens 268000000 --ignore-eos";
    anysplit(long).model(&copy).refused(&["memory", "--max-tokens"]);
}
