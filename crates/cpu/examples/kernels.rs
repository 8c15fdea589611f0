//! Measures linear layers against the limits of the machine, both in turns in the same run.
//!
//! ```text
//! cargo run --release -p cpu --example kernels -- [threads=1,2] [isa=avx2,avx512] [dtype=bfloat16,float32]
//!     [shape=2048x8192,8192x2048] [rows=1,8,32,512] [leaves=256,64] [rounds=9]
//! ```
//! A shape is outputs × inputs. The first figure is without a tree; each column `leaf` says how much longer the
//! same layer took as a tree over leaves of so many inputs, as the median of what each round found.

use std::time::Instant;

use cpu::limits::{LimitsConfig, ReadBandwidth, barrier, core_to_core, fma_rate, median};
use cpu::{CpuConfig, CpuDevice, CpuWeight, Isa};
use tensor::{DType, Device, MatrixSource, Program};

/// Weights that exceed any cache.
const WEIGHT_BYTES: usize = 256 << 20;

const ROWS: &str = "1,2,3,4,6,8,16,32,512";

struct Numbers(usize, usize);
impl MatrixSource for Numbers {
    fn rows(&self) -> usize {
        self.0
    }
    fn cols(&self) -> usize {
        self.1
    }
    fn read(&self, row: usize, cols: std::ops::Range<usize>, out: &mut [f32]) {
        for (col, out) in cols.zip(out) {
            *out = ((row * 31 + col * 17) & 127) as f32 / 64.0 - 1.0;
        }
    }
}

/// A full binary tree over leaves of `leaf` inputs.
fn tree(k: usize, leaf: usize) -> Program {
    let items = k.div_ceil(leaf);
    let inputs = (0..items).map(|i| i * leaf..((i + 1) * leaf).min(k)).collect();
    let mut merges: Vec<u32> = (1..=items as u32).map(u32::trailing_zeros).collect();
    *merges.last_mut().expect("a leaf") = (items as u32 - 1).count_ones();
    Program { inputs, merges, nodes: vec![0] }
}

struct Args(Vec<String>);
impl Args {
    fn list<T>(&self, name: &str, default: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let given = self.0.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        let read = |s: &str| parse(s).unwrap_or_else(|| panic!("{name}={s}: see the top of this file"));
        given.unwrap_or(default).split(',').map(read).collect()
    }
    fn numbers(&self, name: &str, default: &str) -> Vec<usize> {
        self.list(name, default, |s| s.parse().ok())
    }
}

/// One shape, type and number of threads.
struct Layers {
    device: CpuDevice,
    weights: Vec<CpuWeight>,
    n: usize,
    k: usize,
}

impl Layers {
    /// Seconds for one product by each of `count` weights.
    fn run(&self, rows: usize, count: usize, program: &Program) -> f64 {
        let x: Vec<f32> = (0..rows * self.k).map(|i| ((i * 37) & 127) as f32 / 64.0 - 1.0).collect();
        let x = self.device.upload(&x, rows, self.k);
        let start = Instant::now();
        for w in &self.weights[..count] {
            std::hint::black_box(self.device.linear_tree(&x, w, program));
        }
        start.elapsed().as_secs_f64()
    }

