//! Quantised weights: the same bytes on any split, loaded or packed before, and what can be wrong with a packed checkpoint.

use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_prompt, split_safetensors};
use crate::child::{Anysplit, anysplit};
use crate::quantize_folder::assert_nothing_in;

const FILE: &str = "anysplit-packed.safetensors";
const AGAIN: &str = "pack the original again with `anysplit quantize`";
const KINDS: [&str; 3] = ["int8", "int4", "fp8"];

fn score(name: &str, model: &Path) -> Anysplit {
    anysplit("score --json --prompt-ids").arg(golden_prompt(name)).model(model)
}

/// A golden checkpoint packed into the folder `packed` of a directory that goes away.
fn packed(name: &str, kind: &str) -> Copy {
    let copy = Copy::empty();
    let quantize = anysplit("quantize --quantization").arg(kind).arg("--out").arg(copy.file("packed"));
    quantize.arg(golden(name)).prints();
    copy
}

/// On ranks of every number and kind, from the original and from a packed checkpoint.
fn check(name: &str, heads: usize) {
    for kind in KINDS {
        let quantized = || score(name, &golden(name)).arg("--quantization").arg(kind);
        let want = quantized().args("--tp 1 --threads-per-rank 1").prints();
        assert_ne!(want, score(name, &golden(name)).prints(), "{kind} is another function");
        let packed = packed(name, kind);
        let from_packed = || score(name, &packed.file("packed"));
        for tp in 1..=heads {
            let threads = format!("--tp {tp} --threads-per-rank {}", 1 + tp % 2);
            assert_eq!(quantized().args(&threads).prints(), want, "{name} {kind} {threads}");
            assert_eq!(from_packed().args(&threads).prints(), want, "{name} packed as {kind} {threads}");
        }
        for more in
            ["--rank-weights 2,1,1", "--tp 2 --max-num-batched-tokens 7", "--tp 2 --sp", "--tp 2 --pp 2"]
        {
            assert_eq!(quantized().args(more).prints(), want, "{name} {kind} {more}");
            assert_eq!(from_packed().args(more).prints(), want, "{name} packed as {kind} {more}");
        }
    }
}

#[test]
fn what_a_checkpoint_had_before_is_what_its_tensors_have() {
    for (name, bytes) in [("llama_fp8", 85_968), ("llama", 151_424)] {
        let copy = Copy::empty();
        let quantize = anysplit("quantize --json --out").arg(copy.file("packed")).arg(golden(name));
        assert_eq!(quantize.json()["stored_bytes"], bytes, "{name}");
    }
}

#[test]
fn quantised_llama_prints_the_same_bytes_on_any_split() {
    check("llama", 8);
}

#[test]
fn quantised_experts_print_the_same_bytes_on_any_split() {
    check("qwen3_moe", 4);
}

#[test]
fn quantised_heads_that_are_no_whole_groups_print_the_same_bytes_on_any_split() {
    check("opt", 6);
}

#[test]
fn fused_and_tied_weights_print_the_same_bytes_packed() {
    for name in ["phi3_partial", "llama_tied_bf16_sharded", "gemma3", "qwen3_moe_fused"] {
        let want = score(name, &golden(name)).args("--quantization int4").prints();
        let packed = packed(name, "int4");
        for tp in [1, 2, 3] {
            assert_eq!(
                score(name, &packed.file("packed")).arg("--tp").arg(tp.to_string()).prints(),
                want,
                "{name} {tp}"
            );
        }
    }
}

#[test]
fn packed_as_stored_is_the_same_function() {
    let want = score("qwen2", &golden("qwen2")).prints();
    let packed = packed("qwen2", "none");
    for tp in ["1", "3"] {
        assert_eq!(score("qwen2", &packed.file("packed")).arg("--tp").arg(tp).prints(), want);
    }
}

