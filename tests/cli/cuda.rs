//! Models on GPUs, under the real command line: NVIDIA's driver and compiler are libraries that stand for them, and kernels run on
//! the processor.

use serde_json::{Value, json};

use crate::checkpoints::{golden, golden_prompt};
use crate::child::{Anysplit, anysplit};
use crate::served::{Served, greedy};
use crate::stand_ins;

/// The command, where those libraries are found. `None` without a C++ compiler.
fn on_gpu(arguments: &str) -> Option<Anysplit> {
    let folder = stand_ins::libraries()?;
    let command = anysplit(arguments).env("LD_LIBRARY_PATH", stand_ins::search_path(folder));
    let sized = command.env("FAKE_FREE_BYTES", "2000000000").env("FAKE_TOTAL_BYTES", "2000000000");
    Some(sized.env("XDG_CACHE_HOME", folder.join("cache")))
}

/// The same, where it is known that there is a compiler.
fn there(arguments: &str) -> Anysplit {
    on_gpu(arguments).expect("it was there before")
}

/// A completion of a golden checkpoint in f32.
fn completion(command: Anysplit) -> Value {
    let prompt = golden_prompt("llama");
    let command = command.args("generate --max-tokens 9 --json --dtype float32 --prompt-ids").arg(prompt);
    command.model(golden("llama")).json()
}

#[test]
fn a_completion_on_a_gpu_has_the_processors_tokens() {
    let Some(gpu) = on_gpu("") else { return };
    let on_gpu = completion(gpu.env("ANYSPLIT_DEVICE", "cuda"));
    let on_cpu = completion(anysplit("").env("ANYSPLIT_DEVICE", "cpu"));
    assert_eq!(on_gpu["token_ids"], on_cpu["token_ids"]);
    // It is the best there is.
    let automatic = completion(there(""));
    assert_eq!(automatic["token_ids"], on_cpu["token_ids"]);
}

#[test]
fn stats_and_traces_of_a_gpu_have_the_processors_parts() {
    let Some(_) = on_gpu("") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = |command: Anysplit, name: &str| {
        let file = folder.path().join(name);
        let command = command.env("ANYSPLIT_DEVICE", name).env("ANYSPLIT_TRACE", &file);
        let stats = completion(command.env("ANYSPLIT_STATS", "1").env("ANYSPLIT_TENSOR_PARALLEL_SIZE", "2"));
        let parts = |kind: &str| -> Vec<(String, Value, Value)> {
            let parts = stats["stats"][kind].as_array().expect("parts").iter();
            assert!(
                parts.clone().all(|part| part["fraction"].as_f64().is_none_or(f64::is_finite)),
                "{stats}"
            );
            let part = |p: &Value| (p["op"].to_string(), p["bytes"].clone(), p["flops"].clone());
            parts.map(part).filter(|(name, ..)| name != "\"other\"").collect()
        };
        // Of rank 1, whose thread does nothing but steps: what it did, in its order.
        let trace: Value = serde_json::from_slice(&std::fs::read(file).expect("a trace")).expect("JSON");
        let told = trace["traceEvents"].as_array().expect("events").iter();
        let told =
            told.filter(|e| e["pid"] == 1 && e["tid"] == 0 && e["ph"] == "X" && e["name"] != "waiting");
        let told: Vec<String> = told.map(|event| event["name"].to_string()).collect();
        (parts("breakdown"), parts("prefill_breakdown"), told)
    };
    let (cpu, gpu) = (run(anysplit(""), "cpu"), run(there(""), "cuda"));
    assert!(cpu.0.len() > 5 && cpu.2.len() > 100, "{cpu:?}");
    assert_eq!(gpu.0, cpu.0);
    assert_eq!(gpu.1, cpu.1);
    assert_eq!(gpu.2, cpu.2);
}

#[test]
fn limits_of_a_gpu_are_told() {
    let Some(command) = on_gpu("bench limits --device cuda --json") else { return };
    let limits = command.json();
    let row = &limits["rows"][0];
    for key in ["copy_gb_s", "read_gb_s", "bf16_tflop_s", "launch_us", "graph_launch_us"] {
        assert!(row[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {limits}");
    }
    assert_eq!((limits["device"].as_str(), row["name"].as_str()), (Some("cuda"), Some("Fake GPU")));
}
