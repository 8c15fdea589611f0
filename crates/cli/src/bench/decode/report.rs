//! Rows: medians, spreads, and fractions of the limits.

use std::io::Write;

use comfy_table::{Table, presets};
use cpu::{Isa, limits::median};
use serde_json::{Value, json};

use super::candidate::{Candidate, Measured, Run};
use super::sweep::Point;
use super::work::Work;
use crate::error::CliError;

/// What was measured of a candidate at a point.
pub fn row(candidate: &Candidate, point: &Point, measured: &Measured) -> Result<Value, CliError> {
    let (engine, runs) = (&candidate.engine, &measured.runs);
    let (mesh, work) = (engine.plan().mesh, Work::of(engine, point)?);
    let rate = |(tokens, seconds): (usize, f64)| tokens as f64 / seconds;
    // Rounds of a token for each sequence, per second.
    let rounds = |r: &Run| rate(r.timing.decode) / point.batch as f64;
    let prefill = |r: &Run| rate(r.timing.prefill);
    let prefill_flops = |r: &Run| work.prefill_flops / r.timing.prefill.1 / (r.limits.flops * 1e9);
    let decode = |r: &Run| rate(r.timing.decode);
    let of_bandwidth = |r: &Run| rounds(r) * work.decode_bytes / (r.limits.bandwidth * 1e9);
    let of_flops = |r: &Run| rounds(r) * work.decode_flops / (r.limits.flops * 1e9);
    // The limit is the lesser of both, so the larger fraction is of it.
    let roofline = |r: &Run| of_bandwidth(r).max(of_flops(r));
    let middle = |f: &dyn Fn(&Run) -> f64| median(runs.iter().map(f).collect());
    let spread = |f: &dyn Fn(&Run) -> f64| {
        let values = || runs.iter().map(f);
        json!([values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)])
    };
    Ok(json!({
        "model": candidate.name,
        "tp": mesh.tp,
        "pp": mesh.pp,
        "dp": mesh.dp,
        "ep": mesh.ep,
        "sp": engine.plan().layout.sequence_parallel,
        "dcp": engine.plan().context().ranks,
        "threads_per_rank": engine.threads_per_rank(),
        "dtype": engine.dtype().name(),
        "quantization": engine.kept_as().layers(engine.config()),
        "kv_cache_dtype": engine.kv_cache_dtype().name(),
        "isa": candidate.gpus.is_none().then(|| candidate.isa.to_string()),
        "device": if candidate.gpus.is_some() { "cuda" } else { "cpu" },
        "batch": point.batch,
        "prompt": point.prompt,
        "gen": point.generate,
        "prefill_tokens_per_s": middle(&prefill),
        "decode_tokens_per_s": middle(&decode),
        "decode_roofline_fraction": middle(&roofline),
        "decode_bandwidth_fraction": middle(&of_bandwidth),
        "decode_flops_fraction": middle(&of_flops),
        "prefill_flops_fraction": middle(&prefill_flops),
        "spread": {
            "prefill_tokens_per_s": spread(&prefill),
            "decode_tokens_per_s": spread(&decode),
            "decode_roofline_fraction": spread(&roofline),
            "prefill_flops_fraction": spread(&prefill_flops),
        },
        // Of GPUs those of copying and of products of bfloat16.
        "read_gb_s": middle(&|r| r.limits.bandwidth),
        "fma_gflop_s": middle(&|r| r.limits.flops),
        "repeats": runs.len(),
        "load_s": engine.load_time().as_secs_f64(),
        "peak_rss_bytes": measured.peak_rss_bytes,
    }))
}

/// Prints rows as JSON or as a table.
pub fn print(rows: &[Value], json: bool) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", json!({ "rows": rows }))?;
        return Ok(());
    }
    writeln!(out, "{}", table(rows))?;
    Ok(())
}

