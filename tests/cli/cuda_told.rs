//! What is told, and what is refused, where GPUs can't do what they usually do: libraries stand for NVIDIA's.

use crate::checkpoints::Copy;
use crate::child::{anysplit, free_port};
use crate::cuda::{on_gpu, there};

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
