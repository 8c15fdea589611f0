//! A checkpoint whose weights are missing or damaged is refused with the file, and the tensor where there is one.

use serde_json::{Value, json};

use crate::checkpoints::{Copy, safetensors_of, split_safetensors};
use crate::child::anysplit;

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00002-of-00003.safetensors";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const K: &str = "model.layers.0.self_attn.k_proj.weight";

/// What every way to run a checkpoint says of it.
fn refused(copy: &Copy, parts: &[&str]) {
    let score = anysplit("score --prompt-ids 1,2,3").model(copy).refused(parts);
    let split = anysplit("generate --prompt-ids 1,2,3 --tp 3").model(copy).refused(parts);
    assert_eq!(score, split, "it doesn't matter how it is split");
}

#[test]
fn a_file_that_is_cut_off_is_refused_wherever_that_is() {
    let copy = Copy::of("llama");
    let whole = copy.read(FILE);
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let cuts = [0, 1, 7, 8, 9, 100, header_end - 1, header_end, header_end + 1, 50_000, whole.len() - 1];
    for length in cuts {
        copy.write(FILE, &whole[..length]);
        let found = format!(" {length}");
        let line = anysplit("score --prompt-ids 1,2").model(&copy).refused(&[FILE, &found]);
        assert!(line.contains("incomplete"), "{line}");
    }
    copy.write(FILE, [&whole[..], b"more"].concat());
    refused(&copy, &[FILE, &(whole.len() + 4).to_string(), "damaged"]);
}

#[test]
fn a_header_of_gigabytes_is_not_believed() {
    let copy = Copy::of("llama");
    for length in [5_000_000_000, 1 << 40, u64::MAX] {
        let mut file = copy.read(FILE);
        file[..8].copy_from_slice(&length.to_le_bytes());
        copy.write(FILE, file);
        refused(&copy, &[FILE, &length.to_string(), "the limit is"]);
    }
}

