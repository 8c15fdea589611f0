//! `generate` answers as Hugging Face does, in every type and on every split, with random weights too.

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_json, golden_prompt};
use crate::child::anysplit;

fn generate(name: &str, more: &str) -> Value {
    anysplit("generate --json")
        .arg("--prompt-ids")
        .arg(golden_prompt(name))
        .model(golden(name))
        .args(more)
        .json()
}

#[test]
fn greedy_tokens_are_those_of_hugging_face() {
    for (name, split) in [
        ("llama", "--tp 8"),
        ("qwen3", "--tp 3 --threads-per-rank 1"),
        ("gemma2_old_config", "--rank-weights 2,1"),
        ("phi3_partial", "--tp 5"),
        ("qwen3_moe_fused", "--tp 2"),
        ("opt", "--tp 7 --max-num-batched-tokens 9"),
    ] {
        let found = generate(name, &format!("--dtype float32 --max-tokens 24 --ignore-eos {split}"));
        assert_eq!(found["token_ids"], golden_json(name)["greedy_token_ids"], "{name} {split}");
    }
}

#[test]
fn weights_can_be_kept_in_any_type() {
    let stored = generate("qwen2", "--max-tokens 8");
    assert_eq!(stored["dtype"], "bfloat16");
    let bytes = |found: &Value| found["stats"]["ranks"][0]["weight_bytes"].as_u64().unwrap();
    for (dtype, factor) in [("float32", 2), ("bfloat16", 1), ("float16", 1)] {
        let found = generate("qwen2", &format!("--max-tokens 8 --dtype {dtype}"));
        assert_eq!(found["dtype"], dtype);
        assert_eq!(bytes(&found), bytes(&stored) * factor, "{dtype}");
        let split = generate("qwen2", &format!("--max-tokens 8 --dtype {dtype} --tp 3"));
        assert_eq!(split["token_ids"], found["token_ids"], "{dtype}");
    }
    // Widened weights are the same numbers.
    let widened = generate("qwen2", "--max-tokens 8 --dtype float32 --kv-cache-dtype bfloat16");
    assert_eq!(widened["token_ids"], stored["token_ids"]);
}

#[test]
fn random_weights_need_only_a_config() {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000, "hidden_act": "silu",
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "torch_dtype": "float16", "eos_token_id": 5,
    });
    let copy = Copy::of_config(&config);
    let run = |more: &str| {
        let child =
            anysplit("generate --json --load-format random --prompt-ids 7,8,9 --max-tokens 16 --ignore-eos");
        child.args(more).model(&copy).json()
    };
    let one = run("--tp 1");
    assert_eq!((&one["dtype"], &one["text"]), (&json!("float16"), &Value::Null));
    assert_eq!(run("--tp 3")["token_ids"], one["token_ids"]);
    assert_eq!(run("--rank-weights 1,3 --threads-per-rank 2")["token_ids"], one["token_ids"]);
    assert_eq!(run("--dtype float16 --seed 0")["token_ids"], one["token_ids"]);
    assert_ne!(run("--seed 1")["token_ids"], one["token_ids"], "another seed, other weights");

    let score = |more: &str| {
        let child = anysplit("score --json --load-format random --prompt-ids 7,8,9,10 --seed 3");
        child.args(more).model(&copy).prints()
    };
    assert_eq!(score("--tp 3"), score("--tp 1"));
    anysplit("score --prompt-ids 7,8").model(&copy).refused(&["safetensors"]);
}
