//! Models on GPUs, under the real command line: NVIDIA's driver and compiler are libraries that stand for them, and kernels run on
//! the processor.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoints::{Copy, golden, golden_prompt};
use crate::child::{Anysplit, anysplit};
use crate::served::{Api, Served, greedy};
use crate::stand_ins;

/// Of a GPU's memory.
const BYTES: u64 = 2_000_000_000;

/// The command, where those libraries are found. `None` without a C++ compiler.
pub fn on_gpu(arguments: &str) -> Option<Anysplit> {
    Some(with(stand_ins::libraries()?, arguments))
}

/// The command, where libraries of this folder are found.
pub fn with(folder: &Path, arguments: &str) -> Anysplit {
    let bytes = BYTES.to_string();
    anysplit(arguments).with_gpus_of(folder).env("FAKE_FREE_BYTES", &bytes).env("FAKE_TOTAL_BYTES", &bytes)
}

/// The same, where it is known that there is a compiler.
pub fn there(arguments: &str) -> Anysplit {
    on_gpu(arguments).expect("it was there before")
}

/// Log-probabilities of a golden checkpoint's prompt, in digits that have all their bits.
fn scores(command: Anysplit, name: &str) -> Value {
    let scored = command.arg("--prompt-ids").arg(golden_prompt(name)).model(golden(name)).json();
    scored["logprobs"].clone()
}

#[test]
fn gpus_have_the_processors_bits_in_f32() {
    let score = "score --json --dtype float32";
    let Some(gpu) = on_gpu(score) else { return };
    let on_cpu = scores(anysplit(score).args("--device cpu"), "llama");
    assert_eq!(scores(gpu.args("--device cuda"), "llama"), on_cpu);
    // They are the best there is.
    let stats = there("generate --json --max-tokens 2 x").json()["stats"].clone();
    assert_eq!(stats["ranks"][0]["device"], "Fake GPU");
}

#[test]
fn a_model_has_the_same_bits_on_any_split_over_gpus() {
    let score = "score --json --dtype bfloat16";
    if on_gpu(score).is_none() {
        return;
    }
    for name in ["llama", "qwen3_moe"] {
        let alone = scores(there(score), name);
        for split in [
            "--tp 2",
            "--tp 3",
            "--tp 2 --pp 2",
            "--tp 2 --sp --enforce-eager",
            "--enforce-eager",
            "--max-num-batched-tokens 33",
        ] {
            let over_two = there(score).args(split).env("FAKE_GPUS", "2");
            assert_eq!(scores(over_two, name), alone, "{name}, {split}");
        }
    }
}

/// Checkpoints whose weights are e4m3: with scales of blocks, of outputs, of whole matrices, and of experts' blocks.
const FP8: [&str; 4] = ["llama_fp8", "phi3_fp8", "qwen2_fp8", "qwen3_moe_fp8"];

#[test]
fn fp8_checkpoints_have_the_same_bits_on_any_split_over_gpus() {
    let score = "score --json";
    if on_gpu(score).is_none() {
        return;
    }
    for name in FP8 {
        let alone = scores(there(score), name);
        // Activations are rounded to bfloat16.
        let on_cpu = scores(anysplit(score).args("--device cpu"), name);
        let pairs = alone.as_array().expect("numbers").iter().zip(on_cpu.as_array().expect("numbers"));
        let difference = |(a, b): (&Value, &Value)| Some((a.as_f64()? - b.as_f64()?).abs());
        let differences: Vec<f64> = pairs.filter_map(difference).collect();
        // As much as with weights in bfloat16.
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        assert!(0.0 < mean && mean < 0.06, "{name} differs by {mean} from the CPU");
        for split in ["--tp 2", "--tp 3", "--tp 2 --pp 2", "--enforce-eager", "--max-num-batched-tokens 33"] {
            let over_two = there(score).args(split).env("FAKE_GPUS", "2");
            assert_eq!(scores(over_two, name), alone, "{name}, {split}");
        }
    }
}

