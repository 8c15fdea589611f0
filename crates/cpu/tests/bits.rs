//! Neither the instruction set nor the number of threads nor the number of rows changes a bit. The shapes are
//! large enough that threads share the work, which those of the conformance suite mostly are not.

use cpu::{CpuConfig, CpuDevice, CpuTensor, CpuWeight, Isa};
use tensor::{
    Activation, AttentionSpec, DType, Device, HeadSpan, HostDevice, KvDType, KvShare, KvSpec, LogitEdit,
    MatrixSource, NormKind, NormSpec, Program, ReductionTree, RopeSpec, RouterSpec, RowNorm, ScaledMatrix,
    Scales, SequenceSpan, Slice, StepMeta, WeightFormat, WeightSpec,
};

const FORMATS: [WeightFormat; 7] = [
    WeightFormat::Float(DType::F32),
    WeightFormat::Float(DType::F16),
    WeightFormat::Float(DType::BF16),
    WeightFormat::Fp8,
    WeightFormat::Int8,
    WeightFormat::Int4,
    WeightFormat::Scaled(Scales::OUTPUT),
];

/// Pseudo-random numbers.
struct Matrix {
    rows: usize,
    cols: usize,
    seed: u32,
}

fn number(seed: u32, index: usize) -> f32 {
    let mut h = (index as u32).wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(0x9E37_79B9);
    h = (h ^ (h >> 15)).wrapping_mul(2_246_822_519);
    h = (h ^ (h >> 13)).wrapping_mul(3_266_489_917);
    ((h ^ (h >> 16)) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

impl MatrixSource for Matrix {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read(&self, row: usize, cols: std::ops::Range<usize>, out: &mut [f32]) {
        for (col, out) in cols.zip(out) {
            *out = number(self.seed, row * self.cols + col);
        }
    }
}

fn random(dev: &CpuDevice, rows: usize, cols: usize, seed: u32) -> CpuTensor {
    let data: Vec<f32> = (0..rows * cols).map(|i| number(seed, i)).collect();
    dev.upload(&data, rows, cols)
}

fn pack(dev: &CpuDevice, rows: usize, cols: usize, seed: u32, spec: impl Into<WeightSpec>) -> CpuWeight {
    let spec = spec.into();
    dev.pack(&*source(rows, cols, seed, spec), spec)
}

/// Pseudo-random numbers, in e4m3 where the spec keeps them so.
fn source(rows: usize, cols: usize, seed: u32, spec: WeightSpec) -> Box<dyn MatrixSource> {
    let matrix = Matrix { rows, cols, seed };
    match spec.format.scales() {
        Some(_) => Box::new(ScaledMatrix::of(&matrix, spec)),
        None => Box::new(matrix),
    }
}

/// Results with their names.
type Results = Vec<(String, Vec<f32>)>;

/// Runs `work` on every instruction set with 1, 2, 3 and 5 threads: all results must have the same bits.
fn same_everywhere(work: impl Fn(&CpuDevice, &mut dyn FnMut(&str, &[f32]))) {
    let mut first: Option<Results> = None;
    for isa in Isa::available() {
        for threads in [1, 2, 3, 5] {
            let dev = CpuDevice::new(CpuConfig { threads, isa: Some(isa), ..CpuConfig::default() });
            let mut results = Results::new();
            work(&dev, &mut |name, data| results.push((name.into(), data.to_vec())));
            let first = first.get_or_insert_with(|| results.clone());
            for ((name, expected), (_, found)) in first.iter().zip(&results) {
                assert_eq!(expected.len(), found.len(), "{name} on {isa} with {threads} threads");
                for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
                    let same = expected.to_bits() == found.to_bits();
                    assert!(same, "{name}[{i}] is {found}, not {expected}, on {isa} with {threads} threads");
                }
            }
        }
    }
}

#[test]
fn linear_layers() {
    same_everywhere(|dev, found| {
        for format in FORMATS.into_iter().chain(tensor::conformance::scaled()) {
            let tree = ReductionTree::over_granules(515, 64);
            let w = pack(dev, 331, 515, 1, format);
            let bias = random(dev, 1, 331, 2);
            for rows in [1, 2, 3, 4, 9, 60] {
                let x = random(dev, rows, 515, 3);
                found("linear", dev.as_slice(&dev.linear(&x, &w, Some(&bias))));
                for leaves in [0..17, 2..13] {
                    let program = tree.program(leaves.clone());
                    let inputs = tree.inputs_of(leaves);
                    let of = &*source(331, 515, 1, format.into());
                    let slice = Slice { of, rows: vec![0..200, 200..331], cols: inputs.clone() };
                    let w = dev.pack(&slice, WeightSpec::from(format).from_input(inputs.start, 515));
                    let y = dev.linear_tree(&dev.gather_cols(&x, inputs), &w, &program);
                    found("linear_tree", dev.as_slice(&y));
                }
            }
            // One panel, many rows.
            let w = pack(dev, 5, 700, 4, format);
            found("narrow linear", dev.as_slice(&dev.linear(&random(dev, 131, 700, 5), &w, None)));
        }
    });
}

#[test]
fn more_rows_than_a_cache_holds() {
    // 4 MiB of rows and more, so that they are worked on block by block.
    let dev = CpuDevice::new(CpuConfig { threads: 2, ..CpuConfig::default() });
    let (rows, k) = (300, 6000);
    let x = random(&dev, rows, k, 2);
    let tree = ReductionTree::over_granules(k, 64);
    let program = tree.program(0..tree.num_leaves());
    for format in [WeightFormat::Float(DType::BF16), WeightFormat::Fp8, WeightFormat::Int8, FORMATS[6]] {
        let w = pack(&dev, 40, k, 1, format);
        let all = dev.linear_tree(&x, &w, &program);
        for row in (0..rows).step_by(7) {
            let one = dev.linear_tree(&dev.gather_rows(&x, &[row as u32]), &w, &program);
            assert_eq!(dev.as_slice(&one), &dev.as_slice(&all)[row * 40..(row + 1) * 40], "row {row}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    // Every height of a tile, on every instruction set.
    for (isa, format) in Isa::available().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format))) {
        let dev = CpuDevice::new(CpuConfig { threads: 2, isa: Some(isa), ..CpuConfig::default() });
        let w = pack(&dev, 77, 300, 1, format);
        let x = random(&dev, 29, 300, 2);
        let alone = |row| dev.as_slice(&dev.linear(&dev.gather_rows(&x, &[row]), &w, None)).to_vec();
        let alone: Vec<f32> = (0..29).flat_map(alone).collect();
        for rows in 1..30 {
            let some = dev.linear(&dev.gather_rows(&x, &(0..rows).collect::<Vec<_>>()), &w, None);
            for (row, some) in dev.as_slice(&some).chunks_exact(77).enumerate() {
                assert_eq!(&alone[row * 77..][..77], some, "row {row} of {rows} on {isa}");
            }
        }
    }
}

#[test]
fn rows() {
    same_everywhere(|dev, found| {
        let x = || random(dev, 61, 1003, 1);
        let (weight, bias) = (random(dev, 1, 1003, 2), random(dev, 1, 1003, 3));
        let rms = NormSpec { kind: NormKind::Rms { weight_offset: 1.0 }, eps: 1e-6 };
        let layer = NormSpec { kind: NormKind::Layer, eps: 1e-5 };
        found("rms norm", dev.as_slice(&dev.norm(&x(), &weight, None, rms)));
        found("layer norm", dev.as_slice(&dev.norm(&x(), &weight, Some(&bias), layer)));
        let mut y = x();
        dev.head_norm(
            &mut y,
            HeadSpan { first_col: 3, heads: 12, head_dim: 80 },
            &random(dev, 1, 80, 4),
            rms,
        );
        found("head_norm", dev.as_slice(&y));
        let meta = StepMeta {
            tokens: vec![0; 61],
            sequences: vec![SequenceSpan { rows: 0..61, start: 7000, block_table: vec![] }],
            logit_rows: vec![],
        };
        let inv_freq = (0..37).map(|i| 0.9f32.powi(i)).collect();
        let table = dev.rope_table(&dev.begin(&meta), &RopeSpec { inv_freq });
        found("rope_table", dev.as_slice(&table));
        dev.rope(&mut y, HeadSpan { first_col: 1, heads: 12, head_dim: 80 }, &table);
        found("rope", dev.as_slice(&y));
        let heads = [(3, 7), (3 + 7 * 80, 5)]
            .map(|(first_col, heads)| HeadSpan { first_col, heads, head_dim: 80 })
            .map(|span| (span, random(dev, 1, 80, span.heads as u32)));
        for spec in [rms, layer] {
            let mut y = x();
            dev.head_norm_rope(&mut y, heads.each_ref().map(|(span, weight)| (*span, weight)), spec, &table);
            found("head_norm_rope", dev.as_slice(&y));
            for post in [None, Some(rms), Some(layer)] {
                let of = |spec| RowNorm { weight: &weight, bias: (spec == layer).then_some(&bias), spec };
                let mut y = x();
                let normed = dev.add_norm(&mut y, &random(dev, 61, 1003, 8), post.map(of), of(spec));
                found("sum of add_norm", dev.as_slice(&y));
                found("add_norm", dev.as_slice(&normed));
            }
        }
        let wide = random(dev, 61, 2 * 511, 5);
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
            found("gated", dev.as_slice(&dev.gated(&wide, activation)));
            let mut y = x();
            dev.activate(&mut y, activation);
            found("activate", dev.as_slice(&y));
        }
        let mut y = x();
        dev.add(&mut y, &random(dev, 61, 1003, 6));
        dev.add(&mut y, &bias);
        dev.scale(&mut y, 1.7);
        dev.softcap(&mut y, 0.8);
        found("add, scale, softcap", dev.as_slice(&y));
        found("gather", dev.as_slice(&dev.gather_cols(&dev.gather_rows(&y, &[60, 0, 7, 7, 13]), 17..1001)));
        for format in FORMATS {
            let rows: Vec<u32> = (0..200).map(|i| i * 37 % 333).collect();
            found("embed", dev.as_slice(&dev.embed(&pack(dev, 333, 170, 7, format), &rows)));
        }
    });
}

