//! `anysplit bench limits`: what this machine can do at best.

use std::io::Write;

use clap::Args;
use comfy_table::{Table, presets};
use cpu::limits;
use engine::{DeviceKind, cpus};
use serde_json::json;

use super::gpu_limits;
use crate::args::{DeviceArg, yes_or_no};
use crate::error::CliError;
use crate::lists::Element;

/// Memory bandwidth, arithmetic and latencies of this machine.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  anysplit bench limits\n  anysplit bench limits --threads 2 --json\n  anysplit bench limits --device cuda"
)]
pub struct LimitsArgs {
    /// What is measured
    #[arg(long, env = "ANYSPLIT_DEVICE", default_value = "auto", value_name = "DEVICE")]
    device: DeviceArg,
    /// Threads that work at a time, of the processor; default: 1, 2, 4, … and one per core
    #[arg(long, env = "ANYSPLIT_THREADS", value_delimiter = ',', value_name = "LIST", value_parser = Element(clap::value_parser!(u16).range(1..=1024)))]
    threads: Vec<u16>,
    /// Prints one JSON value
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
}

/// Bytes of the buffer that is read: far more than any cache.
pub const BUFFER_BYTES: usize = 1 << 30;
const REPEATS: usize = 7;

pub fn run(args: &LimitsArgs) -> Result<(), CliError> {
    // Only the processor has threads.
    let device = if args.threads.is_empty() { args.device } else { args.device.or(DeviceArg::Cpu) };
    if device.get()? != DeviceKind::Cpu
        && let Ok(found) = engine::usable_gpus()
    {
        return gpu_limits::run(&found.gpus, args.json);
    }
    let cores = cpus::available();
    let counts = match args.threads.is_empty() {
        true => thread_counts(cores.len()),
        false => args.threads.iter().map(|&n| n.into()).collect(),
    };
    let rows: Vec<_> = counts
        .into_iter()
        .map(|threads| {
            let config = config(threads);
            (threads, limits::read_bandwidth(&config, BUFFER_BYTES), limits::fma_rate(&config))
        })
        .collect();
    let pair = cores.get(1).and_then(|&other| limits::core_to_core(cores[0], other, REPEATS));
    let mut out = std::io::stdout().lock();
    if args.json {
        let row = |(n, bandwidth, flops): &(usize, f64, f64)| json!({ "threads": n, "read_gb_s": bandwidth, "fma_gflop_s": flops });
        let pair = pair.map(|p| json!({ "latency_ns": p.latency_ns, "rate_gb_s": p.rate_gb_per_s }));
        let rows: Vec<_> = rows.iter().map(row).collect();
        writeln!(
            out,
            "{}",
            json!({ "isa": cpu::Isa::detect().to_string(), "rows": rows, "core_to_core": pair })
        )?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["threads", "read GB/s", "f32 GFLOP/s"]);
    for (n, bandwidth, flops) in rows {
        table.add_row([n.to_string(), format!("{bandwidth:.1}"), format!("{flops:.0}")]);
    }
    writeln!(out, "{table}")?;
    if let Some(pair) = pair {
        writeln!(out, "core to core: {:.0} ns, {:.1} GB/s", pair.latency_ns, pair.rate_gb_per_s)?;
    }
    Ok(())
}

/// So many threads, each on a core of its own if there are enough: on those that a rank of so many threads would get.
pub fn config(threads: usize) -> limits::LimitsConfig {
    let cores = cpus::of_rank(0, 1, threads, 1);
    limits::LimitsConfig { threads, cores, repeats: REPEATS }
}

/// 1, 2, 4, … and all.
fn thread_counts(cores: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n < cores);
    powers.chain([cores]).collect()
}
