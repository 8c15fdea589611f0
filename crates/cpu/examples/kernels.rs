//! Measures the linear layer against the limits of the machine, both in the same run.
//!
//! `cargo run --release -p cpu --example kernels [max threads] [rows]`

use std::time::Instant;

use cpu::limits::{LimitsConfig, ReadBandwidth, core_to_core, fma_rate, median};
use cpu::{CpuConfig, CpuDevice};
use tensor::{DType, Device, MatrixSource, Program};

const N: usize = 2048;
const K: usize = 8192;
/// Enough matrices to exceed any cache.
const LAYERS: usize = 24;

struct Numbers;
impl MatrixSource for Numbers {
    fn rows(&self) -> usize {
        N
    }
    fn cols(&self) -> usize {
        K
    }
    fn read(&self, row: usize, cols: std::ops::Range<usize>, out: &mut [f32]) {
        for (col, out) in cols.zip(out) {
            *out = ((row * 31 + col * 17) % 101) as f32 / 50.0 - 1.0;
        }
    }
}

/// A full binary tree over leaves of `leaf` inputs.
fn tree(leaf: usize) -> Program {
    let items = K / leaf;
    let inputs = (0..items).map(|i| i * leaf..(i + 1) * leaf).collect();
    Program { inputs, merges: (1..=items as u32).map(u32::trailing_zeros).collect(), nodes: vec![0] }
}

/// Kernel and limit, measured in turns so that a disturbance hits both: medians, and the best of each.
fn beside(what: &str, unit: &str, mut kernel: impl FnMut() -> f64, mut limit: impl FnMut() -> f64) {
    let (mut rates, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        limits.push(limit());
        rates.push(kernel());
    }
    let best = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let (best_rate, best_limit) = (best(&rates), best(&limits));
    let (rate, limit) = (median(rates), median(limits));
    println!(
        "{what}: {rate:.1} {unit} = {:.0} % of {limit:.1}; at best {best_rate:.1} = {:.0} % of {best_limit:.1}",
        rate / limit * 100.0,
        best_rate / best_limit * 100.0
    );
}

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let max_threads = args.first().copied().unwrap_or(2);
    let rows = args.get(1).copied().unwrap_or(512);
    if let Some(way) = core_to_core(0, 1, 5) {
        println!("core 0 to core 1: {:.0} ns, {:.1} GB/s", way.latency_ns, way.rate_gb_per_s);
    }
    for threads in 1..=max_threads {
        println!("\n{threads} threads");
        let config = LimitsConfig::new(threads);
        let mut memory = ReadBandwidth::new(&config, 1 << 28);
        for (pattern, rate) in memory.by_pattern() {
            println!("read by {pattern}: {rate:.1} GB/s");
        }
        println!("fused multiply-adds: {:.1} GFLOP/s", fma_rate(&config));

        let device = CpuDevice::new(CpuConfig { threads, ..CpuConfig::default() });
        let weights: Vec<_> = (0..LAYERS).map(|_| device.pack(&Numbers, DType::BF16.into())).collect();
        let bytes: usize = weights.iter().map(|w| device.packed_bytes(w)).sum();
        let x: Vec<f32> = (0..rows * K).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let run = |rows: usize, layers: usize, leaf: usize| {
            let (program, x) = (tree(leaf), device.upload(&x[..rows * K], rows, K));
            let start = Instant::now();
            for w in &weights[..layers] {
                std::hint::black_box(device.linear_tree(&x, w, &program));
            }
            start.elapsed().as_secs_f64()
        };
        for leaf in [K, 512, 128, 64] {
            let kernel = || bytes as f64 / run(1, LAYERS, leaf) / 1e9;
            beside(&format!("1 row, leaves of {leaf}"), "GB/s", kernel, || memory.measure_once());
        }
        for rows in [2, 4, 8, 16, rows] {
            let layers = (LAYERS * 16 / rows).clamp(1, LAYERS);
            for leaf in [K, 512, 128, 64] {
                let kernel = || (2 * rows * K * N * layers) as f64 / run(rows, layers, leaf) / 1e9;
                let limit = || fma_rate(&LimitsConfig { repeats: 1, ..config.clone() });
                beside(&format!("{rows} rows, leaves of {leaf}"), "GFLOP/s", kernel, limit);
            }
        }
    }
}
