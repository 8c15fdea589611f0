//! A packed checkpoint gives the bits of what it was packed from, also in other processes, whatever its vectors are
//! stored in.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_prompt, safetensors_of, split_safetensors};
use crate::child::{Anysplit, anysplit};
use crate::jobs_common::Work;

const WEIGHTS: &str = "model.safetensors";

/// A golden checkpoint of bfloat16 whose norms and biases are stored as float32, with digits that bfloat16 has no room for.
fn with_float32_vectors(name: &str) -> Copy {
    let copy = Copy::of(name);
    let (header, data) = split_safetensors(&copy.read(WEIGHTS));
    let (mut mixed, mut bytes) = (json!({}), Vec::new());
    for (tensor, entry) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        assert_eq!(entry["dtype"], "BF16", "{tensor}");
        let offset = |end: usize| entry["data_offsets"][end].as_u64().unwrap() as usize;
        let stored = &data[offset(0)..offset(1)];
        let is_vector = entry["shape"].as_array().unwrap().len() == 1;
        let begin = bytes.len();
        match is_vector {
            true => bytes.extend(stored.as_chunks().0.iter().flat_map(|&bits| finer(bits).to_le_bytes())),
            false => bytes.extend(stored),
        }
        let dtype = if is_vector { "F32" } else { "BF16" };
        mixed[tensor] =
            json!({ "dtype": dtype, "shape": entry["shape"], "data_offsets": [begin, bytes.len()] });
    }
    copy.write(WEIGHTS, safetensors_of(&mixed.to_string(), &bytes));
    copy
}

/// A little more than a bfloat16.
fn finer(bits: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bits)) << 16 | 0x5a5a)
}

/// What `quantize` makes of a checkpoint, in a folder beside it.
fn packed(copy: &Copy, how: &str) -> PathBuf {
    let folder = copy.file(&format!("packed {how}"));
    anysplit("quantize").args(how).arg("--out").arg(&folder).arg(copy.path()).prints();
    folder
}

fn prompt(name: &str, command: &str, model: &Path) -> Anysplit {
    anysplit(command).arg("--prompt-ids").arg(golden_prompt(name)).model(model)
}

fn scores(name: &str, model: &Path, how: &str) -> String {
    prompt(name, "score --json", model).args(how).prints()
}

fn tokens(name: &str, model: &Path, how: &str) -> Value {
    let generate = "generate --json --max-tokens 12 --ignore-eos --temperature 0.9 --seed 5";
    prompt(name, generate, model).args(how).json()["token_ids"].take()
}

#[test]
fn vectors_of_another_type_than_the_matrices_give_the_same_bits_packed() {
    // RMS norms with biases elsewhere, LayerNorms with biases, norms that are stored as what is added to 1.
    for name in ["llama_bias", "opt", "gemma2"] {
        let mixed = with_float32_vectors(name);
        for how in ["none", "int8", "int4", "fp8"].map(|kind| format!("--quantization {kind}")) {
            let want = scores(name, mixed.path(), &how);
            assert_ne!(want, scores(name, &golden(name), &how), "{name}: the digits count");
            let folder = packed(&mixed, &how);
            assert_eq!(scores(name, &folder, ""), want, "{name} {how}");
            assert_eq!(scores(name, &folder, "--tp 3 --sp"), want, "{name} {how} --tp 3 --sp");
            assert_eq!(tokens(name, &folder, ""), tokens(name, mixed.path(), &how), "{name} {how}");
        }
    }
}

#[test]
fn vectors_that_are_rounded_when_loaded_are_rounded_when_packed() {
    let name = "llama_bias";
    let mixed = with_float32_vectors(name);
    for how in ["--quantization int8 --dtype bfloat16", "--quantization int4 --dtype float16"] {
        let want = scores(name, mixed.path(), how);
        assert_ne!(want, scores(name, mixed.path(), &how.replace("--dtype", "--kv-cache-dtype")), "{how}");
        assert_eq!(scores(name, &packed(&mixed, how), ""), want, "{how}");
    }
}

#[test]
fn a_packed_checkpoint_in_other_processes_gives_what_one_process_gives() {
    for (name, mixed) in [("llama_bias", true), ("qwen3_moe", false)] {
        let copy = if mixed { with_float32_vectors(name) } else { Copy::of(name) };
        for kind in ["int8", "int4"] {
            let how = format!("--quantization {kind}");
            let folder = packed(&copy, &how);
            let work = |command: &str| {
                let work = Work::new(command).arg("--prompt-ids").arg(golden_prompt(name));
                work.arg("--model").arg(&folder)
            };
            let score = work("score --json");
            let want = score.alone();
            assert_eq!(want, scores(name, copy.path(), &how), "{name} {how}");
            let generate = work("generate --max-tokens 12 --ignore-eos --temperature 0.9 --seed 5");
            let tokens = generate.alone();
            for split in ["--tp 2", "--pp 2"] {
                assert_eq!(score.on_one_node(2, split), want, "{name} {how} {split}");
                assert_eq!(generate.on_one_node(2, split), tokens, "{name} {how} {split}");
            }
        }
    }
}
