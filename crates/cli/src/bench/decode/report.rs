//! Rows: medians, spreads, and fractions of the limits.

use std::io::Write;

use comfy_table::{Table, presets};
use cpu::limits::median;
use model::Quantization;
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
        "threads_per_rank": engine.threads_per_rank(),
        "dtype": engine.dtype().name(),
        "quantization": engine.kept_as().quantization.map(Quantization::name),
        "kv_cache_dtype": engine.kv_cache_dtype().name(),
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
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "tp",
        "pp",
        "threads",
        "weights",
        "batch",
        "prompt",
        "gen",
        "prefill tok/s",
        "of FMA peak",
        "decode tok/s",
        "of the limit",
        "read GB/s",
        "GFLOP/s",
        "peak MiB",
    ]);
    for row in rows {
        let number = |key: &str, digits: usize| format!("{:.digits$}", row[key].as_f64().unwrap_or(f64::NAN));
        let percent = |key: &str| format!("{:.0} %", 100.0 * row[key].as_f64().unwrap_or(f64::NAN));
        let spread = |key: &str, digits: usize| {
            let end = |i: usize| row["spread"][key][i].as_f64().unwrap_or(f64::NAN);
            format!("{} ({:.digits$}–{:.digits$})", number(key, digits), end(0), end(1))
        };
        let whole = |key: &str| row[key].to_string();
        table.add_row([
            whole("tp"),
            whole("pp"),
            whole("threads_per_rank"),
            row["quantization"].as_str().or(row["dtype"].as_str()).unwrap_or_default().to_owned(),
            whole("batch"),
            whole("prompt"),
            whole("gen"),
            spread("prefill_tokens_per_s", 1),
            percent("prefill_flops_fraction"),
            spread("decode_tokens_per_s", 2),
            percent("decode_roofline_fraction"),
            number("read_gb_s", 1),
            number("fma_gflop_s", 0),
            (row["peak_rss_bytes"].as_u64().unwrap_or(0) >> 20).to_string(),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}
