//! The reference against textbook formulas in f64, which share nothing with it but the inputs.

use crate::{
    Activation, AttentionSpec, DType, Device, HeadSpan, KV_BLOCK, KvShare, KvSpec, NormKind, NormSpec,
    ReductionTree, Reference, ReferenceTensor, RopeSpec, RouterSpec, SequenceSpan, StepMeta,
};

/// Waves that no two elements share.
fn wave(rows: usize, cols: usize, by: f64) -> ReferenceTensor {
    ReferenceTensor::from_fn(rows, cols, |r, c| (by * (1.0 + (r * 31 + c * 7) as f64 * 0.7391).sin()) as f32)
}

fn near(what: &str, got: f32, want: f64, tolerance: f64) {
    assert!((got as f64 - want).abs() <= tolerance * want.abs().max(1.0), "{what}: {got} is not {want}");
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|x| x / sum).collect()
}

/// One sequence of `rows` positions, whose blocks lie backwards.
fn one_sequence(rows: usize) -> StepMeta {
    let blocks = rows.div_ceil(KV_BLOCK) as u32;
    let sequences = vec![SequenceSpan { rows: 0..rows, start: 0, block_table: (0..blocks).rev().collect() }];
    StepMeta { tokens: vec![0; rows], sequences, logit_rows: Vec::new() }
}

const SPEC: AttentionSpec = AttentionSpec {
    num_heads: 3,
    num_kv_heads: 2,
    group: 2,
    first_in_group: 1,
    head_dim: 8,
    scale: 0.35,
    softcap: None,
    window: None,
};