    /// Prints a line for `rows` rows.
    fn report(&self, rows: usize, leaves: &[usize], rounds: usize, memory: &mut ReadBandwidth) {
        let (n, k) = (self.n, self.k);
        let config = LimitsConfig { repeats: 1, ..memory.config().clone() };
        let flops = 2.0 * (rows * n * k) as f64;
        let count = ((2e10 / flops) as usize).clamp(1, self.weights.len());
        let bytes = self.device.packed_bytes(&self.weights[0]) as f64;
        let programs: Vec<_> = [k].iter().chain(leaves).map(|&leaf| tree(k, leaf)).collect();
        let mut seconds = vec![Vec::new(); programs.len()];
        let (mut bandwidths, mut peaks) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            bandwidths.push(memory.measure_once());
            peaks.push(fma_rate(&config));
            for (program, seconds) in programs.iter().zip(&mut seconds) {
                seconds.push(self.run(rows, count, program) / count as f64);
            }
        }
        let cost_of = |leaf: usize| {
            let ratios = seconds[leaf + 1].iter().zip(&seconds[0]).map(|(tree, plain)| tree / plain - 1.0);
            format!("{:+.1} %", 100.0 * median(ratios.collect()))
        };
        let costs: Vec<_> =
            (0..leaves.len()).map(|l| format!("leaf {} {:>7}", leaves[l], cost_of(l))).collect();
        let percent = |rate: f64, limits: &[f64]| {
            let ratios = seconds[0].iter().zip(limits).map(|(s, limit)| rate / s / 1e9 / limit);
            100.0 * median(ratios.collect())
        };
        let second = median(seconds[0].clone());
        println!(
            "{rows:>5} rows {:>6.1} GB/s {:>4.0} % of {:<5.1} {:>6.1} GFLOP/s {:>4.0} % of {:<5.1} | {}",
            bytes / second / 1e9,
            percent(bytes, &bandwidths),
            median(bandwidths.clone()),
            flops / second / 1e9,
            percent(flops, &peaks),
            median(peaks.clone()),
            costs.join("  ")
        );
    }
}

/// What of the memory lies in huge pages, in percent, as the system tells it.
fn huge_pages() -> Option<f64> {
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
    let all = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let of = |name: &str| all.lines().find(|line| line.starts_with(name)).and_then(kib);
    Some(100.0 * of("AnonHugePages:")? / of("Anonymous:")?)
}

fn main() {
    let args = Args(std::env::args().skip(1).collect());
    let isas: Vec<String> = Isa::available().iter().skip(1).map(Isa::to_string).collect();
    let isas =
        args.list("isa", &isas.join(","), |s| Isa::available().into_iter().find(|isa| isa.to_string() == s));
    let shapes = args.list("shape", "2048x8192,8192x2048", |s| {
        let (n, k) = s.split_once('x')?;
        Some((n.parse().ok()?, k.parse().ok()?))
    });
    let dtypes = args.list("dtype", "bfloat16", |s| {
        [DType::BF16, DType::F16, DType::F32].into_iter().find(|dtype| dtype.to_string() == s)
    });
    let leaves = args.list("leaves", "256,64", |s| s.parse().ok());
    let rounds = args.numbers("rounds", "9")[0];
    if let Some(way) = core_to_core(0, 1, 5) {
        println!("core 0 to core 1: {:.0} ns, {:.1} GB/s", way.latency_ns, way.rate_gb_per_s);
    }
    for threads in args.numbers("threads", "1,2") {
        let config = LimitsConfig { cores: Some((0..threads).collect()), ..LimitsConfig::new(threads) };
        let mut memory = ReadBandwidth::new(&config, 1 << 28);
        println!("\n{threads} threads; a barrier takes {:.2} µs", barrier(&config));
        for (pattern, rate) in memory.by_pattern() {
            println!("read by {pattern}: {rate:.1} GB/s");
        }
        for &(n, k) in &shapes {
            for &dtype in &dtypes {
                for &isa in &isas {
                    let device = CpuDevice::new(CpuConfig {
                        threads,
                        cores: config.cores.clone(),
                        isa: Some(isa),
                        ..CpuConfig::default()
                    });
                    let count = WEIGHT_BYTES.div_ceil(n * k * dtype.bytes());
                    let weights = (0..count).map(|_| device.pack(&Numbers(n, k), dtype.into())).collect();
                    let rows_of = args.numbers("rows", ROWS);
                    let layers = Layers { device, weights, n, k };
                    let huge = huge_pages().map_or("unknown".into(), |huge| format!("{huge:.0} %"));
                    println!("{n} × {k} {dtype}, {isa}, {threads} threads; in huge pages: {huge}");
                    for &rows in &rows_of {
                        layers.report(rows, &leaves, rounds, &mut memory);
                    }
                }
            }
        }
    }
}
