//! Attention as NUMERICS.md, rule 4, states it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::types::{Heads, Scaled};
use super::{ReferenceKv, ReferenceTensor, dot, max, rows, sum_of_lanes};
use crate::{AttentionSpec, KV_BLOCK, SeenSegment, SequenceSpan, StepMeta, math, seen_segments};

/// Positions that share one update of the running maximum.
const TILE: usize = 64;

pub(super) fn store(kv: &mut ReferenceKv, qkv: &ReferenceTensor, step: &StepMeta, spec: &AttentionSpec) {
    check(kv, qkv, step, spec);
    let (k, v) = (spec.k().first_col, spec.v().first_col);
    for sequence in &step.sequences {
        for (i, row) in sequence.rows.clone().enumerate() {
            let rounded = |cols: &[f32]| {
                let heads = cols.chunks(spec.head_dim);
                heads.map(|head| kv.spec.dtype.round(head)).collect::<Vec<_>>()
            };
            let keys_and_values = (rounded(&qkv.row(row)[k..v]), rounded(&qkv.row(row)[v..]));
            if let Some(place) = place(kv, sequence, sequence.start + i) {
                kv.written[place] = Some(keys_and_values);
            }
        }
    }
}

pub(super) fn copy(kv: &mut ReferenceKv, pairs: &[(u32, u32)]) {
    for (from, to) in kv.spec.share.local_pairs(pairs) {
        let places = |block: u32| block as usize * KV_BLOCK..(block as usize + 1) * KV_BLOCK;
        let copied = kv.written[places(from)].to_vec();
        kv.written[places(to)].clone_from_slice(&copied);
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
        for row in sequence.rows.clone() {
            for head in 0..spec.num_heads {
                let seen = seen_segments(&step.sequences, spec.window, row..row + 1);
                let segments = seen.map(|seen| one_segment(qkv, kv, sequence, &seen, head, spec));
                let o = merge_all(segments);
                let first = row * out.cols + head * head_dim;
                out.data[first..first + head_dim].copy_from_slice(&o);
            }
        }
    }
    out
}

pub(super) fn segments(
    q: &ReferenceTensor,
    kv: &ReferenceKv,
    step: &StepMeta,
    spec: &AttentionSpec,
    rows: Range<usize>,
) -> ReferenceTensor {
    assert_eq!([q.rows, q.cols], [step.num_rows(), spec.num_heads * spec.head_dim], "shape of q");
    check_heads(kv, spec);
    let mut data = Vec::new();
    for head in 0..spec.num_heads {
        for seen in seen_segments(&step.sequences, spec.window, rows.clone()) {
            if kv.spec.share.local(seen.block).is_some() {
                let sequence = step.sequences.iter().find(|s| s.rows.contains(&seen.row));
                let sequence = sequence.expect("a row belongs to a sequence");
                let Running { m, l, o } = one_segment(q, kv, sequence, &seen, head, spec);
                data.extend([m, l]);
                data.extend(o);
            }
        }
    }
    let cols = 2 + spec.head_dim;
    ReferenceTensor { rows: data.len() / cols, cols, data }
}

pub(super) fn merge(
    parts: &ReferenceTensor,
    owners: usize,
    step: &StepMeta,
    spec: &AttentionSpec,
    rows: Range<usize>,
    out: &mut ReferenceTensor,
) {
    let seen: Vec<SeenSegment> = seen_segments(&step.sequences, spec.window, rows.clone()).collect();
    let (heads, head_dim) = (spec.num_heads, spec.head_dim);
    assert_eq!([parts.rows, parts.cols], [heads * seen.len(), 2 + head_dim], "shape of parts");
    assert_eq!([out.rows, out.cols], [step.num_rows(), heads * head_dim], "shape of out");
    // Every segment's row of `parts`, found by counting through them in the order in which they were written.
    let mut places = BTreeMap::new();
    for owner in 0..owners {
        for head in 0..heads {
            for of_owner in seen.iter().filter(|seen| seen.owner(owners) == owner) {
                places.insert((of_owner.row, head, of_owner.segment), places.len());
            }
        }
    }
    for row in rows {
        for head in 0..heads {
            let segments = places.range((row, head, 0)..(row, head + 1, 0)).map(|(_, &place)| {
                let part = parts.row(place);
                Running { m: part[0], l: part[1], o: part[2..].to_vec() }
            });
            let o = merge_all(segments);
            let first = row * out.cols + head * head_dim;
            out.data[first..first + head_dim].copy_from_slice(&o);
        }
    }
}

