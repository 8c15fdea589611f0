//! `anysplit bench limits --device cuda`: what each GPU can do at best.

use std::io::Write;

use comfy_table::{Table, presets};
use engine::{GpuInfo, GpuLimits, gpu_library_rate, gpu_limits};
use serde_json::{Value, json};

use crate::error::CliError;

/// Measures one after the other.
pub fn run(gpus: &[GpuInfo], as_json: bool) -> Result<(), CliError> {
    let measured = |gpu: &GpuInfo| Ok(row(gpu, &gpu_limits(gpu.ordinal)?, &gpu_library_rate(gpu.ordinal)));
    let rows = gpus.iter().map(measured).collect::<Result<Vec<Value>, CliError>>()?;
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", json!({ "device": "cuda", "rows": rows }))?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "GPU",
        "copy GB/s",
        "read GB/s",
        "bf16 mma.sync TFLOP/s",
        "bf16 cuBLASLt TFLOP/s",
        "launch µs",
        "in a graph µs",
    ]);
    for row in &rows {
        let number = |key: &str, digits| row[key].as_f64().map_or("-".into(), |x| format!("{x:.digits$}"));
        table.add_row([
            format!("{}: {}", row["gpu"], row["name"].as_str().unwrap_or_default()),
            number("copy_gb_s", 0),
            number("read_gb_s", 0),
            number("bf16_tflop_s", 1),
            number("bf16_library_tflop_s", 1),
            number("launch_us", 2),
            number("graph_launch_us", 2),
        ]);
    }
    writeln!(out, "{table}")?;
    for row in &rows {
        if let Some(why) = row["bf16_library_missing"].as_str() {
            writeln!(out, "{}: without cuBLASLt: {why}", row["gpu"])?;
        }
    }
    Ok(())
}

fn row(gpu: &GpuInfo, limits: &GpuLimits, library: &Result<f64, String>) -> Value {
    json!({
        "gpu": gpu.ordinal,
        "name": gpu.name,
        "copy_gb_s": limits.copy_bytes_per_s / 1e9,
        "read_gb_s": limits.read_bytes_per_s / 1e9,
        "bf16_tflop_s": limits.bf16_flops_per_s / 1e12,
        "bf16_library_tflop_s": library.as_ref().ok().map(|rate| rate / 1e12),
        "bf16_library_missing": library.as_ref().err(),
        "launch_us": limits.launch.as_secs_f64() * 1e6,
        "graph_launch_us": limits.graph_launch.as_secs_f64() * 1e6,
    })
}
