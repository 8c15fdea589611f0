//! The folder that `quantize` writes: it is there whole, or not at all.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::checkpoints::{Copy, golden};
use crate::child::{Anysplit, anysplit};

const FILE: &str = "anysplit-packed.safetensors";

pub fn assert_nothing_in(folder: &Copy) {
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
    shell.args(["-c", r#"ulimit -f 1000; exec "$@""#, "sh"]);
    let line = quantize.by_way_of(shell).run().fails_with(1);
    assert!(line.contains("cannot write") && line.contains(FILE), "{line}");
    assert_nothing_in(&out);
}

/// A model of hundreds of millions of weights, which take a while to make.
fn large() -> Copy {
    Copy::of_config(
        &json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
        "vocab_size": 32000, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}),
    )
}

fn quantize(model: &Copy, out: &Copy) -> Anysplit {
    let quantize = anysplit("quantize --quantization int4 --load-format random --out");
    quantize.arg(out.file("packed")).arg(model.path())
}

/// Starts it, and waits until its file is there.
fn begun(quantize: Anysplit, out: &Copy) -> Child {
    let mut child = quantize.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let has_begun = || {
        let mut folders = std::fs::read_dir(out.path()).unwrap();
        folders.any(|folder| folder.unwrap().path().join(FILE).is_file())
    };
    while !has_begun() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it writes a file");
        std::thread::yield_now();
    }
    child
}

fn kill(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[test]
fn who_is_asked_to_end_says_so_and_leaves_nothing_behind() {
    let (model, out) = (large(), Copy::empty());
    let child = begun(quantize(&model, &out), &out);
    kill(&child, "-TERM");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(128 + 15));
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "error: ended by SIGTERM\n");
    assert_nothing_in(&out);
}

#[test]
fn a_hang_up_that_is_ignored_does_not_end_it() {
    let (model, out) = (large(), Copy::empty());
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap '' HUP; exec "$@""#, "sh"]);
    let child = begun(quantize(&model, &out).by_way_of(shell), &out);
    kill(&child, "-HUP");
    // Signals that are taken are taken in their order, so the first would have been its end.
    kill(&child, "-INT");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "error: ended by SIGINT\n");
    assert_nothing_in(&out);
}

#[test]
fn what_one_that_was_killed_has_left_goes_with_the_next() {
    let (model, out) = (large(), Copy::empty());
    let mut child = begun(quantize(&model, &out), &out);
    kill(&child, "-KILL");
    child.wait().unwrap();
    let left = std::fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
    let next = anysplit("quantize --quantization int8 --out").arg(out.file("packed")).arg(golden("llama"));
    let (_, told) = next.run().succeeds();
    let line = format!("removed {}: an `anysplit quantize` that was killed had left it\n", left.display());
    assert_eq!((told, left.exists(), out.file("packed").is_dir()), (line, false, true));
}
