//! The KV cache of one layer.
//!
//! ```text
//!   keys    [block][kv_head][head_dim][16 positions]     a panel: 16 scores are 16 lanes
//!   values  [block][kv_head][16 positions][head_dim]     rows, padded to whole vectors: lanes are elements
//! ```

use tensor::{AttentionSpec, KV_BLOCK, KvSpec, SequenceSpan};

use super::{Exec, grain};
use crate::buffer::{Disjoint, Memory};
use crate::simd::{Element, LANES, with_element};

const _: () = assert!(KV_BLOCK == LANES);

/// One layer's keys and values.
pub struct CpuKv {
    pub(crate) spec: KvSpec,
    keys: Memory,
    values: Memory,
}

impl CpuKv {
    pub(crate) fn new(spec: KvSpec) -> Self {
        let heads = spec.blocks * spec.num_kv_heads;
        let bytes = |head_dim: usize| heads * LANES * head_dim * spec.dtype.bytes();
        CpuKv {
            spec,
            keys: Memory::zeroed(bytes(spec.head_dim)),
            values: Memory::zeroed(bytes(padded(spec.head_dim))),
        }
    }

    /// The keys `[head_dim][16]` of a block and head.
    #[inline(always)]
    pub(crate) fn keys<E: Element>(&self, block: u32, head: usize) -> &[E::Bits] {
        let len = self.spec.head_dim * LANES;
        &self.all::<E>(&self.keys, self.spec.head_dim)[self.index(block, head) * len..][..len]
    }

    /// The values `[16][head_dim, padded]` of a block and head.
    #[inline(always)]
    pub(crate) fn values<E: Element>(&self, block: u32, head: usize) -> &[E::Bits] {
        let len = padded(self.spec.head_dim) * LANES;
        &self.all::<E>(&self.values, padded(self.spec.head_dim))[self.index(block, head) * len..][..len]
    }

    #[inline(always)]
    fn all<'a, E: Element>(&self, memory: &'a Memory, head_dim: usize) -> &'a [E::Bits] {
        assert_eq!(size_of::<E::Bits>(), self.spec.dtype.bytes());
        memory.slice(self.spec.blocks * self.spec.num_kv_heads * LANES * head_dim)
    }

    #[inline(always)]
    fn index(&self, block: u32, head: usize) -> usize {
        assert!((block as usize) < self.spec.blocks && head < self.spec.num_kv_heads, "beyond the cache");
        block as usize * self.spec.num_kv_heads + head
    }
}

/// Elements of a row of values.
#[inline(always)]
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Writes keys and values of every row whose block is here to their places, rounded to the cache's type.
pub(crate) fn store(
    exec: &Exec,
    kv: &mut CpuKv,
    qkv: &[f32],
    sequences: &[SequenceSpan],
    spec: &AttentionSpec,
) {
    let KvSpec { num_kv_heads, head_dim, dtype, .. } = kv.spec;
    assert_eq!((spec.num_kv_heads, spec.head_dim), (num_kv_heads, head_dim), "the cache holds these heads");
    with_element!(dtype, E => {
        let places = |sequence: &SequenceSpan, row: usize| {
            let position = sequence.start + row - sequence.rows.start;
            let block = kv.spec.share.local(sequence.block_table[position / KV_BLOCK])?;
            Some((block, position % KV_BLOCK))
        };
        // Checked before any thread starts, so that `kv` can be taken apart.
        for sequence in sequences {
            for row in sequence.rows.clone() {
                let fits = places(sequence, row).is_none_or(|(block, _)| (block as usize) < kv.spec.blocks);
                assert!(num_kv_heads == 0 || fits, "beyond the cache");
            }
        }
        let len = kv.spec.blocks * num_kv_heads * LANES;
        let keys = Disjoint::new(kv.keys.slice_mut::<<E as Element>::Bits>(len * head_dim));
        let values = Disjoint::new(kv.values.slice_mut::<<E as Element>::Bits>(len * padded(head_dim)));
        let rows = sequences.last().map_or(0, |s| s.rows.end);
        exec.pool.split(rows, grain(num_kv_heads * head_dim * 4), |range| {
            let mut narrow = vec![<E as Element>::Bits::default(); head_dim];
            for sequence in sequences {
                for row in sequence.rows.start.max(range.start)..sequence.rows.end.min(range.end) {
                    let Some((block, slot)) = places(sequence, row) else { continue };
                    let qkv = &qkv[row * spec.qkv_cols()..(row + 1) * spec.qkv_cols()];
                    for head in 0..num_kv_heads {
                        let at = (block as usize * num_kv_heads + head) * LANES;
                        E::narrow(&qkv[spec.k().first_col + head * head_dim..][..head_dim], &mut narrow);
                        for (d, &bits) in narrow.iter().enumerate() {
                            // SAFETY: no two rows of a step have the same position of the same block.
                            unsafe { keys.write(at * head_dim + d * LANES + E::place(slot), bits) };
                        }
                        E::narrow(&qkv[spec.v().first_col + head * head_dim..][..head_dim], &mut narrow);
                        for (d, &bits) in narrow.iter().enumerate() {
                            let place = d / LANES * LANES + E::place(d % LANES);
                            // SAFETY: as above.
                            unsafe { values.write((at + slot) * padded(head_dim) + place, bits) };
                        }
                    }
                }
            }
        });
    });
}
