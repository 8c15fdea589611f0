//! Attention as NUMERICS.md, rule 4, states it.

use std::ops::Range;

use super::{ReferenceKv, ReferenceTensor, dot, max, rows, sum_of_lanes};
use crate::{AttentionSpec, KV_BLOCK, SequenceSpan, StepMeta, math};

/// Positions that share one update of the running maximum.
const TILE: usize = 64;
/// Positions that are summed on their own before they are merged with those before them.
const SEGMENT: usize = 1024;

pub(super) fn store(kv: &mut ReferenceKv, qkv: &ReferenceTensor, step: &StepMeta, spec: &AttentionSpec) {
    check(kv, qkv, step, spec);
    let (k, v) = (spec.k().first_col, spec.v().first_col);
    for sequence in &step.sequences {
        for (i, row) in sequence.rows.clone().enumerate() {
            let rounded = |cols: &[f32]| cols.iter().map(|&x| kv.spec.dtype.round(x)).collect::<Vec<_>>();
            let keys_and_values = (rounded(&qkv.row(row)[k..v]), rounded(&qkv.row(row)[v..]));
            let place = place(kv, sequence, sequence.start + i);
            kv.written[place] = Some(keys_and_values);
        }
    }
}

pub(super) fn attention(
    qkv: &ReferenceTensor,
    kv: &ReferenceKv,
    step: &StepMeta,
    spec: &AttentionSpec,
) -> ReferenceTensor {
    check(kv, qkv, step, spec);
    let head_dim = spec.head_dim;
    let mut out = ReferenceTensor::from_fn(qkv.rows, spec.num_heads * head_dim, |_, _| f32::NAN);
    for sequence in &step.sequences {
        for (i, row) in sequence.rows.clone().enumerate() {
            for head in 0..spec.num_heads {
                let kv_head = (head + spec.first_in_group) / spec.group;
                let columns = kv_head * head_dim..(kv_head + 1) * head_dim;
                let q = &qkv.row(row)[head * head_dim..(head + 1) * head_dim];
                let key = |position| &read(kv, sequence, position).0[columns.clone()];
                let value = |position| &read(kv, sequence, position).1[columns.clone()];
                let o = attend(q, sequence.start + i, key, value, spec);
                let first = row * out.cols + head * head_dim;
                out.data[first..first + head_dim].copy_from_slice(&o);
            }
        }
    }
    out
}

fn check(kv: &ReferenceKv, qkv: &ReferenceTensor, step: &StepMeta, spec: &AttentionSpec) {
    assert_eq!([qkv.rows, qkv.cols], [step.num_rows(), spec.qkv_cols()], "shape of qkv");
    assert_eq!(
        (kv.spec.num_kv_heads, kv.spec.head_dim),
        (spec.num_kv_heads, spec.head_dim),
        "heads of the cache"
    );
}

/// Where a position lies in the cache.
fn place(kv: &ReferenceKv, sequence: &SequenceSpan, position: usize) -> usize {
    let block = sequence.block_table[position / KV_BLOCK] as usize;
    assert!(block < kv.spec.blocks, "position {position} is in block {block} of {}", kv.spec.blocks);
    block * KV_BLOCK + position % KV_BLOCK
}

fn read<'a>(kv: &'a ReferenceKv, sequence: &SequenceSpan, position: usize) -> &'a (Vec<f32>, Vec<f32>) {
    let place = place(kv, sequence, position);
    let written = kv.written[place].as_ref();
    written.unwrap_or_else(|| {
        panic!("position {position} is read, but nothing was written to block {} for it", place / KV_BLOCK)
    })
}

/// What is known of a query after some of its positions.
struct Running {
    /// The largest score.
    m: f32,
    /// The sum of the weights.
    l: f32,
    /// The sum of the weighted values.
    o: Vec<f32>,
}

/// One query at `position`.
fn attend<'a>(
    q: &[f32],
    position: usize,
    key: impl Fn(usize) -> &'a [f32],
    value: impl Fn(usize) -> &'a [f32],
    spec: &AttentionSpec,
) -> Vec<f32> {
    let first = spec.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let mut merged: Option<Running> = None;
    for segment in cut(first..position + 1, SEGMENT) {
        let mut running = Running { m: f32::NEG_INFINITY, l: 0.0, o: vec![0.0; q.len()] };
        for tile in cut(segment, TILE) {
            let scores: Vec<f32> = tile.clone().map(|p| score(q, key(p), spec)).collect();
            let values: Vec<&[f32]> = tile.clone().map(&value).collect();
            running.add_tile(tile, &scores, &values);
        }
        merged = Some(match merged {
            None => running,
            Some(before) => before.merge(running),
        });
    }
    let Running { l, o, .. } = merged.expect("a query sees at least itself");
    o.into_iter().map(|o| o / l).collect()
}

/// A range cut at the multiples of `size`.
fn cut(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = range.start / size..range.end.div_ceil(size);
    parts.map(move |i| range.start.max(i * size)..range.end.min((i + 1) * size))
}

fn score(q: &[f32], k: &[f32], spec: &AttentionSpec) -> f32 {
    let score = dot(q, k) * spec.scale;
    spec.softcap.map_or(score, |cap| rows::softcap(score, cap))
}

impl Running {
    fn add_tile(&mut self, tile: Range<usize>, scores: &[f32], values: &[&[f32]]) {
        let m = max(self.m, scores.iter().copied().fold(f32::NEG_INFINITY, max));
        let c = if self.m == f32::NEG_INFINITY { 0.0 } else { math::exp(self.m - m) };
        let weights: Vec<f32> = scores.iter().map(|score| math::exp(score - m)).collect();
        let mut lanes = [0.0; 16];
        for (position, weight) in tile.zip(&weights) {
            lanes[position % 16] += weight;
        }
        self.m = m;
        self.l = f32::mul_add(self.l, c, sum_of_lanes(lanes));
        for (d, o) in self.o.iter_mut().enumerate() {
            *o *= c;
            for (weight, value) in weights.iter().zip(values) {
                *o = f32::mul_add(*weight, value[d], *o);
            }
        }
    }

    /// Of two segments, `self` before `other`.
    fn merge(self, other: Running) -> Running {
        let m = max(self.m, other.m);
        let (a, b) = (math::exp(self.m - m), math::exp(other.m - m));
        let join = |x: f32, y: f32| f32::mul_add(x, a, y * b);
        let o = self.o.iter().zip(&other.o).map(|(&x, &y)| join(x, y)).collect();
        Running { m, l: join(self.l, other.l), o }
    }
}
