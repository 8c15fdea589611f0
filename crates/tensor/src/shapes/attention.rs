//! Shapes and costs of the KV cache and of attention.

use super::{FUNCTION, ShapeTensor, cost, same};
use crate::{AttentionSpec, KV_BLOCK, KvSpec, OpCost, SequenceSpan, StepMeta};

pub(super) fn store(kv: &KvSpec, qkv: &ShapeTensor, step: &StepMeta, spec: &AttentionSpec) -> OpCost {
    check("store_kv", kv, qkv, step, spec);
    for sequence in &step.sequences {
        blocks_exist("store_kv", sequence, sequence.start, kv);
    }
    let elements = qkv.rows * 2 * kv.num_kv_heads * kv.head_dim;
    OpCost { kv_bytes: (elements * kv.dtype.bytes()) as u64, ..cost(0, elements) }
}

pub(super) fn attention(
    qkv: &ShapeTensor,
    kv: &KvSpec,
    step: &StepMeta,
    spec: &AttentionSpec,
) -> (ShapeTensor, OpCost) {
    check("attention", kv, qkv, step, spec);
    let AttentionSpec { num_heads, num_kv_heads, group, first_in_group, head_dim, .. } = *spec;
    if num_heads > 0 {
        let last = (num_heads - 1 + first_in_group) / group;
        assert!(last < num_kv_heads, "attention: the last query head reads KV head {last} of {num_kv_heads}");
    }
    let window = spec.window.unwrap_or(usize::MAX);
    assert!(window > 0, "attention: a window of no positions");
    let (mut seen, mut read) = (0, 0);
    for sequence in step.sequences.iter().filter(|sequence| !sequence.rows.is_empty()) {
        let ends = sequence.start + 1..=sequence.start + sequence.rows.len();
        let first = ends.start().saturating_sub(window);
        blocks_exist("attention", sequence, first, kv);
        read += ends.end() - first;
        seen += ends.map(|end| end.min(window)).sum::<usize>();
    }
    let y = ShapeTensor { rows: qkv.rows, cols: num_heads * head_dim };
    let softcap = if spec.softcap.is_some() { FUNCTION + 2 } else { 0 };
    let flops = seen * num_heads * (4 * head_dim + FUNCTION + softcap);
    let kv_bytes = (read * 2 * num_kv_heads * head_dim * kv.dtype.bytes()) as u64;
    (y, OpCost { kv_bytes, ..cost(flops, 2 * y.len()) })
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
        assert!((*block as usize) < kv.blocks, "{op}: block {block} of {}", kv.blocks);
    }
}
