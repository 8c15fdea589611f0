//! Measures the operations between the linear layers of a block: each fused one beside the same ones apart, in turns.
//!
//! ```text
//! cargo run --release -p cpu --example rows -- [threads=2] [isa=avx2,avx512] [width=2048] [rows=1,512] [rounds=15]
//! ```
//! Heads are of 128 columns, as many of queries as the width has, and half as many of keys. The feed-forward network
//! is four times as wide. Times are medians of the rounds, in µs.

use std::time::Instant;

use cpu::limits::median;
use cpu::{CpuConfig, CpuDevice, CpuTensor, Isa};
use tensor::{Activation, Device, HeadSpan, NormKind, NormSpec, RopeSpec, RowNorm, SequenceSpan, StepMeta};

const HEAD_DIM: usize = 128;

fn argument(name: &str, default: &str) -> Vec<String> {
    let given = std::env::args().find_map(|arg| Some(arg.strip_prefix(name)?.strip_prefix('=')?.to_owned()));
    given.as_deref().unwrap_or(default).split(',').map(str::to_owned).collect()
}

fn numbers(name: &str, default: &str) -> Vec<usize> {
    let read = |s: String| s.parse().unwrap_or_else(|_| panic!("{name}={s}: see the top of this file"));
    argument(name, default).into_iter().map(read).collect()
}

/// One device, and what its operations work on.
struct Rows {
    dev: CpuDevice,
    rounds: usize,
    rows: usize,
    width: usize,
}

impl Rows {
    /// Some of about 1, of both signs.
    fn tensor(&self, rows: usize, cols: usize) -> CpuTensor {
        let data: Vec<f32> = (0..rows * cols).map(|i| ((i * 37) & 127) as f32 / 64.0 - 1.0).collect();
        self.dev.upload(&data, rows, cols)
    }

    /// Prints the time of one way, or of two in turns.
    fn report(&self, what: &str, ways: &mut [&mut dyn FnMut()]) {
        let repeats = 1 + (1 << 22) / (self.rows * self.width);
        let mut times = vec![Vec::new(); ways.len()];
        for _ in 0..self.rounds {
            for (way, times) in ways.iter_mut().zip(&mut times) {
                let start = Instant::now();
                (0..repeats).for_each(|_| way());
                times.push(start.elapsed().as_secs_f64() * 1e6 / repeats as f64);
            }
        }
        let times: Vec<String> = times.into_iter().map(|times| format!("{:8.2}", median(times))).collect();
        println!("{:>5} rows  {what:28} {}", self.rows, times.join("  fused "));
    }

    fn run(&self) {
        let Rows { dev, rows, width, .. } = self;
        let (rows, width) = (*rows, *width);
        let spec = NormSpec { kind: NormKind::Rms { weight_offset: 0.0 }, eps: 1e-6 };
        let (weight, y) = (self.tensor(1, width), self.tensor(rows, width));
        let norm = RowNorm { weight: &weight, bias: None, spec };
        let [mut x, mut also_x] = [(); 2].map(|()| self.tensor(rows, width));
        self.report("norm", &mut [&mut || drop(dev.norm(&y, &weight, None, spec))]);
        self.report(
            "add, norm",
            &mut [
                &mut || {
                    dev.add(&mut x, &y);
                    dev.norm(&x, &weight, None, spec);
                },
                &mut || drop(dev.add_norm(&mut also_x, &y, None, norm)),
            ],
        );
        self.report(
            "norm, add, norm",
            &mut [
                &mut || {
                    dev.add(&mut x, &dev.norm(&y, &weight, None, spec));
                    dev.norm(&x, &weight, None, spec);
                },
                &mut || drop(dev.add_norm(&mut also_x, &y, Some(norm), norm)),
            ],
        );

        let heads = width / HEAD_DIM;
        let q = HeadSpan { first_col: 0, heads, head_dim: HEAD_DIM };
        let k = HeadSpan { first_col: heads * HEAD_DIM, heads: heads / 2, head_dim: HEAD_DIM };
        let both = HeadSpan { heads: q.heads + k.heads, ..q };
        let of_heads = self.tensor(1, HEAD_DIM);
        let sequences = vec![SequenceSpan { rows: 0..rows, start: 0, block_table: vec![] }];
        let step = dev.begin(&StepMeta { tokens: vec![0; rows], sequences, logit_rows: vec![] });
        let inv_freq = (0..HEAD_DIM / 2).map(|i| 0.9f32.powi(i as i32)).collect();
        let table = dev.rope_table(&step, &RopeSpec { inv_freq });
        let [mut x, mut also_x] = [(); 2].map(|()| self.tensor(rows, 2 * width));
        self.report(
            "norm of q, norm of k, rope",
            &mut [
                &mut || {
                    dev.head_norm(&mut x, q, &of_heads, spec);
                    dev.head_norm(&mut x, k, &of_heads, spec);
                    dev.rope(&mut x, both, &table);
                },
                &mut || dev.head_norm_rope(&mut also_x, [(q, &of_heads), (k, &of_heads)], spec, &table),
            ],
        );
        let wide = self.tensor(rows, 8 * width);
        self.report("gated", &mut [&mut || drop(dev.gated(&wide, Activation::Silu))]);
    }
}

fn main() {
    let isas: Vec<String> = Isa::available().iter().skip(1).map(Isa::to_string).collect();
    for threads in numbers("threads", "2") {
        for isa in argument("isa", &isas.join(",")) {
            let known = Isa::available().into_iter().find(|known| known.to_string() == isa);
            let isa = known.unwrap_or_else(|| panic!("isa={isa}: this machine has {}", isas.join(", ")));
            for width in numbers("width", "2048") {
                println!("{isa}, {threads} threads, width {width}");
                for rows in numbers("rows", "1,512") {
                    let cores = Some((0..threads).collect());
                    let config = CpuConfig { threads, cores, isa: Some(isa), ..CpuConfig::default() };
                    let rounds = numbers("rounds", "15")[0];
                    Rows { dev: CpuDevice::new(config), rounds, rows, width }.run();
                }
            }
        }
    }
}
