//! `score --json` prints the same bytes on any split.

use crate::checkpoints::{Copy, golden, golden_json, golden_prompt};
use crate::child::anysplit;

/// With what `score` is run, and the degrees that the heads allow.
fn check(name: &str, heads: usize, more: &str) {
    let score = |split: &str| {
        let child = anysplit("score --json --prompt-ids").arg(golden_prompt(name)).model(golden(name));
        child.args(split).args(more).prints()
    };
    let want = score("--tp 1 --threads-per-rank 1");
    for tp in 1..=heads {
        for threads in [1, 2] {
            let split = format!("--tp {tp} --threads-per-rank {threads}");
            assert_eq!(score(&split), want, "{name} {split} {more}");
        }
    }
    for weights in ["2,1,1", "1,5", "0.1,3,1,0.7"] {
        assert_eq!(score(&format!("--rank-weights {weights}")), want, "{name} {weights} {more}");
    }
    // In chunks of any size, too.
    assert_eq!(score("--tp 2 --max-num-batched-tokens 7"), want, "{name} in chunks {more}");
}

#[test]
fn llama_in_float32_prints_the_same_bytes_on_any_split() {
    check("llama", 8, "");
}

#[test]
fn qwen3_moe_prints_the_same_bytes_on_any_split() {
    check("qwen3_moe", 8, "");
}

#[test]
fn gemma3_prints_the_same_bytes_on_any_split() {
    check("gemma3", 8, "--kv-cache-dtype float16");
}

#[test]
fn opt_prints_the_same_bytes_on_any_split_of_six_heads() {
    check("opt_old_config", 6, "--dtype float32");
}

#[test]
fn a_plan_changes_no_byte() {
    let copy = Copy::of("llama");
    copy.write(
        "plan.json",
        r#"{"layers.*.mlp.gate_proj": "colwise_rep", "layers.*.mlp.up_proj": "colwise_rep",
            "layers.*.mlp.down_proj": "rowwise_rep", "layers.1.self_attn.q_proj": "replicate",
            "layers.1.self_attn.k_proj": "replicate", "layers.1.self_attn.v_proj": "replicate",
            "layers.1.self_attn.o_proj": "rowwise_split_input", "lm_head": "replicate", "embed_tokens": "replicate"}"#,
    );
    let score = || anysplit("score --json --prompt-ids").arg(golden_prompt("llama")).model(&copy);
    let want = score().prints();
    for tp in ["1", "2", "3", "5"] {
        let planned = score().arg("--tp").arg(tp).arg("--tp-plan").arg(copy.file("plan.json"));
        assert_eq!(planned.prints(), want, "{tp} ranks");
    }
}

#[test]
fn scores_agree_with_hugging_face() {
    for name in ["llama", "gemma2", "phi3", "mixtral"] {
        let child = anysplit("score --json --dtype float32 --tp 3 --prompt-ids").arg(golden_prompt(name));
        let found = child.model(golden(name)).json();
        let golden = golden_json(name);
        assert_eq!(found["token_ids"], golden["prompt_token_ids"]);
        let pairs = found["logprobs"].as_array().unwrap().iter().zip(golden["logprobs"].as_array().unwrap());
        for (ours, theirs) in pairs.skip(1) {
            assert!(
                (ours.as_f64().unwrap() - theirs.as_f64().unwrap()).abs() < 1e-4,
                "{name}: {ours}, {theirs}"
            );
        }
    }
}