#[test]
fn generate_and_score_say_what_weights_are_quantised_to() {
    let generated = anysplit("generate --json --quantization int8 --max-tokens 4 --prompt-ids 1,2,3").json();
    assert_eq!(generated["quantization"], "int8");
    let floats = anysplit("generate --json --max-tokens 4 --prompt-ids 1,2,3").json();
    assert_eq!(floats["quantization"], Value::Null);
    let bytes = |run: &Value| run["stats"]["ranks"][0]["weight_bytes"].as_u64().unwrap();
    assert!(bytes(&generated) < bytes(&floats), "an int8 weight takes fewer bytes");
    let scored = anysplit("score --json --quantization int4 --prompt-ids 1,2,3").json();
    let of_demo = |when: &str| scored["demo_perplexity"][when].as_f64().unwrap();
    assert!(of_demo("before") > 1.0 && (of_demo("after") / of_demo("before") - 1.0).abs() < 0.1, "{scored}");
    let text = anysplit("score --quantization int4 --text Once").prints();
    assert!(text.contains("int4 changes the demo model's perplexity by"), "{text}");
}

#[test]
fn the_plan_counts_quantised_bytes() {
    let bytes = |more: &str| {
        anysplit("tp-plan --json --tp 2").args(more).json()["bytes_per_rank"][0].as_u64().unwrap()
    };
    assert!(bytes("--quantization int4") < bytes("--quantization int8"));
    assert!(bytes("--quantization int8") < bytes(""));
    let plan = |more: &str| anysplit("tp-plan --json").args(more).json();
    assert_eq!(plan("--quantization int4")["quantization"], "int4");
    assert_eq!(plan("")["quantization"], Value::Null);
    assert_eq!(plan("--quantization none")["quantization"], Value::Null);
    let heading = anysplit("tp-plan --quantization int4").prints();
    assert!(heading.lines().next().unwrap().ends_with(", int4 (the rest bfloat16)"), "{heading}");
}

/// A golden checkpoint of float32, one element of which is changed.
fn with_element(tensor: &str, at: usize, value: f32) -> Copy {
    let copy = Copy::of("llama");
    let mut file = copy.read("model.safetensors");
    let (header, data) = split_safetensors(&file);
    let at = file.len() - data.len() + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 4 * at;
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    copy.write("model.safetensors", file);
    copy
}

/// That a checkpoint is not packed, in one line that has these parts, and nothing is left.
fn is_not_packed(copy: &Copy, more: &str, parts: &[&str]) {
    let out = Copy::empty();
    anysplit("quantize").args(more).arg("--out").arg(out.file("packed")).arg(copy.path()).refused(parts);
    assert_nothing_in(&out);
}

#[test]
fn weights_that_are_not_finite_cannot_be_quantised() {
    let name = "model.layers.1.mlp.down_proj.weight";
    let cols = serde_json::from_slice::<Value>(&std::fs::read(golden("llama").join("config.json")).unwrap());
    let cols = cols.unwrap()["intermediate_size"].as_u64().unwrap() as usize;
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let copy = with_element(name, 3 * cols + 5, value);
        let parts = [name, "[3, 5]", shown];
        for tp in ["1", "3"] {
            let score = anysplit("score --prompt-ids 1,2 --quantization int8 --tp").arg(tp).model(&copy);
            score.refused(&parts);
        }
        is_not_packed(&copy, "--quantization int4", &parts);
    }
}

#[test]
fn nor_those_beside_them_nor_be_packed_as_they_are() {
    for name in ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"] {
        for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            let copy = with_element(name, 2, value);
            let at = if name == "model.norm.weight" { "[2]" } else { "[0, 2]" };
            for quantization in ["int8", "none"] {
                let flags = format!("--quantization {quantization}");
                is_not_packed(&copy, &flags, &[name, at, shown, "mend the checkpoint"]);
            }
        }
        let copy = with_element(name, 2, 1e5);
        is_not_packed(
            &copy,
            "--quantization none --dtype float16",
            &[name, "too large for float16", "--dtype"],
        );
    }
}

#[test]
fn a_packed_checkpoint_that_is_damaged_is_refused() {
    let packed = packed("llama", "int4");
    let (model, file) = (packed.file("packed"), packed.file("packed").join(FILE));
    let whole = std::fs::read(&file).unwrap();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in [20, header_end, header_end + 5000, (header_end + whole.len()) / 2, whole.len() - 3000] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&file, bytes).unwrap();
        for tp in ["1", "3"] {
            anysplit("score --prompt-ids 1,2 --tp").arg(tp).model(&model).refused(&[FILE, AGAIN]);
        }
    }
    for length in [0, 7, 100, header_end, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        anysplit("score --prompt-ids 1,2").model(&model).refused(&[FILE, AGAIN]);
    }
}