/// Experts that are whole on ranks, consecutive ones and others, over each other's memory and over NVIDIA's library.
#[test]
fn whole_experts_have_the_bits_of_one_gpu() {
    let score = "score --json --dtype bfloat16";
    let Some(alone) = on_gpu(score) else { return };
    let alone = scores(alone, "qwen3_moe");
    let placed = "--expert-placement round-robin";
    for (split, peers) in
        [("--tp 2 --ep", "1"), ("--tp 3 --ep --sp", "1"), ("--tp 2 --pp 2 --ep", "1"), ("--tp 4 --ep", "0")]
    {
        let over = |split: &str| there(score).args(split).env("FAKE_GPUS", "4").env("FAKE_PEERS", peers);
        assert_eq!(scores(over(split), "qwen3_moe"), alone, "{split}");
        assert_eq!(scores(over(split).args(placed), "qwen3_moe"), alone, "{split} {placed}");
    }
    // Tokens travel to their experts by counts that the host has to know: only where there is no other way.
    let sent = |flags: &str| {
        let run =
            there("generate --json --max-tokens 5 --tp 2 --ep --prompt-ids").arg(golden_prompt("qwen3_moe"));
        let stats = run.args(flags).env("FAKE_GPUS", "2").model(golden("qwen3_moe")).json()["stats"].clone();
        stats["experts"]["sent_bytes"].as_u64().expect("a number")
    };
    assert_eq!(sent("--sp"), 0);
    assert!(sent(placed) > 0);
}

/// As some launchers do: each process is given one GPU, which is number 0 to it.
#[test]
fn ranks_that_see_one_gpu_each_have_all_of_it() {
    // Of two ranks that share a GPU with so much memory there would be no room for either.
    let bytes = "275000000";
    let Some(gpu) = on_gpu("launch --nproc-per-node 2 --master-port") else { return };
    let port = crate::child::free_port().to_string();
    let own = "export FAKE_FIRST_GPU=$LOCAL_RANK; exec \"$@\"";
    let binary = assert_cmd::cargo::cargo_bin!("anysplit");
    let command = gpu.env("FAKE_GPUS", "1").env("FAKE_FREE_BYTES", bytes).arg(port);
    let command = command.args("--").args("sh -c").arg(own).arg("sh").arg(binary);
    let printed = command.args("generate --tp 2 --max-tokens 9").arg("Once upon").run().succeeds().0;
    assert_eq!(printed, there("generate --max-tokens 9").arg("Once upon").prints());
    let shared = there("generate --tp 2 --device cuda x").env("FAKE_GPUS", "1").env("FAKE_FREE_BYTES", bytes);
    shared.refused(&["2 ranks on it need"]);
}

/// Of what is scored, whatever is warned of.
fn perplexity(command: Anysplit) -> f64 {
    let (printed, _) = command.run().succeeds();
    let scored: Value = serde_json::from_str(&printed).expect("JSON");
    scored["perplexity"].as_f64().expect("a number")
}

#[test]
fn fast_sums_are_near_the_canonical_ones() {
    let Some(gpu) = on_gpu("score --json --reduction fast --prompt-ids") else { return };
    // From 512 rows on, which 507 are filled up to, layers are NVIDIA's library's.
    let ids = (0..507).map(|i| (i * i * 7 + 3).to_string()).map(|id| id[..id.len().min(3)].to_owned());
    let ids = ids.collect::<Vec<_>>().join(",");
    let (fast, canonical) =
        (perplexity(gpu.arg(&ids)), perplexity(there("score --json --prompt-ids").arg(&ids)));
    assert!((fast / canonical - 1.0).abs() < 0.02, "{fast}, canonical {canonical}");
    // Activations are rounded to e4m3 where an output has one scale.
    let ids = (0..507).map(|i| (i * i * 7 % 112).to_string()).collect::<Vec<_>>().join(",");
    for name in FP8 {
        let of = |reduction: &str| {
            let command = there("score --json --reduction").arg(reduction).arg("--prompt-ids").arg(&ids);
            perplexity(command.model(golden(name)))
        };
        let (fast, canonical) = (of("fast"), of("canonical"));
        assert!(fast != canonical, "{name}: {fast}");
        assert!((fast / canonical - 1.0).abs() < 0.05, "{name}: {fast}, canonical {canonical}");
    }
}