/// A prompt in chunks, another sequence beside it, then single tokens behind the contexts.
fn attend(
    dev: &CpuDevice,
    spec: &AttentionSpec,
    dtype: KvDType,
    contexts: &[usize],
    found: &mut dyn FnMut(&str, &[f32]),
) {
    let longest = contexts.iter().max().expect("some context") + 2;
    let per_sequence = longest.div_ceil(16);
    let blocks = contexts.len() * per_sequence;
    let kv_spec = KvSpec {
        blocks,
        share: KvShare::WHOLE,
        num_kv_heads: spec.num_kv_heads,
        head_dim: spec.head_dim,
        dtype,
    };
    let mut kv = dev.alloc_kv(kv_spec);
    // Blocks from the back, so that neighbours in a sequence are not neighbours in memory.
    let table = |s: usize| -> Vec<u32> {
        (0..per_sequence).map(|b| (blocks - 1 - (b * contexts.len() + s)) as u32).collect()
    };
    let mut step = |lengths: &[usize], starts: &[usize], seed: u32| {
        let (mut sequences, mut row) = (Vec::new(), 0);
        for (s, (&len, &start)) in lengths.iter().zip(starts).enumerate() {
            sequences.push(SequenceSpan { rows: row..row + len, start, block_table: table(s) });
            row += len;
        }
        let step = dev.begin(&StepMeta { tokens: vec![0; row], sequences, logit_rows: vec![] });
        let qkv = random(dev, row, spec.qkv_cols(), seed);
        dev.store_kv(&mut kv, &qkv, &step, spec);
        found("attention", dev.as_slice(&dev.attention(&qkv, &kv, &step, spec)));
    };
    let half: Vec<usize> = contexts.iter().map(|c| c / 2).collect();
    let rest: Vec<usize> = contexts.iter().map(|c| c - c / 2).collect();
    step(&half, &vec![0; contexts.len()], 1);
    step(&rest, &half, 2);
    step(&vec![1; contexts.len()], contexts, 3);
}

