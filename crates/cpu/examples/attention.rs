//! Measures attention against the limits of the machine, all in the same run: decode against the read bandwidth,
//! prefill against fused multiply-adds. Heads are those of a model of a billion parameters.
//!
//! `cargo run --release -p cpu --example attention [max threads] [instruction set]`

use std::time::Instant;

use cpu::limits::{LimitsConfig, ReadBandwidth, fma_rate, median};
use cpu::{CpuConfig, CpuDevice, CpuKv, Isa};
use tensor::{AttentionSpec, DType, Device, KV_BLOCK, KvDType, KvShare, KvSpec, SequenceSpan, StepMeta};

const SPEC: AttentionSpec = AttentionSpec {
    num_heads: 32,
    num_kv_heads: 8,
    group: 4,
    first_in_group: 0,
    head_dim: 64,
    scale: 0.125,
    softcap: None,
    window: None,
};
/// Keys and values of as many layers as exceed any cache.
const DECODED_BYTES: usize = 320 << 20;
/// Rows that a cache is filled with at a time.
const CHUNK: usize = 512;
const REPEATS: usize = 7;
const DTYPES: [KvDType; 3] = [KvDType::Float(DType::F32), KvDType::Float(DType::BF16), KvDType::Fp8];

fn numbers(rows: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| ((i + seed).wrapping_mul(0x9E37_79B9) >> 7 & 0xFFFF) as f32 / 32768.0 - 1.0;
    (0..rows * SPEC.qkv_cols()).map(number).collect()
}

/// One sequence, whose blocks lie here and there.
fn step(blocks: usize, start: usize, rows: usize) -> StepMeta {
    let block_table = (0..blocks).map(|block| (block * 37 % blocks) as u32).collect();
    let sequences = vec![SequenceSpan { rows: 0..rows, start, block_table }];
    StepMeta { tokens: vec![0; rows], sequences, logit_rows: Vec::new() }
}

/// An odd number of blocks that 37 does not divide, so that `step` takes each once.
fn blocks_for(positions: usize) -> usize {
    let blocks = positions.div_ceil(KV_BLOCK);
    blocks + usize::from(blocks.is_multiple_of(37))
}

fn filled(dev: &CpuDevice, dtype: KvDType, positions: usize) -> CpuKv {
    let blocks = blocks_for(positions);
    let AttentionSpec { num_kv_heads, head_dim, .. } = SPEC;
    let mut kv = dev.alloc_kv(KvSpec { blocks, share: KvShare::WHOLE, num_kv_heads, head_dim, dtype });
    for start in (0..positions).step_by(CHUNK) {
        let rows = CHUNK.min(positions - start);
        let qkv = dev.upload(&numbers(rows, start), rows, SPEC.qkv_cols());
        dev.store_kv(&mut kv, &qkv, &dev.begin(&step(blocks, start, rows)), &SPEC);
    }
    kv
}

/// A rate and its limits, measured in turns so that a disturbance hits all.
fn beside(mut rate: impl FnMut() -> f64, limits: &mut [&mut dyn FnMut() -> f64]) -> (f64, Vec<f64>) {
    let (mut rates, mut found) = (Vec::new(), vec![Vec::new(); limits.len()]);
    rate();
    for _ in 0..REPEATS {
        limits.iter_mut().zip(&mut found).for_each(|(limit, found)| found.push(limit()));
        rates.push(rate());
    }
    (median(rates), found.into_iter().map(median).collect())
}

/// One row behind each of some contexts.
fn decode(dev: &CpuDevice, config: &LimitsConfig, memory: &mut ReadBandwidth) {
    for dtype in DTYPES {
        for context in [512, 4096, 16384] {
            let per_layer = context * 2 * SPEC.num_kv_heads * dtype.bytes(SPEC.head_dim);
            let layers: Vec<CpuKv> =
                (0..DECODED_BYTES.div_ceil(per_layer)).map(|_| filled(dev, dtype, context)).collect();
            let q = dev.upload(&numbers(1, 7), 1, SPEC.qkv_cols());
            let step = dev.begin(&step(blocks_for(context), context - 1, 1));
            let seconds = || {
                let start = Instant::now();
                for kv in &layers {
                    std::hint::black_box(dev.attention(&q, kv, &step, &SPEC));
                }
                start.elapsed().as_secs_f64() / layers.len() as f64
            };
            let mut fma = || fma_rate(&LimitsConfig { repeats: 1, ..config.clone() });
            let (gb, limits) =
                beside(|| per_layer as f64 / seconds() / 1e9, &mut [&mut || memory.measure_once(), &mut fma]);
            let gflops = gb / per_layer as f64 * flops(context);
            println!(
                "decode, {} keys and values, context {context}: {gb:.1} GB/s = {:.0} % of {:.1}; {gflops:.0} GFLOP/s = {:.0} % of {:.0}",
                dtype.name(),
                gb / limits[0] * 100.0,
                limits[0],
                gflops / limits[1] * 100.0,
                limits[1],
            );
        }
    }
}

/// All rows of a prompt.
fn prefill(dev: &CpuDevice, config: &LimitsConfig) {
    for dtype in DTYPES {
        for rows in [512, 2048] {
            let kv = filled(dev, dtype, rows);
            let q = dev.upload(&numbers(rows, 7), rows, SPEC.qkv_cols());
            let step = dev.begin(&step(blocks_for(rows), 0, rows));
            let gflops = || {
                let start = Instant::now();
                std::hint::black_box(dev.attention(&q, &kv, &step, &SPEC));
                flops(rows * (rows + 1) / 2) / start.elapsed().as_secs_f64() / 1e9
            };
            let mut limit = || fma_rate(&LimitsConfig { repeats: 1, ..config.clone() });
            let (gflops, limits) = beside(gflops, &mut [&mut limit]);
            println!(
                "prefill of {rows}, {} keys and values: {gflops:.1} GFLOP/s = {:.0} % of {:.1}",
                dtype.name(),
                gflops / limits[0] * 100.0,
                limits[0],
            );
        }
    }
}

/// The products of queries by keys and of weights by values, without what exponentials take.
fn flops(positions_seen: usize) -> f64 {
    (positions_seen * SPEC.num_heads * SPEC.head_dim * 4) as f64
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let max_threads = args.first().and_then(|n| n.parse().ok()).unwrap_or(2);
    let isa = args.get(1).map(|name| {
        let mut available = Isa::available().into_iter();
        available.find(|isa| isa.to_string() == *name).expect("an instruction set of this machine")
    });
    for threads in 1..=max_threads {
        let dev = CpuDevice::new(CpuConfig { threads, isa, ..CpuConfig::default() });
        println!("\n{threads} threads, {}", isa.unwrap_or_else(Isa::detect));
        let config = LimitsConfig::new(threads);
        decode(&dev, &config, &mut ReadBandwidth::new(&config, 1 << 28));
        prefill(&dev, &config);
    }
}
