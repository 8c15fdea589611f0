//! How fast it is, beside what the GPU does at best and beside transformers.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use super::checkpoint;
use super::command::Place;
use super::parts::{note, noted};
use super::table::Row;

/// What the shape of the large model is called in the folder.
pub const SHAPE: &str = "shapes/llama-3.1-8b";
/// The shape of the checkpoint that is loaded from files: some GB.
pub const TO_LOAD: &str = "shapes/to-load.json";

/// What the GPU's tensor cores give at best, as `limits` found it.
const MATRIX_RATE: &str = "bf16_library_tflop_s";
/// The shape of very many layers.
pub const DEEP: &str = "shapes/deep";

/// The figure of `decode` that others are compared with.
const DECODED: &str = "decode_tokens_per_s";

/// The row of what its matrix products take at best.
const BY_LIBRARY: &str = "bf16 by cuBLASLt";

/// The shape of Llama-3.1-8B, with so many layers in place of 32.
pub fn shape(layers: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192 },
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "torch_dtype": "bfloat16",
    })
}

/// A shape of very many layers that are tiny: a step of it is some thousand launches.
pub fn deep() -> Value {
    let mut deep = shape(100);
    let small = [
        ("hidden_size", 64),
        ("intermediate_size", 128),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 16),
        ("vocab_size", 512),
        ("bos_token_id", 1),
        ("eos_token_id", 2),
    ];
    small.into_iter().for_each(|(key, value)| deep[key] = value.into());
    deep
}

/// What the GPU does at best.
pub fn limits(place: &Place) -> Result<Vec<Row>, String> {
    // That of a run before is not this one's.
    note(place, MATRIX_RATE, &Value::Null);
    let told = place.json(&mut place.anysplit("bench limits --device cuda --json"))?;
    let row = &told["rows"][0];
    let figure = |name: &str, key: &str, unit| {
        note(place, key, &row[key]);
        Row::figure(name, &row[key], 1.0, unit)
    };
    // Without NVIDIA's library nobody knows.
    let by_library = match row["bf16_library_missing"].as_str() {
        None => figure(BY_LIBRARY, MATRIX_RATE, "TFLOP/s"),
        Some(why) => Row::skipped(BY_LIBRARY, why),
    };
    Ok(vec![
        by_library,
        figure("memory, copied", "copy_gb_s", "GB/s"),
        figure("memory, read", "read_gb_s", "GB/s"),
        figure("bf16 by mma.sync", "bf16_tflop_s", "TFLOP/s"),
        figure("launch", "launch_us", "µs"),
        figure("launch in a graph", "graph_launch_us", "µs"),
    ])
}

/// Each kernel's share of what limits it.
pub fn kernels(place: &Place) -> Result<Vec<Row>, String> {
    let told = place.json(place.command("cuda_bench").arg("--json"))?;
    let rows =
        told["rows"].as_array().filter(|rows| !rows.is_empty()).ok_or("cuda_bench told of no kernels")?;
    let row = |row: &Value| {
        let name = row["name"].as_str().unwrap_or("?").to_owned();
        match row["of_copy"].is_number() {
            true => Row::figure(name, &row["of_copy"], 100.0, "% of copying"),
            false => Row::figure(name, &row["of_bf16"], 100.0, "% of mma.sync"),
        }
    };
    // Those of `--reduction fast` are of another kind.
    let gemvs = rows.iter().filter(|row| row["kind"] == "gemv").filter_map(|row| row["of_copy"].as_f64());
    let slowest = gemvs.reduce(f64::min).map_or(Value::Null, Value::from);
    let slowest = Row::figure("slowest gemv", &slowest, 100.0, "% of copying");
    Ok([slowest].into_iter().chain(rows.iter().map(row)).collect())
}

/// `tokens` are those of a step: room for all prompts, so that none waits for the others.
fn bench(place: &Place, tokens: usize, words: &str) -> Result<Vec<Value>, String> {
    // The warm-up runs piece by piece, the first run is captured as a graph as well: two are left that are neither, and the median is one.
    let shape = format!(
        "--model {SHAPE} --load-format random --dtype bfloat16 --device cuda --repeats 3 --max-num-batched-tokens {tokens} --json"
    );
    let mut told = place.json(&mut place.anysplit(&format!("bench decode {shape} {words}")))?;
    match told["rows"].take() {
        Value::Array(rows) => Ok(rows),
        other => Err(format!("bench decode told {other}")),
    }
}