/// Changes what the header says of the checkpoint, checksum and all.
fn with_info(change: impl FnOnce(&mut Value)) -> Copy {
    let packed = packed("llama", "int8");
    let path = packed.file("packed").join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut info: Value = serde_json::from_str(header["__metadata__"]["info"].as_str().unwrap()).unwrap();
    change(&mut info);
    header["__metadata__"]["info"] = json!(info.to_string());
    let mut header = header.to_string().into_bytes();
    assert!(header.len() <= length, "the change makes nothing longer");
    header.resize(length, b' ');
    bytes[8..8 + length].copy_from_slice(&header);
    let place = bytes.len() - 8 * checksums(&bytes[8..8 + length]);
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..8 + length]).to_le_bytes();
    bytes[place..place + 8].copy_from_slice(&sum);
    std::fs::write(path, bytes).unwrap();
    packed
}

fn checksums(header: &[u8]) -> usize {
    let header: Value = serde_json::from_slice(header).unwrap();
    header["anysplit.checksums"]["shape"][0].as_u64().unwrap() as usize
}

#[test]
fn a_packed_checkpoint_of_another_version_or_processor_is_refused() {
    let score = |copy: &Copy| anysplit("score --prompt-ids 1,2").model(copy.file("packed"));
    score(&with_info(|_| ())).prints();
    for (key, value) in [
        ("version", json!("x")),
        ("version", json!(null)),
        ("dtype", json!("float64")),
        ("weights", json!("none")),
        ("layout", json!(1)),
    ] {
        score(&with_info(|info| info[key] = value)).refused(&[FILE, AGAIN]);
    }
    score(&with_info(|info| info["weights"][0]["format"] = json!("int2"))).refused(&[FILE, "format", AGAIN]);
    score(&with_info(|info| info["weights"][0]["bytes"] = json!(64))).refused(&[FILE, AGAIN]);
    for shape in [json!([u64::MAX, 2]), json!([u64::MAX, 0]), json!([0, 64]), json!([1u64 << 40, 1u64 << 20])]
    {
        let huge = with_info(|info| {
            // What follows the first is left out, so that the header does not become longer.
            info["weights"].as_array_mut().unwrap().truncate(1);
            info["weights"][0]["shape"] = shape;
        });
        score(&huge).refused(&[FILE, "can't be [", AGAIN]);
    }
    score(&with_info(|info| info["version"] = json!(7))).refused(&[FILE, "version 7", "anysplit quantize"]);
    let other = with_info(|info| info["layout"] = json!("cpu-panels-9"));
    score(&other).refused(&["another processor", "cpu-panels-9", "anysplit quantize"]);
}

#[test]
fn a_packed_checkpoint_stays_what_it_is() {
    let packed = packed("llama", "int8");
    let model = packed.file("packed");
    let score = |more: &str| anysplit("score --prompt-ids 1,2").args(more).model(&model);
    score("--quantization int8").prints();
    score("--quantization int4").refused(&["packed as int8", "--quantization"]);
    score("--dtype bfloat16").refused(&["packed as int8", "--dtype"]);
    score("--quantization none").refused(&["int8", "--quantization none", "leave it out"]);
    score("--load-format random").refused(&["packed", "--load-format random", "config.json"]);
    score("--load-format safetensors").refused(&["packed", "--load-format safetensors", "leave it out"]);
    score("--load-format auto").prints();
    for more in ["--quantization none", "--quantization int4", "--load-format random"] {
        anysplit("tp-plan").args(more).model(&model).refused(&["packed", "leave"]);
    }
    let bench = anysplit("bench decode --quantizations int8,none").model(&model);
    bench.refused(&["int8", "--quantization none"]);
    assert_eq!(anysplit("tp-plan --json").model(&model).json()["quantization"], "int8");
    let again = anysplit("quantize --quantization int4 --out").arg(packed.file("again")).arg(&model);
    again.refused(&["packed already"]);
    let both = anysplit("quantize --quantization int4 --out").arg(packed.file("again")).arg(golden("llama"));
    both.model(&model).refused(&["MODEL", "--model"]);
    let env = anysplit("quantize --quantization int4 --out").arg(packed.file("again")).arg(golden("llama"));
    env.env("ANYSPLIT_MODEL", &model).prints();
}
