//! What `tp-plan` prints is what `--tp-plan` takes.

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_prompt};
use crate::child::anysplit;

/// A golden checkpoint's plan under a plan file of this content.
fn planned(name: &str, plan: &Value, split: &str) -> Value {
    let copy = Copy::empty();
    copy.write("plan.json", plan.to_string());
    let child = anysplit("tp-plan --json").args(split).model(golden(name));
    child.arg("--tp-plan").arg(copy.file("plan.json")).json()
}

#[test]
fn a_printed_plan_is_taken_back_and_equals_auto() {
    for name in ["llama", "qwen3_moe", "phi3", "opt", "gemma3", "mixtral_fused"] {
        for split in ["--tp 1", "--tp 3", "--rank-weights 2,1"] {
            let auto = anysplit("tp-plan --json").args(split).model(golden(name)).json();
            assert_eq!(planned(name, &auto, split), auto, "{name} {split}: the whole output");
            assert_eq!(planned(name, &auto["plan"], split), auto, "{name} {split}: only the map");
            let named = anysplit("tp-plan --json --tp-plan auto").args(split).model(golden(name)).json();
            assert_eq!(named, auto, "{name} {split}");
        }
    }
}

#[test]
fn transformers_own_plan_of_llama_equals_auto() {
    let verbatim = r#"{"model.layers.*.self_attn.q_proj": "colwise", "model.layers.*.self_attn.k_proj": "colwise",
        "model.layers.*.self_attn.v_proj": "colwise", "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.mlp.gate_proj": "colwise", "model.layers.*.mlp.up_proj": "colwise",
        "model.layers.*.mlp.down_proj": "rowwise"}"#;
    let verbatim: Value = serde_json::from_str(verbatim).unwrap();
    let auto = anysplit("tp-plan --json --tp 4").model(golden("llama")).json();
    assert_eq!(planned("llama", &verbatim, "--tp 4"), auto);
    for (key, style) in verbatim.as_object().unwrap() {
        assert_eq!(auto["plan"][key], *style, "{key}");
    }
    // Without the prefix, as some write it.
    let bare: Value = verbatim
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, style)| (key.replacen("model.", "", 1), style.clone()))
        .collect();
    assert_eq!(planned("llama", &bare, "--tp 4"), auto);
}

#[test]
fn what_a_plan_names_is_split_as_it_says() {
    let replicated = json!({ "layers.1.mlp.gate_proj": "replicate", "layers.1.mlp.up_proj": "replicate",
        "layers.1.mlp.down_proj": "replicate", "model.norm": "sequence_parallel" });
    let found = planned("llama", &replicated, "--tp 2");
    let style = |name: &str| {
        found["weights"].as_array().unwrap().iter().find(|w| w["name"] == name).unwrap()["style"].clone()
    };
    assert_eq!(style("model.layers.0.mlp.up_proj.weight"), "colwise");
    assert_eq!(style("model.layers.1.mlp.up_proj.weight"), "replicate");
    assert_eq!(style("model.layers.1.mlp.down_proj.weight"), "replicate");
}

#[test]
fn what_tp_plan_printed_runs_with_the_same_bits() {
    let copy = Copy::empty();
    copy.write("plan.json", anysplit("tp-plan --tp 3 --json").model(golden("qwen3")).prints());
    let score = |more: &str| {
        anysplit("score --json --prompt-ids").arg(golden_prompt("qwen3")).model(golden("qwen3")).args(more)
    };
    let want = score("").prints();
    assert_eq!(score("--tp 3 --tp-plan").arg(copy.file("plan.json")).prints(), want);
    let by_environment = score("--tp 3").env("ANYSPLIT_TP_PLAN", copy.file("plan.json"));
    assert_eq!(by_environment.prints(), want);
}