fn row_of(rows: &[Value], batch: u64, prompt: u64) -> Result<&Value, String> {
    let is_it = |row: &&Value| row["batch"] == batch && row["prompt"] == prompt;
    rows.iter()
        .find(is_it)
        .ok_or_else(|| format!("bench decode has no row of batch {batch}, prompt {prompt}"))
}

/// The shape of Llama-3.1-8B with random weights, in canonical order.
pub fn decode(place: &Place) -> Result<Vec<Row>, String> {
    // What another run noted is no figure of this one.
    note(place, DECODED, &Value::Null);
    // One load for both.
    let words = "--reduction canonical --prompt-len 128 --gen-len 64 --batch-size 1,64 --max-model-len 8192";
    let rows = bench(place, 64 * 128, words)?;
    let (one, many) = (row_of(&rows, 1, 128)?, row_of(&rows, 64, 128)?);
    note(place, DECODED, &one["decode_tokens_per_s"]);
    let speed = |row: &Value| row["decode_tokens_per_s"].as_f64();
    let ratio = speed(one).zip(speed(many)).map_or(Value::Null, |(one, many)| (many / one).into());
    Ok(vec![
        Row::figure("decode, batch 1", &one["decode_tokens_per_s"], 1.0, "tokens/s"),
        Row::figure("decode, batch 1, of copying", &one["decode_bandwidth_fraction"], 100.0, "%"),
        Row::figure("decode, batch 64", &many["decode_tokens_per_s"], 1.0, "tokens/s"),
        Row::figure("batch 64 beside batch 1", &ratio, 1.0, "times"),
        Row::figure("load of 16 GB at random", &one["load_s"], 1.0, "s"),
    ])
}

/// A long prompt, in canonical order or not, and how fast it goes on behind it.
fn behind_a_long_prompt(place: &Place, reduction: &str, name: &str) -> Result<Vec<Row>, String> {
    let words =
        format!("--reduction {reduction} --prompt-len 4096 --gen-len 64 --batch-size 1 --max-model-len 8192");
    let rows = bench(place, 4096, &words)?;
    let long = row_of(&rows, 1, 4096)?;
    let figure =
        |what: &str, key: &str, scale, unit| Row::figure(format!("{name}{what}"), &long[key], scale, unit);
    Ok(vec![
        of_matrix_rate(place, format!("{name}prefill of 4096, of cuBLASLt"), long),
        figure("prefill of 4096, of mma.sync", "prefill_flops_fraction", 100.0, "%"),
        figure("prefill of 4096", "prefill_tokens_per_s", 1.0, "tokens/s"),
        figure("decode behind 4096", "decode_tokens_per_s", 1.0, "tokens/s"),
        figure("decode behind 4096, of copying", "decode_bandwidth_fraction", 100.0, "%"),
    ])
}

/// A prompt's operations per second, of those that the GPU's tensor cores give at best.
fn of_matrix_rate(place: &Place, name: String, row: &Value) -> Row {
    let Some(best) = noted(place, MATRIX_RATE) else {
        let why = "it can't be judged: nobody has measured what NVIDIA's library (cuBLASLt) does here; where it is, run `limits` too";
        return Row::skipped(name, why);
    };
    // The program tells a share and what it is of.
    let share = row["prefill_flops_fraction"].as_f64().zip(row["fma_gflop_s"].as_f64());
    let share = share.map_or(Value::Null, |(of, rate)| (of * rate / 1000.0 / best).into());
    Row::figure(name, &share, 100.0, "%")
}

/// A long prompt, in canonical order.
pub fn prefill(place: &Place) -> Result<Vec<Row>, String> {
    behind_a_long_prompt(place, "canonical", "")
}

/// The same without the promise of equal bits.
pub fn fast(place: &Place) -> Result<Vec<Row>, String> {
    behind_a_long_prompt(place, "fast", "fast: ")
}