#[test]
fn attention_is_a_softmax_over_what_is_seen() {
    let rows = 1100;
    let step = one_sequence(rows);
    for (window, softcap) in [(None, None), (Some(100), None), (None, Some(1.5)), (Some(7), Some(0.8))] {
        let spec = AttentionSpec { window, softcap, ..SPEC };
        let qkv = wave(rows, spec.qkv_cols(), 2.0);
        let mut kv = Reference.alloc_kv(KvSpec {
            blocks: 69,
            share: KvShare::WHOLE,
            num_kv_heads: 2,
            head_dim: 8,
            dtype: DType::F32.into(),
        });
        Reference.store_kv(&mut kv, &qkv, &step, &spec);
        let out = Reference.attention(&qkv, &kv, &step, &spec);
        for i in [0, 1, 63, 64, 500, 1023, 1024, 1099] {
            let seen: Vec<usize> = (0..=i).filter(|j| window.is_none_or(|w| i - j < w)).collect();
            for (head, kv_head) in [(0, 0), (1, 1), (2, 1)] {
                let head_of = |row: usize, first: usize, head: usize| {
                    wide(&qkv.row(row)[(first + head) * 8..(first + head + 1) * 8])
                };
                let q = head_of(i, 0, head);
                let score = |&j: &usize| {
                    let dot: f64 = q.iter().zip(head_of(j, 3, kv_head)).map(|(q, k)| q * k).sum();
                    let score = dot * spec.scale as f64;
                    softcap.map_or(score, |cap| cap as f64 * (score / cap as f64).tanh())
                };
                let weights = softmax(&seen.iter().map(score).collect::<Vec<_>>());
                for d in 0..8 {
                    let want: f64 =
                        seen.iter().zip(&weights).map(|(&j, w)| w * head_of(j, 5, kv_head)[d]).sum();
                    near("attention", out.at(i, head * 8 + d), want, 5e-6);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "position 0 is read, but nothing was written to block 1 for it")]
fn a_position_that_was_never_written_is_not_read() {
    let mut step = one_sequence(20);
    let kv = Reference.alloc_kv(KvSpec {
        blocks: 2,
        share: KvShare::WHOLE,
        num_kv_heads: 2,
        head_dim: 8,
        dtype: DType::F32.into(),
    });
    step.sequences[0].start = 12;
    Reference.attention(&wave(20, SPEC.qkv_cols(), 1.0), &kv, &step, &SPEC);
}

#[test]
fn norms_are_what_their_formulas_say() {
    for cols in [1, 5, 16, 37, 300] {
        let (x, weight, bias) = (wave(3, cols, 3.0), wave(1, cols, 1.0), wave(1, cols, 0.5));
        let rms = NormSpec { kind: NormKind::Rms { weight_offset: 1.0 }, eps: 1e-5 };
        let layer = NormSpec { kind: NormKind::Layer, eps: 1e-5 };
        let y = [Reference.norm(&x, &weight, None, rms), Reference.norm(&x, &weight, Some(&bias), layer)];
        for row in 0..3 {
            let wide = wide(x.row(row));
            let mean = wide.iter().sum::<f64>() / cols as f64;
            let mean_square = wide.iter().map(|x| x * x).sum::<f64>() / cols as f64;
            let variance = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
            for (i, x) in wide.iter().enumerate() {
                let (w, b) = (weight.at(0, i) as f64, bias.at(0, i) as f64);
                near("rms", y[0].at(row, i), x / (mean_square + 1e-5).sqrt() * (w + 1.0), 1e-6);
                near("layer", y[1].at(row, i), (x - mean) / (variance + 1e-5).sqrt() * w + b, 2e-6);
            }
        }
    }
}

#[test]
fn rotary_positions_rotate_pairs_by_position_times_frequency() {
    let inv_freq = vec![1.0f32, 0.1, 0.003];
    let span = HeadSpan { first_col: 2, heads: 2, head_dim: 8 };
    let table = Reference.rope_table(&one_sequence(40), &RopeSpec { inv_freq: inv_freq.clone() });
    let x = wave(40, 20, 1.0);
    let mut y = x.clone();
    Reference.rope(&mut y, span, &table);
    for row in 0..40 {
        let mut want = wide(x.row(row));
        for first in [2, 10] {
            for (i, f) in inv_freq.iter().enumerate() {
                let (sin, cos) = (row as f64 * *f as f64).sin_cos();
                let (a, b) = (want[first + i], want[first + 3 + i]);
                want[first + i] = a * cos - b * sin;
                want[first + 3 + i] = a * sin + b * cos;
            }
        }
        want.iter().enumerate().for_each(|(col, want)| near("rope", y.at(row, col), *want, 1e-6));
    }
}

#[test]
fn a_router_takes_the_most_probable_and_the_lower_of_equals() {
    let logits =
        ReferenceTensor { rows: 2, cols: 5, data: vec![0.5, 2.0, 0.5, -1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0] };
    let routing = Reference.route(&logits, RouterSpec { top_k: 3, normalize: false });
    let ids = |token: usize| routing.chosen[token].iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!((ids(0), ids(1)), (vec![0, 1, 2], vec![0, 1, 2]));
    let all = softmax(&wide(logits.row(0)));
    routing.chosen[0].iter().for_each(|&(id, weight)| near("route", weight, all[id], 1e-6));

    let normalized = Reference.route(&logits, RouterSpec { top_k: 3, normalize: true });
    let sum = all[0] + all[1] + all[2];
    normalized.chosen[0].iter().for_each(|&(id, weight)| near("normalized", weight, all[id] / sum, 1e-6));
}

#[test]
fn experts_of_two_ranks_sum_to_what_each_token_asked_for() {
    let (tokens, experts) = (9, 6);
    let x = wave(tokens, 4, 1.0);
    let matrices: Vec<_> = (0..experts).map(|e| wave(3, 4, 1.0 + e as f64)).collect();
    let routing = Reference.route(&wave(tokens, experts, 2.0), RouterSpec { top_k: 2, normalize: true });
    let tree = ReductionTree::over_ids(experts);
    let ranks = [0..4, 4..6];
    let nodes: Vec<ReferenceTensor> = ranks
        .iter()
        .flat_map(|range| {
            let weights: Vec<_> =
                matrices[range.clone()].iter().map(|m| Reference.pack(m, DType::F32.into())).collect();
            let assignment = Reference.assign(&routing, range.clone());
            let y = Reference.grouped_linear(&x, &assignment, &weights);
            let program = tree.program(range.clone());
            let sums = Reference.combine(&y, &assignment, &program);
            let rows = |node| (node * tokens..(node + 1) * tokens).map(|row| row as u32).collect::<Vec<_>>();
            (0..program.num_nodes()).map(move |node| Reference.gather_rows(&sums, &rows(node)))
        })
        .collect();
    let finish = tree.finish(&ranks);
    for t in 0..tokens {
        for n in 0..3 {
            let got = finish.run(|node| nodes[node].at(t, n))[0];
            let output = |e: usize| {
                wide(x.row(t)).iter().zip(wide(matrices[e].row(n))).map(|(x, w)| x * w).sum::<f64>()
            };
            let want: f64 = routing.chosen[t].iter().map(|&(e, weight)| weight as f64 * output(e)).sum();
            near("combine", got, want, 1e-6);
        }
    }
}

#[test]
fn partial_sums_of_a_tree_finish_as_the_whole_product() {
    let (x, w) = (wave(2, 136, 1.0), wave(5, 136, 1.0));
    let tree = ReductionTree::over_granules(136, 8);
    let whole = Reference.linear(&x, &Reference.pack(&w, DType::F32.into()), None);
    let all = Reference.linear_tree(
        &x,
        &Reference.pack(&w, DType::F32.into()),
        &tree.program(0..tree.num_leaves()),
    );
    for (got, want) in all.data.iter().zip(&whole.data) {
        near("linear_tree", *got, *want as f64, 2e-6);
    }
    for row in 0..2 {
        for n in 0..5 {
            let want: f64 = wide(x.row(row)).iter().zip(wide(w.row(n))).map(|(x, w)| x * w).sum();
            near("linear", whole.at(row, n), want, 2e-6);
        }
    }
}

#[test]
fn sums_of_exponentials_give_the_log_of_their_sum() {
    let logits = wave(3, 75, 9.0);
    let max = Reference.row_max(&logits).unwrap();
    let sums = Reference.exp_sums(&logits, &max, &ReductionTree::over_ids(5).program(0..5)).unwrap();
    for row in 0..3 {
        let want = wide(logits.row(row)).iter().map(|x| x.exp()).sum::<f64>().ln();
        near("log-sum-exp", max[row] + sums[row].ln(), want, 1e-6);
    }
}

#[test]
fn candidates_are_ordered_by_logit_then_column() {
    let logits =
        ReferenceTensor { rows: 1, cols: 6, data: vec![-0.0, 3.0, 0.0, 3.0, f32::NEG_INFINITY, 7.0] };
    let columns = |skip, k| -> Vec<u32> {
        Reference.top_k(&logits, skip, k).unwrap()[0].iter().map(|(_, column)| *column).collect()
    };
    assert_eq!(columns(0, 9), [5, 1, 3, 0, 2, 4]);
    assert_eq!(columns(2, 2), [3, 0]);
    assert!(columns(6, 2).is_empty());
}

#[test]
fn a_gate_multiplies_the_second_half() {
    let x = ReferenceTensor { rows: 1, cols: 4, data: vec![2.0, -1.0, 3.0, 5.0] };
    assert_eq!(Reference.gated(&x, Activation::Relu).data, [6.0, 0.0]);
}
