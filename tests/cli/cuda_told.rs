//! What is told, and what is refused, where GPUs can't do what they usually do: libraries stand for NVIDIA's.

use std::os::unix::fs::symlink;

use crate::checkpoints::Copy;
use crate::child::{Anysplit, anysplit, free_port};
use crate::cuda::{on_gpu, there, with};
use crate::stand_ins;

/// So many bytes have room for the built-in model over two ranks, and little else.
const SMALL: u64 = 28_400_000;

/// Processes of several groups that share GPUs: their kernels would run by turns, so all of a group's tensors take the host.
#[test]
fn groups_that_exchange_through_the_host_are_told_of_with_their_ranks() {
    if on_gpu("generate").is_none() {
        return;
    }
    let binary = assert_cmd::cargo::cargo_bin!("anysplit");
    let words = "generate --max-tokens 9";
    let alone = there(words).arg("Once upon").prints();
    let why = "exchange through the host: GPUs can't use each other's memory, nor NCCL: rank";
    for (split, groups) in [
        ("--dp 2 --tp 2", ["ranks 0–1 (tensor parallel)", "ranks 2–3 (tensor parallel)"]),
        (
            "--tp 2 --pp 2",
            ["ranks 0–1 (tensor parallel) and ranks 0–3 (pipeline)", "ranks 2–3 (tensor parallel)"],
        ),
    ] {
        let command = there("launch --nproc-per-node 4 --master-port").env("FAKE_GPUS", "2");
        let command = command.arg(free_port().to_string()).arg("--").arg(binary).args(words).args(split);
        let (printed, told) = command.arg("Once upon").run().succeeds();
        assert_eq!(printed, alone, "{split}");
        let told: Vec<&str> = told.lines().filter(|line| line.contains("through the host")).collect();
        assert_eq!(told.len(), 2, "{split}: {told:?}");
        for (group, first) in groups.into_iter().zip([0, 2]) {
            let line = format!("warning: {group} {why} {first}: 2 processes have its GPU, on which");
            // What other processes than rank 0's say, the launcher says of them.
            let is_said = |told: &&str| told.strip_prefix("rank 2: ").unwrap_or(told).starts_with(&line);
            assert!(told.iter().any(is_said), "{split}: {told:?}\n{line}");
        }
    }
}

#[test]
fn steps_of_any_size_run_or_are_refused() {
    for tokens in ["4611686018427387904", "18446744073709551615"] {
        let words = format!("generate --max-tokens 3 --max-num-batched-tokens {tokens} x");
        let printed = anysplit(&words).args("--device cpu").prints();
        assert_eq!(printed, anysplit("generate --max-tokens 3 --device cpu x").prints());
        let Some(gpu) = on_gpu(&words) else { continue };
        let line = gpu
            .args("--device cuda --tp 2")
            .refused(&["the model does not fit: GPU 0", "2 ranks on it need"]);
        assert!(line.contains("fewer --max-num-batched-tokens"), "{line}");
    }
}

#[test]
fn models_of_very_many_heads_are_the_processors() {
    let words = "generate --load-format random --max-tokens 2 --prompt-ids 5,6";
    let Some(gpu) = on_gpu(words) else { return };
    let copy = Copy::of("llama");
    copy.edit("config.json", |config| {
        config["num_attention_heads"] = 260.into();
        config["num_key_value_heads"] = 260.into();
    });
    gpu.args("--device cuda")
        .model(&copy)
        .refused(&["GPUs take models of 256 heads at most, this one has 260", "--device cpu"]);
    let (printed, told) = there(words).model(&copy).run().succeeds();
    assert_eq!(printed, anysplit(words).args("--device cpu").model(&copy).prints());
    assert!(told.starts_with("warning: the processor is used: GPUs take models of 256 heads"), "{told}");
    copy.edit("config.json", |config| {
        config["num_attention_heads"] = 256.into();
        config["num_key_value_heads"] = 256.into();
    });
    there(words).args("--device cuda").model(&copy).run().succeeds();
}

