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

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let max_threads = args.first().copied().unwrap_or(2);
    let rows = args.get(1).copied().unwrap_or(512);
    if let Some(way) = core_to_core(0, 1, 5) {
        println!("core 0 to core 1: {:.0} ns, {:.1} GB/s", way.latency_ns, way.rate_gb_per_s);
    }
    for threads in 1..=max_threads {
        let config = LimitsConfig::new(threads);
        let mut memory = ReadBandwidth::new(&config, 1 << 30);
        for (pattern, rate) in memory.by_pattern() {
            println!("{threads} threads: {rate:.1} GB/s by {pattern}");
        }
        let fma = fma_rate(&config);
        println!("{threads} threads: {fma:.1} GFLOP/s of FMA");

        let device = CpuDevice::new(CpuConfig { threads, ..CpuConfig::default() });
        let start = Instant::now();
        let weights: Vec<_> = (0..LAYERS).map(|_| device.pack(&Numbers, DType::BF16)).collect();
        let bytes: usize = weights.iter().map(|w| device.packed_bytes(w)).sum();
        println!("{threads} threads: packed {:.2} GB/s", bytes as f64 / start.elapsed().as_secs_f64() / 1e9);

        let x: Vec<f32> = (0..rows * K).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let one = device.upload(&x[..K], 1, K);
        for leaf in [K, 512, 128, 64] {
            let program = tree(leaf);
            let mut rates = Vec::new();
            let mut limits = Vec::new();
            for _ in 0..7 {
                limits.push(memory.measure_once());
                let start = Instant::now();
                for w in &weights {
                    std::hint::black_box(device.linear_tree(&one, w, &program));
                }
                rates.push(bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
            }
            let (rate, limit) = (median(rates), median(limits));
            println!("{threads} threads: gemv, leaves of {leaf}: {rate:.1} GB/s = {:.0} % of {limit:.1}", rate / limit * 100.0);
        }
        for rows in [2, 4, 8, 16, rows] {
            let many = device.upload(&x[..rows * K], rows, K);
            let layers = (LAYERS * 16 / rows).clamp(2, LAYERS);
            for leaf in [K, 512, 128, 64] {
                let program = tree(leaf);
                let run = || {
                    let start = Instant::now();
                    for w in &weights[..layers] {
                        std::hint::black_box(device.linear_tree(&many, w, &program));
                    }
                    (2 * rows * K * N * layers) as f64 / start.elapsed().as_secs_f64() / 1e9
                };
                let rate = median((0..5).map(|_| run()).collect());
                println!("{threads} threads: {rows} rows, leaves of {leaf}: {rate:.1} GFLOP/s = {:.0} %", rate / fma * 100.0);
            }
        }
    }
}
