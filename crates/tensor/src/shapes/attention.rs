//! Shapes and costs of the KV cache and of attention.

use std::collections::BTreeMap;
use std::ops::Range;
use std::slice;

use super::{FUNCTION, ShapeTensor, cost, same};
use crate::{
    AttentionSpec, KV_BLOCK, KvShare, KvSpec, OpCost, SeenSegment, SequenceSpan, StepMeta, seen_segments,
};

pub(super) fn store(kv: &KvSpec, qkv: &ShapeTensor, step: &StepMeta, spec: &AttentionSpec) -> OpCost {
    check("store_kv", kv, qkv, step, spec);
    for sequence in &step.sequences {
        blocks_exist("store_kv", sequence, sequence.start, kv);
    }
    let here = |s: &SequenceSpan| {
        let positions = s.start..s.start + s.rows.len();
        positions.filter(|p| kv.share.local(s.block_table[p / KV_BLOCK]).is_some()).count()
    };
    let rows: usize = step.sequences.iter().map(here).sum();
    OpCost { kv_bytes: kv_bytes(rows, kv), ..cost(0, rows * 2 * kv.num_kv_heads * kv.head_dim) }
}

pub(super) fn copy(kv: &KvSpec, pairs: &[(u32, u32)]) -> OpCost {
    let exists = |&block: &u32| assert!(kv.holds(block), "copy_kv: block {block} of {}", kv.blocks);
    pairs.iter().for_each(|(from, to)| [from, to].into_iter().for_each(exists));
    let blocks = kv.share.local_pairs(pairs).count();
    OpCost { kv_bytes: 2 * kv_bytes(blocks * KV_BLOCK, kv), ..cost(0, 0) }
}

pub(super) fn attention(
    qkv: &ShapeTensor,
    kv: &KvSpec,
    step: &StepMeta,
    spec: &AttentionSpec,
) -> (ShapeTensor, OpCost) {
    check("attention", kv, qkv, step, spec);
    check_heads("attention", kv, spec);
    assert!(
        kv.share == KvShare::WHOLE,
        "attention: of {} owners' blocks only one's are here",
        kv.share.owners
    );
    let AttentionSpec { num_heads, head_dim, .. } = *spec;
    let window = spec.window.unwrap_or(usize::MAX);
    let (mut seen, mut read) = (0, 0);
    for sequence in step.sequences.iter().filter(|sequence| !sequence.rows.is_empty()) {
        let ends = sequence.start + 1..=sequence.start + sequence.rows.len();
        let first = ends.start().saturating_sub(window);
        blocks_exist("attention", sequence, first, kv);
        read += ends.end() - first;
        seen += ends.map(|end| end.min(window)).sum::<usize>();
    }
    let y = ShapeTensor { rows: qkv.rows, cols: num_heads * head_dim };
    (y, OpCost { kv_bytes: kv_bytes(read, kv), ..cost(flops(seen, spec), 2 * y.len()) })
}

pub(super) fn segments(
    q: &ShapeTensor,
    kv: &KvSpec,
    step: &StepMeta,
    spec: &AttentionSpec,
    rows: Range<usize>,
) -> (ShapeTensor, OpCost) {
    const OP: &str = "attention_segments";
    same(OP, "shape of q", [q.rows, q.cols], [step.num_rows(), spec.num_heads * spec.head_dim]);
    check_heads(OP, kv, spec);
    let (mut segments, mut seen, mut read) = (0, 0, 0);
    for sequence in &step.sequences {
        // Up to where rows before have read each segment.
        let mut ends: BTreeMap<usize, usize> = BTreeMap::new();
        let all = seen_segments(slice::from_ref(sequence), spec.window, rows.clone());
        for SeenSegment { segment, positions, block, .. } in all {
            assert!(kv.holds(block), "{OP}: block {block} of {}", kv.blocks);
            if kv.share.local(block).is_some() {
                let end = ends.entry(segment).or_insert(positions.start);
                segments += 1;
                seen += positions.len();
                read += positions.end - *end;
                *end = positions.end;
            }
        }
    }
    let y = ShapeTensor { rows: spec.num_heads * segments, cols: 2 + spec.head_dim };
    let q_elements = rows.len() * q.cols;
    (y, OpCost { kv_bytes: kv_bytes(read, kv), ..cost(flops(seen, spec), q_elements + y.len()) })
}

pub(super) fn merge(
    parts: &ShapeTensor,
    step: &StepMeta,
    spec: &AttentionSpec,
    rows: Range<usize>,
    out: &ShapeTensor,
) -> OpCost {
    const OP: &str = "merge_segments";
    let seen = seen_segments(&step.sequences, spec.window, rows.clone()).count();
    let (heads, head_dim) = (spec.num_heads, spec.head_dim);
    same(OP, "shape of parts", [parts.rows, parts.cols], [heads * seen, 2 + head_dim]);
    same(OP, "shape of out", [out.rows, out.cols], [step.num_rows(), heads * head_dim]);
    let merges = heads * (seen - rows.len().min(seen));
    cost(merges * (3 * head_dim + 2 * FUNCTION) + rows.len() * out.cols, parts.len() + rows.len() * out.cols)
}

fn flops(seen: usize, spec: &AttentionSpec) -> usize {
    let softcap = if spec.softcap.is_some() { FUNCTION + 2 } else { 0 };
    seen * spec.num_heads * (4 * spec.head_dim + FUNCTION + softcap)
}

fn kv_bytes(positions: usize, kv: &KvSpec) -> u64 {
    (positions * 2 * kv.num_kv_heads * kv.dtype.bytes(kv.head_dim)) as u64
}

fn check_heads(op: &str, kv: &KvSpec, spec: &AttentionSpec) {
    same(op, "KV heads of the cache", kv.num_kv_heads, spec.num_kv_heads);
    same(op, "head_dim of the cache", kv.head_dim, spec.head_dim);
    assert!(spec.window != Some(0), "{op}: a window of no positions");
    let AttentionSpec { num_heads, num_kv_heads, group, first_in_group, .. } = *spec;
    if num_heads > 0 {
        let last = (num_heads - 1 + first_in_group) / group;
        assert!(last < num_kv_heads, "{op}: the last query head reads KV head {last} of {num_kv_heads}");
    }
}

fn check(op: &str, kv: &KvSpec, qkv: &ShapeTensor, step: &StepMeta, spec: &AttentionSpec) {
    same(op, "shape of qkv", [qkv.rows, qkv.cols], [step.num_rows(), spec.qkv_cols()]);
    same(op, "KV heads of the cache", kv.num_kv_heads, spec.num_kv_heads);
    same(op, "head_dim of the cache", kv.head_dim, spec.head_dim);
}

/// Blocks before `first` may be gone: what no window sees is freed.
fn blocks_exist(op: &str, sequence: &SequenceSpan, first: usize, kv: &KvSpec) {
    let end = sequence.start + sequence.rows.len();
    for block in &sequence.block_table[first / KV_BLOCK..end.div_ceil(KV_BLOCK)] {
        assert!(kv.holds(*block), "{op}: block {block} of {}", kv.blocks);
    }
}