#[test]
fn what_is_missing_is_said() {
    let Some(folder) = stand_ins::libraries() else { return };
    let only_driver = Copy::empty();
    symlink(folder.join("libcuda.so.1"), only_driver.path().join("libcuda.so.1")).expect("a link");
    let error =
        with(only_driver.path(), "generate --device cuda x").refused(&["--device cuda: ", "libnvrtc"]);
    assert!(error.contains("looked for"), "{error}");
    // Who leaves it open gets an answer all the same, and hears what the GPU would need.
    let (printed, told) = with(only_driver.path(), "generate --max-tokens 5 x").run().succeeds();
    assert_eq!(printed, anysplit("generate --max-tokens 5 --device cpu x").prints());
    assert!(told.starts_with("warning: GPU 0: Fake GPU, 2 GB, ") && told.contains("libnvrtc"), "{told}");
    let broken = |words: &str| with(folder, words).env("FAKE_NO_BUILTINS", "1");
    broken("generate --device cuda x").refused(&["--device cuda: ", "does not work", "libnvrtc-builtins"]);
    let (printed, told) = broken("generate --max-tokens 5 x").run().succeeds();
    assert_eq!(printed, anysplit("generate --max-tokens 5 --device cpu x").prints());
    assert!(told.contains("libnvrtc-builtins") && told.lines().count() == 1, "{told}");
    with(folder, "generate --device cuda x").env("FAKE_GPUS", "0").refused(&["NVIDIA's driver finds no GPU"]);
}

#[test]
fn a_driver_that_is_broken_is_said_and_one_that_finds_no_gpu_is_not() {
    let Some(broken) = on_gpu("generate --max-tokens 5 x") else { return };
    let on_cpu = anysplit("generate --max-tokens 5 --device cpu x").prints();
    // 803: the driver is older than the kernel's part of it; 100: there is no GPU.
    let (printed, told) = broken.env("FAKE_INIT", "803").run().succeeds();
    assert_eq!(printed, on_cpu);
    assert!(
        told.starts_with("warning: GPUs are not used: NVIDIA's driver") && told.lines().count() == 1,
        "{told}"
    );
    let (printed, told) = there("generate --max-tokens 5 x").env("FAKE_INIT", "100").run().succeeds();
    assert_eq!((printed, told), (on_cpu, String::new()));
    there("generate --device cuda x").env("FAKE_INIT", "803").refused(&["--device cuda: NVIDIA's driver"]);
}

#[test]
fn a_gpu_that_is_too_old_is_passed_over() {
    let Some(gpu) = on_gpu("generate --device cuda --tp 2 --dtype float32 --max-tokens 5 x") else { return };
    let (printed, told) = gpu.env("FAKE_GPUS", "3").env("FAKE_OLD_GPU", "1").run().succeeds();
    assert_eq!(printed, anysplit("generate --max-tokens 5 --dtype float32 --device cpu x").prints());
    let why = "Fake GPU cannot be used: its compute capability is 7.5; the kernels need 8.0";
    assert_eq!(told, format!("warning: GPU 1 is passed over: {why}\n"));
    // With none but such there is nothing to go on with.
    let only = there("generate --device cuda x").env("FAKE_GPUS", "1").env("FAKE_OLD_GPU", "0");
    only.refused(&[&format!("--device cuda: {why}")]);
    let (_, told) =
        there("generate --max-tokens 5 x").env("FAKE_GPUS", "1").env("FAKE_OLD_GPU", "0").run().succeeds();
    assert!(told.starts_with("warning: GPU 0: ") && told.contains(why), "{told}");
}