fn check(kv: &ReferenceKv, qkv: &ReferenceTensor, step: &StepMeta, spec: &AttentionSpec) {
    assert_eq!([qkv.rows, qkv.cols], [step.num_rows(), spec.qkv_cols()], "shape of qkv");
    check_heads(kv, spec);
}

fn check_heads(kv: &ReferenceKv, spec: &AttentionSpec) {
    assert_eq!(
        (kv.spec.num_kv_heads, kv.spec.head_dim),
        (spec.num_kv_heads, spec.head_dim),
        "heads of the cache"
    );
}

/// Where a position lies in the cache, if it is here.
fn place(kv: &ReferenceKv, sequence: &SequenceSpan, position: usize) -> Option<usize> {
    let block = kv.spec.share.local(sequence.block_table[position / KV_BLOCK])? as usize;
    assert!(block < kv.spec.blocks, "position {position} is in block {block} of {}", kv.spec.blocks);
    Some(block * KV_BLOCK + position % KV_BLOCK)
}

fn read<'a>(kv: &'a ReferenceKv, sequence: &SequenceSpan, position: usize) -> &'a (Heads, Heads) {
    let place = place(kv, sequence, position);
    let place = place.unwrap_or_else(|| panic!("position {position} is read, but its block is not here"));
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

/// A query's segment; `q` begins with the query heads' columns.
fn one_segment(
    q: &ReferenceTensor,
    kv: &ReferenceKv,
    sequence: &SequenceSpan,
    seen: &SeenSegment,
    head: usize,
    spec: &AttentionSpec,
) -> Running {
    let head_dim = spec.head_dim;
    let kv_head = (head + spec.first_in_group) / spec.group;
    let q = &q.row(seen.row)[head * head_dim..(head + 1) * head_dim];
    let mut running = Running { m: f32::NEG_INFINITY, l: 0.0, o: vec![0.0; head_dim] };
    for tile in cut(seen.positions.clone(), TILE) {
        let read = |position| read(kv, sequence, position);
        let scores: Vec<f32> = tile.clone().map(|p| score(q, &read(p).0[kv_head], spec)).collect();
        let values: Vec<&Scaled> = tile.clone().map(|p| &read(p).1[kv_head]).collect();
        running.add_tile(tile, &scores, &values);
    }
    running
}

/// The result of a query's segments, in ascending order.
fn merge_all(segments: impl Iterator<Item = Running>) -> Vec<f32> {
    let Running { l, o, .. } = segments.reduce(Running::merge).expect("a query sees at least itself");
    o.into_iter().map(|o| o / l).collect()
}

/// A range cut at the multiples of `size`.
fn cut(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = range.start / size..range.end.div_ceil(size);
    parts.map(move |i| range.start.max(i * size)..range.end.min((i + 1) * size))
}

fn score(q: &[f32], (k, k_scale): &Scaled, spec: &AttentionSpec) -> f32 {
    let score = dot(q, k) * k_scale * spec.scale;
    spec.softcap.map_or(score, |cap| rows::softcap(score, cap))
}

impl Running {
    fn add_tile(&mut self, tile: Range<usize>, scores: &[f32], values: &[&Scaled]) {
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
            for (weight, (value, scale)) in weights.iter().zip(values) {
                *o = f32::mul_add(weight * scale, value[d], *o);
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
