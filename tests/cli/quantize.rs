//! Quantised weights: the same bytes on any split, loaded or packed before, and what can be wrong with a packed checkpoint.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_prompt, split_safetensors};
use crate::child::{Anysplit, anysplit};

const FILE: &str = "anysplit-packed.safetensors";
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
}

#[test]
fn weights_that_are_not_finite_cannot_be_quantised() {
    for (bits, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let copy = Copy::of("llama");
        let (header, _) = split_safetensors(&copy.read("model.safetensors"));
        let name = "model.layers.1.mlp.down_proj.weight";
        let mut file = copy.read("model.safetensors");
        let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let (at, cols) =
            (header[name]["data_offsets"][0].as_u64().unwrap(), header[name]["shape"][1].as_u64().unwrap());
        let at = data + (at + 4 * (3 * cols + 5)) as usize;
        file[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        copy.write("model.safetensors", file);
        let parts = [name, "[3, 5]", shown];
        for tp in ["1", "3"] {
            let score = anysplit("score --prompt-ids 1,2 --quantization int8 --tp").arg(tp).model(&copy);
            score.refused(&parts);
        }
        let out = Copy::empty();
        let quantize =
            anysplit("quantize --quantization int4 --out").arg(out.file("packed")).arg(copy.path());
        quantize.refused(&parts);
        assert_nothing_in(&out);
    }
}

fn assert_nothing_in(folder: &Copy) {
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?} is left");
}

#[test]
fn a_folder_that_is_there_is_not_written_to() {
    let out = Copy::empty();
    out.write("mine", "precious");
    let quantize = || anysplit("quantize --quantization int8 --out");
    quantize().arg(out.path()).refused(&["is there already"]);
    quantize().arg(out.file("mine")).refused(&["is there already"]);
    quantize().arg(out.file("no/such/place")).refused(&["--out", "cannot make a folder"]);
    assert_eq!(out.read("mine"), b"precious");
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let out = Copy::empty();
    let quantize = anysplit("quantize --quantization int8 --out").arg(out.file("packed"));
    // No file may become long: to a program that is a disk which is full.
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap '' XFSZ; ulimit -f 1000; exec "$@""#, "sh"]);
    let line = quantize.by_way_of(shell).run().fails_with(1);
    assert!(line.contains("cannot write") && line.contains(FILE), "{line}");
    assert_nothing_in(&out);
}

#[test]
fn who_is_asked_to_end_leaves_nothing_behind() {
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
        "vocab_size": 32000, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"});
    let (model, out) = (Copy::of_config(&config), Copy::empty());
    let quantize = anysplit("quantize --quantization int4 --load-format random --out")
        .arg(out.file("packed"))
        .arg(model.path());
    let mut child = quantize.command().stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // It has begun when its file is there; to make hundreds of millions of weights takes longer than to see that.
    let has_begun = || {
        let mut folders = std::fs::read_dir(out.path()).unwrap();
        folders.any(|folder| folder.unwrap().path().join(FILE).is_file())
    };
    while !has_begun() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it writes a file");
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert_nothing_in(&out);
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
            anysplit("score --prompt-ids 1,2 --tp").arg(tp).model(&model).refused(&[FILE]);
        }
    }
    for length in [0, 7, 100, header_end, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        anysplit("score --prompt-ids 1,2").model(&model).refused(&[FILE]);
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
    let again = anysplit("quantize --quantization int4 --out").arg(packed.file("again")).arg(&model);
    again.refused(&["packed already"]);
}