#[test]
fn what_fast_gives_up_is_said() {
    let Some(gpu) = on_gpu("generate --json --reduction fast --max-tokens 2 --device cuda x") else { return };
    let (printed, told) = gpu.run().succeeds();
    let said: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((&said["device"], &said["reduction"]), (&"cuda".into(), &"fast".into()));
    assert!(told.starts_with("warning: --reduction fast") && told.lines().count() == 1, "{told}");
    // A library that does not work is missed by layers that it would have had.
    let of = |flags: &str| there("generate --reduction fast --max-tokens 2 --device cuda x").args(flags);
    let without =
        |flags: &str| of(flags).env("FAKE_GPUS", "2").env("FAKE_NO_CUBLASLT", "1").run().succeeds().1;
    let told = without("--tp 2");
    assert_eq!(
        told.matches("libcublasLt.so.13: libcublasLt: CUBLAS_STATUS_NOT_INITIALIZED").count(),
        1,
        "{told}"
    );
    assert!(told.starts_with("warning: --reduction fast: ") && told.lines().count() == 2, "{told}");
    // What the library asks the driver for could wait for a rank of the same GPU that waits for this one.
    let (_, told) = of("--tp 2").env("FAKE_GPUS", "1").run().succeeds();
    let why = "cuBLASLt is for ranks with a GPU of their own, and 2 share this one";
    assert_eq!(told.matches(why).count(), 1, "{told}");
    for flags in ["--quantization int8", "--quantization int4", "--dtype float32"] {
        assert_eq!(without(flags).lines().count(), 1, "{flags}");
    }
    // The processor has one order.
    let (printed, told) =
        anysplit("generate --json --reduction fast --max-tokens 2 --device cpu x").run().succeeds();
    let said: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((&said["device"], &said["reduction"]), (&"cpu".into(), &"canonical".into()));
    assert_eq!(told, "");
}

#[test]
fn instructions_of_the_processor_are_not_for_gpus() {
    let Some(gpu) = on_gpu("bench decode --device cuda --isa portable") else { return };
    gpu.refused(&["--isa is of the processor's kernels"]);
}

#[test]
fn processes_of_a_job_share_gpus() {
    let Some(gpu) = on_gpu("launch --nproc-per-node 3 --master-port") else { return };
    let port = crate::child::free_port().to_string();
    let binary = assert_cmd::cargo::cargo_bin!("anysplit");
    let command = gpu.env("FAKE_GPUS", "2").arg(port).arg("--").arg(binary);
    let printed = command.args("generate --tp 3 --max-tokens 9").arg("Once upon").run().succeeds().0;
    assert_eq!(printed, there("generate --max-tokens 9").arg("Once upon").prints());
}

#[test]
fn a_server_on_gpus_gives_the_answers_of_generate() {
    let Some(gpu) = on_gpu("serve --port 0 --tp 2 --max-num-seqs 8 --max-num-batched-tokens 64") else {
        return;
    };
    let served = Served::of(gpu.env("FAKE_GPUS", "3").env("FAKE_OLD_GPU", "1"));
    for prompt in ["Once upon a time", "The harbor"] {
        let printed = there("generate --max-tokens 12").arg(prompt).prints();
        let answer = served.completion(&greedy(prompt, 12));
        assert_eq!(format!("{}\n", answer["choices"][0]["text"].as_str().expect("a text")), printed);
    }
    let status = served.get("/status").json();
    assert_eq!(
        (&status["engine"]["reduction"], &status["ranks"][1]["device"]),
        (&json!("canonical"), &json!("Fake GPU"))
    );
    let told = served.ends().stderr.join("\n");
    assert!(told.contains("2 ranks on Fake GPU, canonical sums (tp 2)"), "{told}");
    assert_eq!(told.matches("GPU 1 is passed over").count(), 1, "{told}");
}

