//! FP8 checkpoints: the values of Hugging Face with their weights widened, the same bytes on any split, and what is refused.

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_json, golden_prompt, safetensors_of, split_safetensors};
use crate::child::anysplit;

/// Per block, tensor, channel, and per block with experts.
const NAMES: [&str; 4] = ["llama_fp8", "qwen2_fp8", "phi3_fp8", "qwen3_moe_fp8"];
const FILE: &str = "model.safetensors";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn score(name: &str, model: &std::path::Path, how: &str) -> String {
    anysplit("score --json --prompt-ids").arg(golden_prompt(name)).model(model).args(how).prints()
}

#[test]
fn values_are_those_of_hugging_face() {
    for name in NAMES {
        let golden_values = golden_json(name);
        for split in ["--tp 1", "--tp 3"] {
            let found: Value =
                serde_json::from_str(&score(name, &golden(name), &format!("--dtype float32 {split}")))
                    .unwrap();
            let ours = found["logprobs"].as_array().unwrap();
            let theirs = golden_values["logprobs"].as_array().unwrap();
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.iter().zip(theirs).skip(1) {
                let off = (ours.as_f64().unwrap() - theirs.as_f64().unwrap()).abs();
                assert!(off < 1e-4, "{name} {split}: {ours}, {theirs}");
            }
            let generate =
                anysplit("generate --json --dtype float32 --max-tokens 24 --ignore-eos --prompt-ids");
            let found = generate.arg(golden_prompt(name)).model(golden(name)).args(split).json();
            assert_eq!(found["token_ids"], golden_values["greedy_token_ids"], "{name} {split}");
        }
    }
}

#[test]
fn every_split_prints_the_same_bytes() {
    for (name, heads) in [("llama_fp8", 6), ("qwen2_fp8", 8), ("phi3_fp8", 8), ("qwen3_moe_fp8", 8)] {
        let want = score(name, &golden(name), "--tp 1 --threads-per-rank 1");
        let mut splits: Vec<String> = (2..=heads).map(|tp| format!("--tp {tp}")).collect();
        splits.extend(
            [
                "--pp 2",
                "--tp 3 --pp 2",
                "--dp 2 --tp 2",
                "--rank-weights 1,5",
                "--tp 2 --max-num-batched-tokens 7",
            ]
            .map(String::from),
        );
        if name.contains("moe") {
            splits.extend(["--tp 2 --ep", "--tp 4 --ep"].map(String::from));
        }
        for split in splits {
            assert_eq!(score(name, &golden(name), &split), want, "{name} {split}");
        }
    }
}

#[test]
fn weights_can_be_quantised_or_packed_as_they_are() {
    for name in NAMES {
        let copy = Copy::of(name);
        let as_stored = score(name, copy.path(), "");
        assert_eq!(score(name, copy.path(), "--quantization none"), as_stored);
        for how in ["none", "int8", "fp8"].map(|kind| format!("--quantization {kind}")) {
            let want = score(name, copy.path(), &how);
            assert_eq!(want == as_stored, how.ends_with("none"), "{name}: {how} counts");
            let folder = copy.file(&how);
            anysplit("quantize").args(&how).arg("--out").arg(&folder).arg(copy.path()).prints();
            for split in ["--tp 1", "--tp 3", "--tp 4"] {
                assert_eq!(score(name, &folder, split), want, "{name} packed {how} {split}");
            }
        }
    }
}

#[test]
fn plans_files_and_random_weights_are_of_one_size() {
    for name in NAMES {
        let config = Copy::of(name);
        config.remove(FILE);
        let planned = |model: &Copy| anysplit("tp-plan --json --tp 3").model(model).json();
        let plan = planned(&config);
        assert_eq!(plan["quantization"], "e4m3");
        let loaded = |model: &std::path::Path, how: &str| {
            let generate = anysplit("generate --json --tp 3 --max-tokens 1 --prompt-ids 5,6,7");
            let ranks = generate.args(how).model(model).json()["stats"]["ranks"].take();
            ranks.as_array().unwrap().iter().map(|rank| rank["weight_bytes"].clone()).collect::<Value>()
        };
        assert_eq!(loaded(&golden(name), ""), plan["bytes_per_rank"], "{name}");
        assert_eq!(loaded(config.path(), "--load-format random"), plan["bytes_per_rank"], "{name}");
        config.edit("config.json", |config| {
            drop(config.as_object_mut().unwrap().remove("quantization_config"))
        });
        let floats = planned(&config);
        assert!(floats["bytes_per_rank"][1].as_u64() > plan["bytes_per_rank"][1].as_u64(), "{name}");
    }
}

#[test]
fn random_weights_have_the_same_bits_on_any_split() {
    for name in NAMES {
        let random = |how: &str| score(name, &golden(name), &format!("--load-format random {how}"));
        let want = random("--tp 1");
        assert_eq!(random("--tp 3"), want, "{name}");
        assert_ne!(random("--seed 1"), want, "{name}");
    }
}

