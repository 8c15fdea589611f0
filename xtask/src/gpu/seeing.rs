//! Whether what is told of a GPU's time (`--stats`, `--trace`) is of its time.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::command::Place;
use super::table::Row;

/// Parts that every step has on the GPU.
const PARTS: [&str; 5] = ["qkv", "attention", "output", "ffn", "head"];
/// Parts cannot take longer by the GPU's clock than by the host's what they are of; a median step may, than the mean.
const MOST: f64 = 1.1;
const RANKS: u64 = 2;

/// A run that is watched: parts of its steps, and what each rank did.
pub fn seeing(place: &Place) -> Result<Vec<Row>, String> {
    let trace = place.folder.join("logs").join("trace.json");
    let words = "generate --json --device cuda --dtype bfloat16 --tp 2 --ignore-eos --max-tokens 32 --stats";
    let ids = (5..105).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    let told = place.json(place.anysplit(words).args(["--prompt-ids", &ids]).arg("--trace").arg(&trace))?;
    let stats = &told["stats"];
    let of_step = stats["decode_tokens_per_s"].as_f64().map(|rate| 1000.0 / rate);
    let by_host =
        [("prefill", stats["ttft_ms"].as_f64(), "prefill_breakdown"), ("decode", of_step, "breakdown")];
    let of_steps = by_host.map(|(kind, step, parts)| {
        let name = format!("seeing: {kind}, on the GPU");
        match share(step, &stats[parts]) {
            Ok(share) => Row { figure: Some((100.0 * share, "% of a step")), ..Row::ok(name) },
            Err(why) => Row::failed(name, why),
        }
    });
    let text = fs::read_to_string(&trace).map_err(|error| format!("{}: {error}", trace.display()))?;
    let trace = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", trace.display()))?;
    let of_trace = match slices(&trace) {
        Ok(count) => Row { figure: Some((count as f64, "slices")), ..Row::ok("seeing: trace") },
        Err(why) => Row::failed("seeing: trace", why),
    };
    Ok(of_steps.into_iter().chain([of_trace]).collect())
}

/// How much of a step, of so many milliseconds by the host's clock, its parts on the GPU are.
fn share(step: Option<f64>, parts: &Value) -> Result<f64, String> {
    let step = step.filter(|&ms| ms > 0.0).ok_or_else(|| format!("a step of {step:?} ms"))?;
    let time = |op: &str| {
        let part = parts.as_array().into_iter().flatten().find(|part| part["op"] == op);
        part.and_then(|part| part["ms"].as_f64()).filter(|&ms| ms > 0.0)
    };
    let mut sum = 0.0;
    for op in PARTS {
        sum += time(op).ok_or_else(|| format!("{op} took no time"))?;
    }
    match sum / step {
        share if share <= MOST => Ok(share),
        _ => Err(format!("parts take {sum} ms, the step that they are of {step}")),
    }
}

/// How many slices of time a trace has, of every rank's steps.
fn slices(trace: &Value) -> Result<usize, String> {
    let events = || trace["traceEvents"].as_array().into_iter().flatten().filter(|event| event["ph"] == "X");
    if let Some(odd) = events().find(|event| event["dur"].as_f64().is_none_or(|dur| dur < 0.0)) {
        return Err(format!("a slice that takes {}: {}", odd["dur"], odd["name"]));
    }
    for rank in 0..RANKS {
        let of_rank = events().filter(|event| event["pid"] == rank);
        let names: BTreeSet<&str> = of_rank.filter_map(|event| event["name"].as_str()).collect();
        if let Some(lacks) = PARTS.iter().find(|part| !names.contains(*part)) {
            return Err(format!("rank {rank} has no {lacks}"));
        }
    }
    Ok(events().count())
}