/// All-reduces of 16 KB between ranks on one card, the other operations once, and whether their results are right.
pub fn comm(place: &Place) -> Result<Vec<Row>, String> {
    let told =
        |words: &str| place.json(&mut place.anysplit(&format!("bench comm --backend peer {words} --json")));
    let right = |name: String, row: &Value| match row["wrong"].as_u64() {
        Some(0) => Row::figure(name, &row["time_us_p50"], 1.0, "µs"),
        _ => Row::failed(name, format!("{} wrong results", row["wrong"])),
    };
    let of = |(ranks, shots): (u32, &str)| {
        let name = format!("all-reduce of 16 KB, {ranks} ranks, {shots} shot");
        let words = format!("--op all_reduce --min-bytes 16K --max-bytes 16K --tp {ranks} --shots {shots}");
        match told(&words) {
            Ok(told) => right(name, &told["rows"][0]),
            Err(missed) => missed.row(name),
        }
    };
    let mut rows: Vec<Row> =
        [2, 4, 8].into_iter().flat_map(|ranks| ["one", "two"].map(|shots| (ranks, shots))).map(of).collect();
    let others = format!("--op {OTHERS} --min-bytes 1M --max-bytes 1M --tp 3");
    match told(&others) {
        Ok(told) => {
            for op in OTHERS.split(',') {
                let row = told["rows"].as_array().into_iter().flatten().find(|row| row["op"] == op);
                rows.push(right(format!("{op} of 1 MB, 3 ranks"), row.unwrap_or(&Value::Null)));
            }
        }
        Err(missed) => rows.push(missed.row(OTHERS)),
    }
    Ok(rows)
}

/// What ranks do with memory of GPUs besides sums for all.
const OTHERS: &str = "all_gather,reduce_scatter,all_to_all,send_recv";

/// From the command to the first token, with kernels compiled and with kernels found.
pub fn start_up(place: &Place) -> Result<Vec<Row>, String> {
    let cache = place.folder.join("logs").join("cache");
    fs::remove_dir_all(&cache).ok();
    let once = || -> Result<f64, String> {
        let began = Instant::now();
        let mut command = place
            .anysplit("generate --device cuda --dtype bfloat16 --max-tokens 1 --json --prompt-ids 5,6,7");
        place.json(command.env("XDG_CACHE_HOME", &cache))?;
        Ok(began.elapsed().as_secs_f64())
    };
    let [cold, warm] = [once()?, once()?];
    Ok(vec![
        Row::figure("start, kernels compiled", &cold.into(), 1.0, "s"),
        Row::figure("start, kernels cached", &warm.into(), 1.0, "s"),
    ])
}

/// How fast weights get from files that the system has in memory to the GPU: what a large model takes longer to load than a tiny one.
pub fn load(place: &Place) -> Result<Vec<Row>, String> {
    let folder = place.folder.join("shapes").join("loaded");
    let shape = place.folder.join(TO_LOAD);
    let text = fs::read_to_string(&shape).map_err(|error| format!("{}: {error}", shape.display()))?;
    let shape = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", shape.display()))?;
    let written = checkpoint::write(&folder, &shape, &|| place.is_over())?;
    let took = |model: &str| -> Result<f64, String> {
        let generate = "generate --device cuda --dtype bfloat16 --max-tokens 1 --max-model-len 64 --json --prompt-ids 5,6,7";
        let told = place.json(&mut place.anysplit(&format!("{generate} {model}")))?;
        told["stats"]["load_s"].as_f64().ok_or_else(|| "generate told no load_s".to_owned())
    };
    let large = "--model shapes/loaded";
    // Kernels are compiled before anything is measured, and the file is read once.
    let (_, _) = (took("")?, took(large)?);
    let (small, large) = (took("")?, took(large)?);
    let gigabytes = written.bytes as f64 / 1e9;
    Ok(vec![
        Row::figure("weights from page cache", &(gigabytes / (large - small).max(1e-3)).into(), 1.0, "GB/s"),
        Row::figure("load of a tiny model", &small.into(), 1.0, "s"),
        Row::figure(format!("load of {gigabytes:.1} GB"), &large.into(), 1.0, "s"),
    ])
}

/// transformers on the same shape, if it is there: with a static cache and compiled, or as it comes.
pub fn transformers(place: &Place, way: &str) -> Result<Vec<Row>, String> {
    let name = format!("beside transformers, {way}");
    if place.run(place.command("python3").args(["-c", "import torch, transformers"])).is_err() {
        let why = "python3 has no torch and transformers: `python3 -m pip install torch transformers`";
        return Ok(vec![Row::skipped(name, why)]);
    }
    let ours = noted(place, DECODED).ok_or(
        "there is no figure of `decode` to compare with: run it with `--only decode,eager,compiled`",
    )?;
    let mut command = place.command("python3");
    let told = place.json(command.args(["transformers_decode.py", "--shape", SHAPE, "--way", way]))?;
    let theirs = told["decode_tokens_per_s"].as_f64().ok_or("it told no tokens/s")?;
    Ok(vec![
        Row::figure(name, &(ours / theirs).into(), 1.0, "times"),
        Row::figure(format!("transformers, {way}"), &theirs.into(), 1.0, "tokens/s"),
    ])
}