#[test]
fn attention_over_short_and_long_contexts() {
    same_everywhere(|dev, found| {
        let spec = AttentionSpec {
            num_heads: 6,
            num_kv_heads: 2,
            group: 3,
            first_in_group: 0,
            head_dim: 40,
            scale: 0.16,
            softcap: None,
            window: None,
        };
        for dtype in KvDType::ALL {
            attend(dev, &spec, dtype, &[150, 33], found);
        }
        for dtype in [DType::BF16.into(), KvDType::Fp8] {
            let windowed = AttentionSpec { softcap: Some(2.0), window: Some(70), ..spec };
            attend(dev, &windowed, dtype, &[200, 90], found);
        }
        // Part of a group on this rank; one KV head.
        let part = AttentionSpec {
            num_heads: 2,
            num_kv_heads: 1,
            group: 7,
            first_in_group: 4,
            head_dim: 12,
            ..spec
        };
        attend(dev, &part, DType::F16.into(), &[129], found);
        attend(dev, &part, KvDType::Fp8, &[129], found);
    });
}

#[test]
fn segments_of_a_long_context_are_shared_by_threads() {
    same_everywhere(|dev, found| {
        let spec = AttentionSpec {
            num_heads: 1,
            num_kv_heads: 1,
            group: 1,
            first_in_group: 0,
            head_dim: 8,
            scale: 0.35,
            softcap: None,
            window: None,
        };
        attend(dev, &spec, KvDType::Fp8, &[3100], found);
        attend(dev, &AttentionSpec { window: Some(1500), ..spec }, DType::F32.into(), &[3100], found);
    });
}