#[test]
fn gathered_layers_that_do_not_split_evenly_are_filled_up() {
    let copy = Copy::empty();
    let plan = [
        ("self_attn.q_proj", "replicate"),
        ("self_attn.k_proj", "replicate"),
        ("self_attn.v_proj", "replicate"),
        ("self_attn.o_proj", "colwise_gather_output"),
        ("mlp.gate_proj", "replicate"),
        ("mlp.up_proj", "replicate"),
        ("mlp.down_proj", "colwise_gather_output"),
    ];
    let plan: Value =
        plan.map(|(layer, style)| (format!("model.layers.*.{layer}"), json!(style))).into_iter().collect();
    copy.write("plan.json", plan.to_string());
    let by_plan = format!("--tp-plan {}", copy.file("plan.json").display());
    for (name, split) in [("qwen2_fp8", "--tp 3"), ("llama_fp8", "--tp 5")] {
        let want = score(name, &golden(name), "");
        assert_eq!(score(name, &golden(name), &format!("{by_plan} {split}")), want, "{name} {split}");
    }
}

/// A tensor's bytes of a golden checkpoint, changed.
fn with_bytes(tensor: &str, change: impl FnOnce(&mut [u8])) -> Copy {
    let copy = Copy::of("llama_fp8");
    let (header, mut data) = split_safetensors(&copy.read(FILE));
    let offset = |end: usize| header[tensor]["data_offsets"][end].as_u64().unwrap() as usize;
    change(&mut data[offset(0)..offset(1)]);
    copy.write(FILE, safetensors_of(&header.to_string(), &data));
    copy
}

fn refused(copy: &Copy, parts: &[&str]) {
    let one = anysplit("score --prompt-ids 1,2,3").model(copy).refused(parts);
    let split = anysplit("generate --prompt-ids 1,2,3 --tp 3").model(copy).refused(parts);
    assert_eq!(one, split, "it doesn't matter how it is split");
}

#[test]
fn scales_that_are_none_are_refused() {
    let scales = format!("{DOWN}_scale_inv");
    let renamed = Copy::of("llama_fp8");
    renamed.edit_header(FILE, |header| {
        let entry = header.as_object_mut().unwrap().remove(&scales).unwrap();
        header["another"] = entry;
    });
    refused(&renamed, &[DOWN, &scales, FILE, "missing"]);
    let flat = Copy::of("llama_fp8");
    flat.edit_header(FILE, |header| header[&scales]["shape"] = json!([6]));
    refused(&flat, &[&scales, "expected [2, 3]", "found [6]", FILE]);
    for (bad, part) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1.0, "-1"), (1e36, "1000000")] {
        let copy = with_bytes(&scales, |bytes| bytes[8..12].copy_from_slice(&bad.to_le_bytes()));
        refused(&copy, &[&scales, "scale 2", part, FILE]);
    }
    let copy = with_bytes(DOWN, |bytes| bytes[137] = 0xFF);
    refused(&copy, &[DOWN, "[1, 1]", "NaN"]);
}

#[test]
fn elements_in_eight_bits_need_a_config_that_says_how() {
    let copy = Copy::of("llama_fp8");
    copy.edit("config.json", |config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    refused(&copy, &["F8_E4M3", FILE, "quantization_config"]);
    copy.edit("config.json", |config| config["quantization_config"] = json!({ "quant_method": "gptq" }));
    refused(&copy, &["config.json", "gptq", "FP8", "bfloat16"]);
}

#[test]
fn experts_that_are_stored_in_several_ways_are_refused() {
    let copy = Copy::of("qwen3_moe_fp8");
    let (header, data) = split_safetensors(&copy.read(FILE));
    let (mut mixed, mut bytes) = (json!({}), Vec::new());
    for (tensor, entry) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |end: usize| entry["data_offsets"][end].as_u64().unwrap() as usize;
        let (begin, is_other) = (bytes.len(), tensor == "model.layers.1.mlp.experts.3.down_proj.weight");
        match is_other {
            true => bytes.extend([0x80, 0x3C].repeat(offset(1) - offset(0))),
            false => bytes.extend(&data[offset(0)..offset(1)]),
        }
        let dtype = if is_other { json!("BF16") } else { entry["dtype"].clone() };
        mixed[tensor] =
            json!({ "dtype": dtype, "shape": entry["shape"], "data_offsets": [begin, bytes.len()] });
    }
    copy.write(FILE, safetensors_of(&mixed.to_string(), &bytes));
    refused(&copy, &["experts.0.down_proj is e4m3", "experts.3.down_proj is bfloat16", "--quantization"]);
    score("qwen3_moe_fp8", copy.path(), "--quantization int8");
}