/// A column's head, and what it has of a row.
type Column = (&'static str, fn(&Value) -> String);

fn table(rows: &[Value]) -> Table {
    let isa = Isa::detect().to_string();
    let differs = |differs: &dyn Fn(&Value) -> bool| rows.iter().any(differs);
    // All are of one device.
    let is_on_gpus = differs(&|row| row["device"] == "cuda");
    let [flops, bandwidth, rate, memory] = match is_on_gpus {
        true => ["of bf16 rate", "copy GB/s", "bf16 GFLOP/s", "host peak MiB"],
        false => ["of FMA peak", "read GB/s", "GFLOP/s", "peak MiB"],
    };
    let is_split = |key: &str| differs(&|row| row[key].as_u64() > Some(1));
    // What is as usual in all rows says nothing.
    let columns: Vec<(bool, Column)> = vec![
        (true, ("tp", |row| row["tp"].to_string())),
        (is_split("pp"), ("pp", |row| row["pp"].to_string())),
        (is_split("dp"), ("dp", |row| row["dp"].to_string())),
        (is_split("ep"), ("ep", |row| row["ep"].to_string())),
        (differs(&|row| row["sp"] == true), ("sp", |row| row["sp"].to_string())),
        (is_split("dcp"), ("dcp", |row| row["dcp"].to_string())),
        (true, ("threads", |row| row["threads_per_rank"].to_string())),
        (!is_on_gpus && differs(&|row| row["isa"] != *isa), ("ISA", |row| text(&row["isa"]))),
        (
            true,
            ("weights", |row| {
                row["quantization"].as_str().map_or_else(|| text(&row["dtype"]), str::to_owned)
            }),
        ),
        (
            differs(&|row| row["kv_cache_dtype"] != row["dtype"]),
            ("KV cache", |row| text(&row["kv_cache_dtype"])),
        ),
        (true, ("batch", |row| row["batch"].to_string())),
        (true, ("prompt", |row| row["prompt"].to_string())),
        (true, ("gen", |row| row["gen"].to_string())),
        (true, ("prefill tok/s", |row| with_spread(row, "prefill_tokens_per_s", 1))),
        (true, (flops, |row| percent(row, "prefill_flops_fraction"))),
        (true, ("decode tok/s", |row| with_spread(row, "decode_tokens_per_s", 2))),
        (true, ("of the limit", |row| percent(row, "decode_roofline_fraction"))),
        (true, (bandwidth, |row| number(row, "read_gb_s", 1))),
        (true, (rate, |row| number(row, "fma_gflop_s", 0))),
        (true, (memory, |row| (row["peak_rss_bytes"].as_u64().unwrap_or(0) >> 20).to_string())),
    ];
    let columns: Vec<Column> =
        columns.into_iter().filter_map(|(shown, column)| shown.then_some(column)).collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(columns.iter().map(|(head, _)| *head));
    for row in rows {
        table.add_row(columns.iter().map(|(_, cell)| cell(row)));
    }
    table
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(row: &Value, key: &str, digits: usize) -> String {
    format!("{:.digits$}", row[key].as_f64().unwrap_or(f64::NAN))
}

fn percent(row: &Value, key: &str) -> String {
    format!("{:.0} %", 100.0 * row[key].as_f64().unwrap_or(f64::NAN))
}

/// The median, and of several runs the least and the most.
fn with_spread(row: &Value, key: &str, digits: usize) -> String {
    let median = number(row, key, digits);
    if row["repeats"] == 1 {
        return median;
    }
    let end = |i: usize| row["spread"][key][i].as_f64().unwrap_or(f64::NAN);
    format!("{median} ({:.digits$}–{:.digits$})", end(0), end(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(more: Value) -> Value {
        let mut row = json!({
            "tp": 1, "pp": 1, "dp": 1, "ep": 1, "sp": false, "dcp": 1, "threads_per_rank": 2,
            "isa": Isa::detect().to_string(), "dtype": "bfloat16", "quantization": null, "kv_cache_dtype": "bfloat16",
            "batch": 1, "prompt": 8, "gen": 4, "prefill_tokens_per_s": 6705.78, "decode_tokens_per_s": 50.0,
            "spread": { "prefill_tokens_per_s": [6700.0, 6710.0], "decode_tokens_per_s": [49.0, 51.0] },
            "repeats": 1,
        });
        more.as_object().into_iter().flatten().for_each(|(key, value)| row[key] = value.clone());
        row
    }

    fn heads(rows: &[Value]) -> Vec<String> {
        table(rows).header().into_iter().flat_map(|row| row.cell_iter()).map(|cell| cell.content()).collect()
    }

    #[test]
    fn a_column_is_there_where_a_row_is_not_as_usual() {
        let usual = heads(&[row(json!({ "tp": 2 }))]);
        for head in ["pp", "dp", "ep", "sp", "dcp", "ISA", "KV cache"] {
            assert!(!usual.contains(&head.to_owned()), "{head}");
        }
        for (head, other) in [
            ("pp", json!({ "pp": 2 })),
            ("dp", json!({ "dp": 2 })),
            ("ep", json!({ "ep": 2 })),
            ("sp", json!({ "sp": true })),
            ("dcp", json!({ "dcp": 2 })),
            ("ISA", json!({ "isa": "another" })),
            ("KV cache", json!({ "kv_cache_dtype": "fp8" })),
        ] {
            let heads = heads(&[row(json!({})), row(other)]);
            assert_eq!(heads.len(), usual.len() + 1, "{head}");
            assert!(heads.contains(&head.to_owned()), "{head}");
        }
    }

    #[test]
    fn gpus_have_limits_of_their_own() {
        let of_gpus = heads(&[row(json!({ "device": "cuda", "isa": null }))]);
        for head in ["of bf16 rate", "copy GB/s", "bf16 GFLOP/s", "host peak MiB"] {
            assert!(of_gpus.contains(&head.to_owned()), "{of_gpus:?}");
        }
        let of_cpu = heads(&[row(json!({ "device": "cpu" }))]);
        assert!(of_gpus.len() == of_cpu.len() && of_cpu.contains(&"of FMA peak".to_owned()), "{of_cpu:?}");
    }

    #[test]
    fn one_run_has_no_spread() {
        assert_eq!(with_spread(&row(json!({})), "prefill_tokens_per_s", 1), "6705.8");
        let of_two = with_spread(&row(json!({ "repeats": 2 })), "prefill_tokens_per_s", 1);
        assert_eq!(of_two, "6705.8 (6700.0–6710.0)");
    }
}