#[test]
fn experts() {
    same_everywhere(|dev, found| {
        let (experts, tokens, k, n) = (11, 90, 130, 75);
        let tree = ReductionTree::over_granules(n, 8);
        for range in [0..11, 3..9] {
            for format in FORMATS {
                let weights = |rows, cols| -> Vec<CpuWeight> {
                    range.clone().map(|e| pack(dev, rows, cols, e as u32, format)).collect()
                };
                let (up, down) = (weights(n, k), weights(k, n));
                for tokens in [1, tokens] {
                    let x = random(dev, tokens, k, 1);
                    let routing =
                        dev.route(&random(dev, tokens, experts, 2), RouterSpec { top_k: 3, normalize: true });
                    let assignment = dev.assign(&routing, range.clone());
                    let y = dev.grouped_linear(&x, &assignment, &up);
                    found("grouped_linear", dev.as_slice(&y));
                    let all = tree.program(0..tree.num_leaves());
                    let z = dev.grouped_linear_tree(&y, &assignment, &down, &all);
                    found("grouped_linear_tree", dev.as_slice(&z));
                    let some = dev.grouped_linear_tree(
                        &dev.gather_cols(&y, 0..tree.inputs_of(0..2).end),
                        &assignment,
                        &range
                            .clone()
                            .map(|e| pack(dev, k, tree.inputs_of(0..2).end, e as u32, format))
                            .collect::<Vec<_>>(),
                        &tree.program(0..2),
                    );
                    found("grouped_linear_tree", dev.as_slice(&some));
                    let ids = ReductionTree::over_ids(experts).program(range.clone());
                    found("combine", dev.as_slice(&dev.combine(&z, &assignment, &ids)));
                }
            }
        }
    });
}

#[test]
fn logits() {
    same_everywhere(|dev, found| {
        for (rows, cols) in [(1, 50_003), (7, 9_001)] {
            let mut x = random(dev, rows, cols, 1);
            dev.edit_logits(
                &mut x,
                &[
                    LogitEdit::Add { row: 0, col: 17, by: 3.0 },
                    LogitEdit::Repetition { row: rows - 1, cols: vec![18, 700], by: 1.3 },
                    LogitEdit::Divide { row: 0, by: 0.7 },
                ],
            );
            found("edit_logits", dev.as_slice(&x));
            let max = dev.row_max(&x).unwrap();
            found("row_max", &max);
            let tree = ReductionTree::over_ids(usize::div_ceil(cols, 16));
            found("exp_sums", &dev.exp_sums(&x, &max, &tree.program(0..tree.num_leaves())).unwrap());
            for (skip, k) in [(0, 1), (0, 40), (30, 500), (cols - 3, 10), (cols, 1)] {
                for row in dev.top_k(&x, skip, k).unwrap() {
                    found("top_k", &row.iter().map(|c| c.0).collect::<Vec<_>>());
                    found("top_k", &row.iter().map(|c| c.1 as f32).collect::<Vec<_>>());
                }
            }
        }
    });
}

#[test]
fn what_is_chosen_is_sorted_and_complete() {
    let dev = CpuDevice::new(CpuConfig { threads: 3, ..CpuConfig::default() });
    // Many ties, zeros of both signs.
    let data: Vec<f32> = (0..40_000).map(|i| (number(1, i) * 8.0).round() * 0.5).collect();
    let x = dev.upload(&data, 1, data.len());
    let mut all: Vec<(f32, u32)> = data.iter().copied().zip(0..).collect();
    all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
    for (skip, k) in [(0, 1), (0, 50), (100, 1000), (39_990, 100)] {
        let found = &dev.top_k(&x, skip, k).unwrap()[0];
        assert_eq!(found[..], all[skip..(skip + k).min(all.len())]);
    }
    for at in [0, 1, 777, 39_999] {
        let (logit, col) = all[at];
        assert_eq!(dev.count_before(&x, &[(logit, col as usize)]).unwrap(), [at as u32]);
    }
}