/// What a server answers to requests of different lengths at once, so that there are ever fewer.
fn answers_of_many(served: &Api) -> Vec<Value> {
    let answer = |i: usize| {
        let prompt: Vec<usize> = (0..3).map(|at| 5 + (i * 37 + at * 101) % 100).collect();
        let body = serde_json::json!({
            "prompt": prompt, "max_tokens": 8 + i, "temperature": 0, "ignore_eos": true, "logprobs": 2
        });
        served.completion(&body)["choices"][0].clone()
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..16).map(|i| scope.spawn(move || answer(i))).collect();
        asked.into_iter().map(|asked| asked.join().expect("an answer")).collect()
    })
}

#[test]
fn batches_of_up_to_eight_more_sequences_are_one_graph_on_any_split() {
    if on_gpu("serve").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let serve = |model: &str, flags: &str| {
        let limits = "serve --port 0 --max-num-seqs 16 --max-num-batched-tokens 64 --max-model-len 64";
        there(limits).args(flags).env("FAKE_GPUS", "2").model(golden(model))
    };
    for (model, splits) in [
        ("llama", ["--tp 2", "--tp 2 --sp", "--pp 2", "--tp 3"]),
        ("qwen3_moe", ["--tp 1", "--tp 2", "--tp 3", "--pp 2"]),
    ] {
        let eager = Served::of(serve(model, "--enforce-eager"));
        let expected = answers_of_many(&eager);
        eager.ends();
        for (i, split) in splits.into_iter().enumerate() {
            let told = folder.path().join(format!("{model}{i}"));
            // Nobody makes a graph while another rank waits for it, or it would wait for that one.
            let served = Served::of(serve(model, split).env("FAKE_TOLD", &told).env("FAKE_WAITS", "2"));
            // Twice, for a graph is made late where other ranks have work under way all the time.
            for round in 0..2 {
                assert_eq!(answers_of_many(&served), expected, "{model} {split}, round {round}");
            }
            served.ends();
            let told = std::fs::read_to_string(told).expect("what graphs there were");
            let [made, launched] =
                ["made", "launched"].map(|what| told.lines().filter(|line| *line == what).count());
            println!("{model} {split}: {made} graphs, launched {launched} times");
            let ranks: usize = split.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
            assert!(made <= 8 * ranks, "{model} {split}: {made} graphs");
            assert!(launched >= 20 * ranks, "{model} {split}: {launched} launches of {made} graphs");
        }
    }
}

#[test]
fn a_model_without_room_is_refused_before_it_is_loaded() {
    let Some(gpu) = on_gpu("generate --device cuda --tp 2 x") else { return };
    gpu.env("FAKE_FREE_BYTES", "210000000").refused(&[
        "the model does not fit: GPU 0 (Fake GPU) has 10 MB for it (--gpu-memory-utilization 0.9 of 2.0 GB, 210 MB free)",
        "2 ranks on it need",
        "weights and buffers 49 MB",
        "--quantization int8",
        "--device cpu would help",
    ]);
    for share in ["0", "1.1", "-1"] {
        let flag = format!("generate x --gpu-memory-utilization={share}");
        anysplit(&flag).refused(&["--gpu-memory-utilization is", "above 0 and at most 1"]);
    }
}

#[test]
fn a_cache_without_room_is_refused_with_what_steps_take() {
    let Some(gpu) = on_gpu("serve --port 0 --kv-cache-memory-bytes 200000") else { return };
    gpu.env("FAKE_FREE_BYTES", "236500000").refused(&[
        "--kv-cache-memory-bytes 200000",
        "Steps of 2048 tokens take",
        "fewer --max-num-batched-tokens leave more",
    ]);
    let enough = there("serve --port 0 --kv-cache-memory-bytes 200000 --max-num-batched-tokens 64");
    Served::of(enough.env("FAKE_FREE_BYTES", "236500000")).ends();
    // What the largest step took to find that out is given back: the cache has 64 tokens, not 256.
    let small =
        Served::of(there("serve --port 0 --kv-cache-memory-bytes 200000 --max-num-batched-tokens 256"));
    let metrics = small.get("/metrics").body;
    assert!(metrics.contains(" 163840") && !metrics.contains(" 655360"), "{metrics}");
    small.ends();
}