#[test]
fn a_file_that_is_something_else_is_refused() {
    let copy = Copy::of("llama");
    copy.write(FILE, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 153552\n");
    refused(&copy, &[FILE, "git lfs pull"]);
    copy.write(FILE, safetensors_of("{\"a\": nonsense}", b""));
    refused(&copy, &[FILE, "bad header", "column"]);
    copy.write(FILE, safetensors_of(&"[".repeat(200_000), b""));
    refused(&copy, &[FILE, "bad header"]);
    copy.remove(FILE);
    copy.write("pytorch_model.bin", b"PK");
    refused(&copy, &["pytorch_model.bin", "safetensors"]);
    copy.remove("pytorch_model.bin");
    refused(&copy, &["no safetensors weights", FILE]);
}

/// A golden checkpoint with another header.
fn with_header(change: impl FnOnce(&mut Value)) -> Copy {
    let copy = Copy::of("llama");
    copy.edit_header(FILE, change);
    copy
}

#[test]
fn offsets_that_overlap_name_both_tensors() {
    let copy = with_header(|header| header[Q]["data_offsets"] = header[K]["data_offsets"].clone());
    let line = anysplit("score --prompt-ids 1,2,3").model(&copy).refused(&[FILE, Q]);
    assert!(line.contains("hold") || line.contains("overlap"), "{line}");

    let overlap = with_header(|header| header[Q] = header[K].clone());
    refused(&overlap, &[FILE, Q, "overlap", K]);
}

#[test]
fn offsets_beyond_the_file_are_refused() {
    let copy = Copy::of("llama");
    let (_, data) = split_safetensors(&copy.read(FILE));
    copy.edit_header(FILE, |header| {
        let bytes =
            header[K]["data_offsets"][1].as_u64().unwrap() - header[K]["data_offsets"][0].as_u64().unwrap();
        header[K]["data_offsets"] = json!([data.len(), data.len() as u64 + bytes]);
    });
    refused(&copy, &[FILE]);
    let backwards = with_header(|header| header[K]["data_offsets"] = json!([4096, 0]));
    refused(&backwards, &[FILE, K, "backwards"]);
    let huge = with_header(|header| header[K]["shape"] = json!([u64::MAX, 2]));
    refused(&huge, &[FILE, K]);
    let negative = with_header(|header| header[K]["data_offsets"] = json!([-1, 4095]));
    refused(&negative, &[FILE, "bad header"]);
}

#[test]
fn a_wrong_shape_says_which_is_right() {
    let copy = Copy::of("llama");
    copy.edit("config.json", |config| config["intermediate_size"] = json!(41));
    refused(&copy, &["mlp.gate_proj.weight", "expected [41, 32]", "found [40, 32]", FILE]);
    let flat = with_header(|header| {
        header[K]["shape"] =
            json!([header[K]["shape"][0].as_u64().unwrap() * header[K]["shape"][1].as_u64().unwrap()]);
    });
    refused(&flat, &[K, "expected [32, 32]", "found [1024]", FILE]);
    let vocabulary = Copy::of("llama");
    vocabulary.edit("config.json", |config| config["vocab_size"] = json!(276));
    refused(&vocabulary, &["embed_tokens", "expected [276, 32]", "found [277, 32]"]);
}

#[test]
fn a_wrong_dtype_is_named_with_those_that_are_right() {
    let integers = with_header(|header| header[K]["dtype"] = json!("I32"));
    refused(&integers, &[K, "I32", FILE, "BF16"]);
    let unknown = with_header(|header| header[K]["dtype"] = json!("Q4_K"));
    refused(&unknown, &["Q4_K", FILE, "BF16"]);
    let wider = with_header(|header| header[K]["dtype"] = json!("F64"));
    refused(&wider, &[K, FILE, "8192", "4096"]);
}

#[test]
fn weights_that_are_no_numbers_are_a_failure_not_an_answer() {
    for (tensor, number) in [("lm_head.weight", f32::NAN), ("model.norm.weight", f32::INFINITY)] {
        let copy = Copy::of("llama");
        let (header, mut data) = split_safetensors(&copy.read(FILE));
        let at = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[at..at + 4].copy_from_slice(&number.to_le_bytes());
        copy.write(FILE, safetensors_of(&header.to_string(), &data));
        for split in ["--tp 1", "--tp 3"] {
            let ended = anysplit("score --prompt-ids 1,2,3").args(split).model(&copy).run();
            assert!(ended.fails_with(1).contains("not a finite number"));
            let ended = anysplit("generate --prompt-ids 1,2,3 --json").args(split).model(&copy).run();
            assert!(ended.fails_with(1).contains("not a finite number"));
        }
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let copy = with_header(|header| {
        let entry = header.as_object_mut().unwrap().remove(K).unwrap();
        header["model.layers.0.self_attn.k_projection.weight"] = entry;
    });
    refused(&copy, &["no tensor", K, "the nearest names are", Q]);
}

#[test]
fn a_missing_shard_is_named() {
    let copy = Copy::of("llama31_old_config");
    copy.remove(SHARD);
    refused(&copy, &[INDEX, SHARD, "missing"]);
}

#[test]
fn a_damaged_shard_is_named() {
    let copy = Copy::of("llama31_old_config");
    let whole = copy.read(SHARD);
    copy.write(SHARD, &whole[..whole.len() - 1]);
    refused(&copy, &[SHARD, "incomplete"]);
}

#[test]
fn an_index_that_leaves_its_directory_is_refused() {
    let outside =
        ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", "../../etc/passwd"];
    for name in outside {
        let copy = Copy::of("llama31_old_config");
        copy.edit(INDEX, |index| index["weight_map"]["model.norm.weight"] = json!(name));
        refused(&copy, &[INDEX, name, "plain"]);
    }
}

#[test]
fn an_index_that_is_wrong_says_how() {
    let copy = Copy::of("llama31_old_config");
    let index = copy.read(INDEX);
    copy.edit(INDEX, |index| index["weight_map"]["model.norm.weight"] = json!(7));
    refused(&copy, &[INDEX, "model.norm.weight"]);
    copy.write(INDEX, &index[..index.len() / 2]);
    refused(&copy, &[INDEX, "line"]);
    copy.write(INDEX, "{}");
    refused(&copy, &[INDEX, "weight_map"]);
    copy.write(INDEX, "{\"weight_map\": {}}");
    refused(&copy, &[INDEX, "empty"]);
    copy.write(INDEX, &index);
    copy.edit(INDEX, |index| index["weight_map"][Q] = json!(SHARD));
    copy.edit(INDEX, |index| index["weight_map"]["model.layers.9.extra"] = json!(SHARD));
    refused(&copy, &[INDEX, SHARD, "does not hold"]);
}