#[test]
fn a_nan_harms_nobody_else() {
    for isa in Isa::available() {
        let dev = CpuDevice::new(CpuConfig { threads: 2, isa: Some(isa), ..CpuConfig::default() });
        let mut data: Vec<f32> = (0..4 * 1000).map(|i| number(1, i)).collect();
        data[5] = f32::NAN;
        data[1000..2000].fill(f32::NAN);
        data[2999] = f32::NAN;
        let x = dev.upload(&data, 4, 1000);
        assert_eq!(dev.top_k(&x, 0, 2000).unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [1000; 4]);
        let best = dev.top_k(&x, 0, 3).unwrap();
        assert!(best[0].iter().chain(&best[2]).chain(&best[3]).all(|c| !c.0.is_nan()));
        let max = dev.row_max(&x).unwrap();
        assert!(!max[0].is_nan() && !max[2].is_nan() && max[1] == f32::NEG_INFINITY);
        let tree = ReductionTree::over_ids(63);
        dev.exp_sums(&x, &max, &tree.program(0..63)).unwrap();
        let routing = dev.route(&dev.gather_cols(&x, 0..16), RouterSpec { top_k: 4, normalize: true });
        let assignment = dev.assign(&routing, 0..16);
        let program = ReductionTree::over_ids(16).program(0..16);
        dev.combine(&random(&dev, 16, 20, 1), &assignment, &program);
        let spec = AttentionSpec {
            num_heads: 2,
            num_kv_heads: 1,
            group: 2,
            first_in_group: 0,
            head_dim: 250,
            scale: 1.0,
            softcap: Some(3.0),
            window: None,
        };
        let mut kv = dev.alloc_kv(KvSpec {
            blocks: 1,
            share: KvShare::WHOLE,
            num_kv_heads: 1,
            head_dim: 250,
            dtype: DType::BF16.into(),
        });
        let sequences = vec![SequenceSpan { rows: 0..4, start: 0, block_table: vec![0] }];
        let step = dev.begin(&StepMeta { tokens: vec![0; 4], sequences, logit_rows: vec![] });
        dev.store_kv(&mut kv, &x, &step, &spec);
        dev.attention(&x, &kv, &step, &spec);
        dev.linear(&x, &pack(&dev, 20, 1000, 1, DType::F16), None);
    }
}

#[test]
fn a_repeated_step_takes_no_memory_from_the_system() {
    let dev = CpuDevice::new(CpuConfig { threads: 2, ..CpuConfig::default() });
    let (up, down) =
        (pack(&dev, 800, 400, 1, WeightFormat::Int8), pack(&dev, 400, 400, 2, WeightFormat::Fp8));
    let weight = random(&dev, 1, 400, 3);
    let tree = ReductionTree::over_heads(5, 80);
    let program: Program = tree.program(1..5);
    let spec = AttentionSpec {
        num_heads: 5,
        num_kv_heads: 5,
        group: 1,
        first_in_group: 0,
        head_dim: 80,
        scale: 0.1,
        softcap: None,
        window: None,
    };
    let qkv_weight = pack(&dev, spec.qkv_cols(), 400, 4, DType::BF16);
    let mut kv = dev.alloc_kv(KvSpec {
        blocks: 200,
        share: KvShare::WHOLE,
        num_kv_heads: 5,
        head_dim: 80,
        dtype: DType::BF16.into(),
    });
    let mut step = |rows: usize, start: usize| {
        let sequences = vec![SequenceSpan { rows: 0..rows, start, block_table: (0..200).collect() }];
        let step = dev.begin(&StepMeta { tokens: vec![0; rows], sequences, logit_rows: vec![] });
        let mut x = random(&dev, rows, 400, 5);
        for _ in 0..3 {
            let y = dev.norm(
                &x,
                &weight,
                None,
                NormSpec { kind: NormKind::Rms { weight_offset: 0.0 }, eps: 1e-6 },
            );
            let qkv = dev.linear(&y, &qkv_weight, None);
            dev.store_kv(&mut kv, &qkv, &step, &spec);
            dev.add(&mut x, &dev.attention(&qkv, &kv, &step, &spec));
            let y = dev.gated(&dev.linear(&x, &up, None), Activation::Silu);
            dev.linear_tree(
                &dev.gather_cols(&y, 0..320),
                &pack(&dev, 400, 320, 6, WeightSpec { format: WeightFormat::Int4, period: Some(80) }),
                &program,
            );
            dev.add(&mut x, &dev.linear(&y, &down, None));
        }
    };
    let both = |step: &mut dyn FnMut(usize, usize)| {
        step(100, 0);
        step(1, 3000);
    };
    both(&mut step);
    let warm = dev.fresh_allocations();
    assert!(warm > 0);
    for _ in 0..5 {
        both(&mut step);
    }
    assert_eq!(dev.fresh_allocations(), warm);
}
