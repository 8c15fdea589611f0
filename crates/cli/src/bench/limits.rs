//! `anysplit bench limits`: what this machine can do at best.

use std::io::Write;

use clap::Args;
use comfy_table::{Table, presets};
use cpu::limits;
use engine::cpus;
use serde_json::json;

use crate::error::CliError;

/// Memory bandwidth, arithmetic and core-to-core latency of this machine.
#[derive(Args)]
#[command(after_help = "Example:\n  anysplit bench limits --json")]
pub struct LimitsArgs {
    /// Prints one JSON value
    #[arg(long)]
    json: bool,
}

pub fn run(args: &LimitsArgs) -> Result<(), CliError> {
    let cores = cpus::available().to_vec();
    let memory = limits::Memory::new();
    let mut threads = Vec::new();
    let mut count = 1;
    while count <= cores.len() {
        threads.push(count);
        count = if count * 2 > cores.len() && count < cores.len() { cores.len() } else { count * 2 };
    }
    let rows: Vec<_> = threads
        .iter()
        .map(|&n| (n, memory.read_bandwidth(&cores[..n]), limits::fma_rate(&cores[..n])))
        .collect();
    let pair = (cores.len() > 1).then(|| limits::core_to_core(cores[0], cores[1]));
    let mut out = std::io::stdout().lock();
    if args.json {
        let row = |(n, bandwidth, flops): &(usize, f64, f64)| {
            json!({ "threads": n, "read_gb_s": bandwidth, "fma_gflop_s": flops })
        };
        let pair = pair.map(|p| json!({ "latency_ns": p.latency_ns, "rate_gb_s": p.rate_gb_s }));
        let rows: Vec<_> = rows.iter().map(row).collect();
        writeln!(out, "{}", json!({ "isa": cpu::Isa::detect().name(), "rows": rows, "core_to_core": pair }))?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["threads", "read GB/s", "f32 GFLOP/s"]);
    for (n, bandwidth, flops) in rows {
        table.add_row([n.to_string(), format!("{bandwidth:.1}"), format!("{flops:.0}")]);
    }
    writeln!(out, "{table}")?;
    if let Some(pair) = pair {
        writeln!(out, "core to core: {:.0} ns, {:.1} GB/s", pair.latency_ns, pair.rate_gb_s)?;
    }
    Ok(())
}
