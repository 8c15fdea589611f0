//! Measures the linear layers of a model's block with quantised weights against the limits of the machine: bytes of
//! weights against the read bandwidth, and useful operations (two per weight and row) against the peak of fused
//! multiply-adds of floats. Limits are measured in turns with the layers, and ratios are medians over the turns.
//!
//! ```text
//! cargo run --release -p cpu --example quantized -- [threads=1,2] [isa=avx2] [format=int8,int4] [rows=1,8,32,512]
//!     [turns=9]
//! ```
//! The block is that of the 1B shape: 2048 wide, 32 heads and 8 KV heads of 64, 8192 in the feed-forward network.

use std::time::Instant;

use cpu::limits::{LimitsConfig, ReadBandwidth, fma_rate, median};
use cpu::{CpuConfig, CpuDevice, CpuTensor, CpuWeight, Isa};
use tensor::{DType, Device, MatrixSource, Program, ReductionTree, WeightFormat, WeightSpec};

/// Blocks, so many that no cache holds their weights.
const BLOCKS: usize = 4;
const FORMATS: [WeightFormat; 4] =
    [WeightFormat::Float(DType::BF16), WeightFormat::Fp8, WeightFormat::Int8, WeightFormat::Int4];

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

/// Outputs, inputs, period of the groups and tree of the layers of a block.
fn layers() -> Vec<(usize, usize, Option<usize>, Program)> {
    let (heads, granules) = (ReductionTree::over_heads(32, 64), ReductionTree::over_granules(8192, 32));
    vec![
        (3072, 2048, None, Program::sequential(2048)),
        (2048, 2048, Some(64), heads.program(0..32)),
        (16384, 2048, None, Program::sequential(2048)),
        (2048, 8192, None, granules.program(0..granules.num_leaves())),
    ]
}

struct Model {
    device: CpuDevice,
    blocks: Vec<Vec<(CpuWeight, Program)>>,
}

impl Model {
    /// Seconds that packing took, too.
    fn new(device: CpuDevice, format: WeightFormat) -> (Self, f64) {
        let start = Instant::now();
        let block = || {
            let layer = |(n, k, period, program)| {
                (device.pack(&Numbers(n, k), WeightSpec { format, period }), program)
            };
            layers().into_iter().map(layer).collect()
        };
        let blocks = (0..BLOCKS).map(|_| block()).collect();
        (Model { device, blocks }, start.elapsed().as_secs_f64())
    }

    fn weights(&self) -> impl Iterator<Item = &CpuWeight> {
        self.blocks.iter().flatten().map(|(w, _)| w)
    }

    /// Seconds for some blocks.
    fn run(&self, blocks: usize, narrow: &CpuTensor, wide: &CpuTensor) -> f64 {
        let start = Instant::now();
        for (w, program) in self.blocks[..blocks].iter().flatten() {
            let x = if program.num_inputs() == 2048 { narrow } else { wide };
            std::hint::black_box(self.device.linear_tree(x, w, program));
        }
        start.elapsed().as_secs_f64()
    }

    /// Prints a line for `rows` rows.
    fn report(&self, rows: usize, turns: usize, config: &LimitsConfig, memory: &mut ReadBandwidth) {
        let x = |k: usize| {
            let x: Vec<f32> = (0..rows * k).map(|i| ((i * 37) & 127) as f32 / 64.0 - 1.0).collect();
            self.device.upload(&x, rows, k)
        };
        let (narrow, wide) = (x(2048), x(8192));
        let blocks = if rows > 64 { 1 } else { BLOCKS };
        let share = blocks as f64 / BLOCKS as f64;
        let bytes: usize = self.weights().map(|w| self.device.packed_bytes(w)).sum();
        let weights: usize =
            self.weights().map(|w| self.device.weight_shape(w).iter().product::<usize>()).sum();
        let (gigabytes, gigaflops) =
            (bytes as f64 * share / 1e9, 2.0 * (rows * weights) as f64 * share / 1e9);
        let (mut seconds, mut of_bandwidth, mut of_peak) = (Vec::new(), Vec::new(), Vec::new());
        let mut limits = || (memory.measure_once(), fma_rate(config));
        let mut before = limits();
        for _ in 0..turns {
            let second = self.run(blocks, &narrow, &wide);
            let after = limits();
            of_bandwidth.push(gigabytes / second / ((before.0 + after.0) / 2.0));
            of_peak.push(gigaflops / second / ((before.1 + after.1) / 2.0));
            seconds.push(second);
            before = after;
        }
        let second = median(seconds);
        println!(
            "{rows:>5} rows: {:>6.1} GB/s = {:.2} of the read bandwidth, {:>6.1} GFLOP/s = {:.2} of the FMA peak",
            gigabytes / second,
            median(of_bandwidth),
            gigaflops / second,
            median(of_peak),
        );
    }
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

fn main() {
    let args = Args(std::env::args().skip(1).collect());
    let isas: Vec<String> = Isa::available().iter().skip(1).map(Isa::to_string).collect();
    let isas =
        args.list("isa", &isas.join(","), |s| Isa::available().into_iter().find(|isa| isa.to_string() == s));
    let formats =
        args.list("format", "int8,int4,fp8", |s| FORMATS.into_iter().find(|format| format.name() == s));
    let turns = args.numbers("turns", "9")[0];
    for threads in args.numbers("threads", "2") {
        let cores = Some((0..threads).collect());
        let config = LimitsConfig { cores, repeats: 1, ..LimitsConfig::new(threads) };
        let mut memory = ReadBandwidth::new(&config, 1 << 28);
        println!("{threads} threads: {:.1} GB/s, {:.1} GFLOP/s", memory.measure_once(), fma_rate(&config));
        for &isa in &isas {
            for &format in &formats {
                let cores = config.cores.clone();
                let device =
                    CpuDevice::new(CpuConfig { threads, cores, isa: Some(isa), ..CpuConfig::default() });
                let (model, seconds) = Model::new(device, format);
                let weights: usize =
                    model.weights().map(|w| model.device.weight_shape(w).iter().product::<usize>()).sum();
                println!(
                    "{format}, {isa}, {threads} threads; packed {:.2} G weights/s",
                    weights as f64 / seconds / 1e9
                );
                for rows in args.numbers("rows", "1,2,4,8,32,512") {
                    model.report(rows, turns, &config, &mut memory);
                }
            }
        }
    }
}