#[test]
fn what_gpus_cannot_have_is_the_processors_if_that_is_left_open() {
    let Some(gpu) = on_gpu("generate x --device cuda") else { return };
    let packed = Copy::empty();
    let output = packed.path().join("packed");
    anysplit("quantize --quantization int8 --out").arg(&output).prints();
    gpu.model(&output).refused(&["packed for a processor", "--device cpu"]);
    let told_once = |command: Anysplit, why: &str, like: &str| {
        let (printed, told) = command.run().succeeds();
        assert_eq!(printed, anysplit(like).prints(), "{like}");
        let begin = format!("warning: the processor is used: {why}");
        assert!(told.starts_with(&begin) && told.lines().count() == 1, "{told}");
    };
    let path = output.display();
    let words = format!("generate --max-tokens 5 --model {path} x");
    let like = format!("generate --device cpu --max-tokens 5 --model {path} x");
    told_once(there(&words), "the checkpoint is packed for a processor", &like);
    let small = there("generate --max-tokens 5 x").env("FAKE_FREE_BYTES", "210000000");
    told_once(small, "the model does not fit: GPU 0", "generate --device cpu --max-tokens 5 x");
}

/// A job of two processes, of which rank 1 has a GPU with so many free bytes.
fn with_a_small_gpu(bytes: u64, words: &str) -> Anysplit {
    with_rank_1(&format!("FAKE_FREE_BYTES={bytes}"), words)
}

/// A job of two processes, of which rank 1 has such a variable.
fn with_rank_1(variable: &str, words: &str) -> Anysplit {
    let command = there("launch --nproc-per-node 2 --master-port").env("FAKE_GPUS", "2");
    let binary = assert_cmd::cargo::cargo_bin!("anysplit").display();
    let script =
        format!("if [ \"$RANK\" = 1 ]; then export {variable}; fi; exec {binary} generate --tp 2 {words}");
    command.arg(crate::child::free_port().to_string()).args("-- sh -c").arg(script)
}

#[test]
fn ranks_of_a_job_go_to_the_processor_together() {
    if on_gpu("generate").is_none() {
        return;
    }
    let (printed, told) = with_a_small_gpu(210_000_000, "--max-tokens 5 x").run().succeeds();
    assert_eq!(printed, anysplit("generate --device cpu --max-tokens 5 x").prints());
    let why = "warning: the processor is used: rank 1: the model does not fit: GPU 1";
    assert!(told.contains(why) && told.matches("warning").count() == 1, "{told}");
    // Nor is one that has no GPU, though others have.
    let (printed, told) = with_rank_1("FAKE_INIT=100", "--max-tokens 5 x").run().succeeds();
    assert_eq!(printed, anysplit("generate --device cpu --max-tokens 5 x").prints());
    let why = "warning: the processor is used: rank 1 finds no NVIDIA GPU that it can use";
    assert!(told.contains(why) && told.matches("warning").count() == 1, "{told}");
    // Where nobody has one there is nothing to tell.
    let all = with_rank_1("X=", "--max-tokens 5 x").env("FAKE_INIT", "100");
    let (printed, told) = all.run().succeeds();
    assert_eq!(printed, anysplit("generate --device cpu --max-tokens 5 x").prints());
    assert!(!told.contains("warning: the processor"), "{told}");
    let refused = with_a_small_gpu(210_000_000, "--device cuda --max-tokens 5 x").run().fails_with(2);
    assert!(refused.contains("the model does not fit: GPU 1"), "{refused}");
}

#[test]
fn a_jobs_cache_has_room_on_the_smallest_gpu() {
    if on_gpu("generate").is_none() {
        return;
    }
    let words = "--device cuda --gpu-memory-utilization 1 --max-num-batched-tokens 64 --max-num-seqs 1 --ignore-eos --max-tokens";
    let few = with_a_small_gpu(SMALL, &format!("{words} 4 x"));
    few.run().succeeds();
    // Ranks met and loaded before that.
    let told = with_a_small_gpu(SMALL, &format!("{words} 900 x")).run().fails_after_all_with(2);
    assert!(
        told.contains("keys and values of") && told.contains("more than the memory that is left"),
        "{told}"
    );
}
