//! The KV cache of one layer.
//!
//! Of each block and KV head there is one run of memory, which the hardware fetches as one stream:
//!
//! ```text
//!   keys    [head_dim][16 positions]      a panel: 16 scores are 16 lanes
//!   values  [16 positions][head_dim]      rows, padded to whole vectors: lanes are elements
//!   scales  [2][16 positions]             of the keys, of the values, as bf16; only of fp8
//! ```

use tensor::{AttentionSpec, KV_BLOCK, KvDType, KvSpec, SequenceSpan};

use super::{Exec, grain};
use crate::buffer::{Disjoint, Memory};
use crate::simd::{Bf16, Element, KvElement, LANES, with_kv_element};

const _: () = assert!(KV_BLOCK == LANES);

/// One layer's keys and values.
pub struct CpuKv {
    pub(crate) spec: KvSpec,
    memory: Memory,
}

/// What the scales of a block and head take, as often as an element of one byte.
const SCALES: usize = 2 * LANES * size_of::<u16>();

impl CpuKv {
    /// That of the `nth` layer that has one.
    pub(crate) fn new(spec: KvSpec, nth: usize) -> Self {
        let element = match spec.dtype {
            KvDType::Float(dtype) => dtype.bytes(),
            KvDType::Fp8 => 1,
        };
        let bytes = spec.blocks * spec.num_kv_heads * run_len(&spec) * element;
        CpuKv { spec, memory: Memory::staggered(bytes, nth) }
    }

    /// The keys `[head_dim][16]` of a block and head.
    #[inline(always)]
    pub(crate) fn keys<E: Element>(&self, block: u32, head: usize) -> &[E::Bits] {
        &self.run::<E>(block, head)[..self.spec.head_dim * LANES]
    }

    /// The values `[16][head_dim, padded]` of a block and head.
    #[inline(always)]
    pub(crate) fn values<E: Element>(&self, block: u32, head: usize) -> &[E::Bits] {
        let values = self.spec.head_dim * LANES;
        &self.run::<E>(block, head)[values..values + padded(self.spec.head_dim) * LANES]
    }

    /// The scales of a block and head: those of its keys, then those of its values.
    #[inline(always)]
    pub(crate) fn scales(&self, block: u32, head: usize) -> [&[u16; LANES]; 2] {
        let (run, len) = (run_len(&self.spec) / 2, self.spec.blocks * self.spec.num_kv_heads);
        let end = (self.index(block, head) + 1) * run;
        let scales = &self.memory.slice::<u16>(len * run)[end - 2 * LANES..end];
        let [keys, values] = scales.as_chunks().0 else { unreachable!("two groups of 16") };
        [keys, values]
    }

    #[inline(always)]
    fn run<E: Element>(&self, block: u32, head: usize) -> &[E::Bits] {
        let (run, len) = (run_len(&self.spec), self.spec.blocks * self.spec.num_kv_heads);
        &self.memory.slice::<E::Bits>(len * run)[self.index(block, head) * run..][..run]
    }

    #[inline(always)]
    fn index(&self, block: u32, head: usize) -> usize {
        assert!((block as usize) < self.spec.blocks && head < self.spec.num_kv_heads, "beyond the cache");
        block as usize * self.spec.num_kv_heads + head
    }
}

/// Elements of what belongs to a block and head.
#[inline(always)]
fn run_len(spec: &KvSpec) -> usize {
    let scales = if spec.dtype == KvDType::Fp8 { SCALES } else { 0 };
    (spec.head_dim + padded(spec.head_dim)) * LANES + scales
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
    with_kv_element!(dtype, E => {
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
        let run = run_len(&kv.spec);
        let memory = Disjoint::new(kv.memory.slice_mut::<<E as Element>::Bits>(kv.spec.blocks * num_kv_heads * run));
        let rows = sequences.last().map_or(0, |s| s.rows.end);
        exec.pool.split(rows, grain(num_kv_heads * head_dim * 4), |range| {
            let mut narrow = vec![<E as Element>::Bits::default(); head_dim];
            let mut divided = vec![0.0; head_dim];
            for sequence in sequences {
                for row in sequence.rows.start.max(range.start)..sequence.rows.end.min(range.end) {
                    let Some((block, slot)) = places(sequence, row) else { continue };
                    let qkv = &qkv[row * spec.qkv_cols()..(row + 1) * spec.qkv_cols()];
                    for head in 0..num_kv_heads {
                        let at = (block as usize * num_kv_heads + head) * run;
                        let values = head_dim * LANES + slot * padded(head_dim);
                        // SAFETY: no two rows of a step have the same position of the same block, and what each
                        // writes is its position's alone.
                        let write = |index: usize, bits| unsafe { memory.write(at + index, bits) };
                        for (kind, span) in [spec.k(), spec.v()].into_iter().enumerate() {
                            let from = &qkv[span.first_col + head * head_dim..][..head_dim];
                            let scale = E::narrow_head(from, &mut divided, &mut narrow);
                            for (d, &bits) in narrow.iter().enumerate() {
                                let of_values = d / LANES * LANES + E::place(d % LANES);
                                write(if kind == 0 { d * LANES + E::place(slot) } else { values + of_values }, bits);
                            }
                            for (byte, bits) in scale.into_iter().flatten().enumerate() {
                                write(run - SCALES + (kind * LANES + Bf16::place(slot)) * 2 + byte, bits);
                            }
                        }
                    }
                }
            }
        });
    });
}

/// Copies blocks that are here. A block is one run of memory, over all heads.
pub(crate) fn copy(exec: &Exec, kv: &mut CpuKv, pairs: &[(u32, u32)]) {
    let KvSpec { blocks, share, num_kv_heads, .. } = kv.spec;
    let pairs: Vec<(u32, u32)> = share.local_pairs(pairs).collect();
    if num_kv_heads == 0 {
        return;
    }
    let fits = |&(from, to): &(u32, u32)| (from.max(to) as usize) < blocks;
    assert!(pairs.iter().all(fits), "beyond the cache");
    let mut written: Vec<u32> = pairs.iter().map(|&(_, to)| to).collect();
    written.sort_unstable();
    let is_written = |block: &u32| written.binary_search(block).is_ok();
    let alone = written.windows(2).all(|w| w[0] != w[1]) && !pairs.iter().any(|(from, _)| is_written(from));
    assert!(alone, "a block that is written is in one pair only");
    let bytes = kv.memory.bytes() / blocks;
    let memory = Disjoint::new(kv.memory.slice_mut::<u8>(blocks * bytes));
    exec.pool.split(pairs.len(), grain(bytes / LANES), |range| {
        for &(from, to) in &pairs[range] {
            let run = |block: u32| block as usize * bytes..(block as usize + 1) * bytes;
            // SAFETY: whom one thread writes no other reads or writes, as was asserted.
            let (from, to) = unsafe { (memory.part(run(from)), memory.part(run(to))) };
            to.copy_from_slice(from);
        }
    });
}