#[test]
fn stats_and_traces_of_a_gpu_have_the_processors_parts() {
    if on_gpu("generate").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let run = |command: Anysplit, name: &str| {
        let file = folder.path().join(name);
        let command = command.args("--json --max-tokens 9 --dtype float32 --tp 2 --stats --device").arg(name);
        let command = command.arg("--trace").arg(&file).arg("--prompt-ids").arg(golden_prompt("llama"));
        let (stats, _) = command.model(golden("llama")).run().succeeds();
        let stats: Value = serde_json::from_str(&stats).expect("JSON");
        let parts = |kind: &str| -> Vec<(String, Value, Value)> {
            let parts = stats["stats"][kind].as_array().expect("parts").iter();
            assert!(
                parts.clone().all(|part| part["fraction"].as_f64().is_none_or(f64::is_finite)),
                "{stats}"
            );
            // What GPUs exchange follows from shapes, on processors from ids.
            let bytes = |p: &Value| if p["op"] == "exchange" { Value::Null } else { p["bytes"].clone() };
            let part = |p: &Value| (p["op"].to_string(), bytes(p), p["flops"].clone());
            parts.map(part).filter(|(name, ..)| name != "\"other\"").collect()
        };
        // Of rank 1, whose thread does nothing but steps: what it did, in its order.
        let trace: Value = serde_json::from_slice(&std::fs::read(file).expect("a trace")).expect("JSON");
        let told = trace["traceEvents"].as_array().expect("events").iter();
        let told =
            told.filter(|e| e["pid"] == 1 && e["tid"] == 1 && e["ph"] == "X" && e["name"] != "waiting");
        let told: Vec<String> = told.map(|event| event["name"].to_string()).collect();
        (parts("breakdown"), parts("prefill_breakdown"), told)
    };
    let (cpu, gpu) = (run(anysplit("generate"), "cpu"), run(there("generate"), "cuda"));
    assert!(cpu.0.len() > 5 && cpu.2.len() > 100, "{cpu:?}");
    // Which decode step is the median is up to the machine.
    let names =
        |parts: &[(String, Value, Value)]| parts.iter().map(|part| part.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&gpu.0), names(&cpu.0));
    assert_eq!(gpu.1, cpu.1);
    // Where ranks' sums and the norm behind them are one kernel, they are one part.
    let kinds = |told: &[String]| told.iter().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(kinds(&gpu.2), kinds(&cpu.2));
}

#[test]
fn limits_of_a_gpu_are_told() {
    let Some(command) = on_gpu("bench limits --json") else { return };
    let limits = command.json();
    let row = &limits["rows"][0];
    for key in
        ["copy_gb_s", "read_gb_s", "bf16_tflop_s", "bf16_library_tflop_s", "launch_us", "graph_launch_us"]
    {
        assert!(row[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {limits}");
    }
    assert_eq!((limits["device"].as_str(), row["name"].as_str()), (Some("cuda"), Some("Fake GPU")));
    // Without the library all else is measured, and what was looked for is told.
    let folder = stand_ins::libraries().expect("they were there before");
    let without = Copy::empty();
    for library in ["libcuda.so.1", "libnvrtc.so.13"] {
        symlink(folder.join(library), without.path().join(library)).expect("a link");
    }
    let limits = with(without.path(), "bench limits --json").json();
    let row = &limits["rows"][0];
    assert!(row["bf16_tflop_s"].as_f64().is_some_and(|rate| rate > 0.0), "{limits}");
    let missing = row["bf16_library_missing"].as_str().unwrap_or_default();
    assert!(row["bf16_library_tflop_s"].is_null() && missing.contains("libcublasLt.so.13"), "{limits}");
}
