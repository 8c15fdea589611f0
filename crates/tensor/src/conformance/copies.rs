//! KV blocks that are copied.

use super::agreement::ALL_BITS;
use super::attention::spec;
use super::values::Values;
use super::{Agreement, Agreements, Case, Found, compare};
use crate::{AttentionSpec, Device, KV_BLOCK, KvDType, KvShare, KvSpec, SequenceSpan, StepMeta};

/// [`Device::copy_kv`]: attention over copied blocks is that over the originals, which stay as they were; blocks of other
/// owners are passed over.
///
/// # Panics
/// If the device differs from [`crate::Reference`], or copies from originals.
pub fn copies(dev: &impl Device) {
    copies_agreeing(dev, ALL_BITS);
}

/// [`copies`] of a device that does not have the reference's bits over every type of cache.
///
/// # Panics
/// If the device differs by more from [`crate::Reference`], or copies at all from originals.
pub fn copies_agreeing(dev: &impl Device, agreements: Agreements<'_>) {
    let shapes = [(1, 1, 8), (4, 2, 16), (2, 2, 80), (3, 1, 12)];
    for dtype in KvDType::ALL {
        let agreement = agreements(dtype);
        for ((heads, kv_heads, head_dim), blocks) in shapes.into_iter().zip([1, 3, 70, 2]) {
            let spec = spec(heads, kv_heads, head_dim);
            for owners in [1, 2, 3] {
                let case = Copies { spec, dtype, agreement, blocks, owners };
                agreement.check(dev, &case);
                let found = case.run(dev);
                let name = format!("{}, a copy against its original", dev.name());
                compare(&name, &case, &found[1..2], &found[..1]);
            }
        }
    }
    let nothing = AttentionSpec { num_heads: 0, num_kv_heads: 0, ..spec(1, 1, 8) };
    let dtype = KvDType::Fp8;
    let agreement = agreements(dtype);
    agreement.check(dev, &Copies { spec: nothing, dtype, agreement, blocks: 2, owners: 1 });
}

/// A sequence whose blocks are copied, the last one before it is full.
#[derive(Debug)]
struct Copies {
    spec: AttentionSpec,
    dtype: KvDType,
    agreement: Agreement,
    /// Of the sequence.
    blocks: usize,
    owners: usize,
}

impl Copies {
    /// The blocks of the sequence and of its copy: mixed, all with the last owner.
    fn tables(&self) -> [Vec<u32>; 2] {
        let blocks = Values::new(self.blocks).shuffled(2 * self.blocks);
        let owned = |block: &u32| block * self.owners as u32 + self.owners as u32 - 1;
        let (from, to) = blocks.split_at(self.blocks);
        [from, to].map(|blocks| blocks.iter().map(owned).collect())
    }

    /// Stores rows of a sequence from position `start` on, and gives what the last of them sees.
    fn step<D: Device>(
        &self,
        dev: &D,
        kv: &mut D::Kv,
        table: &[u32],
        start: usize,
        rows: usize,
        seed: usize,
    ) -> Found {
        let cols = self.spec.qkv_cols();
        let values = self.agreement.round_queries(Values::new(seed).vec(rows * cols), &self.spec);
        let qkv = dev.upload(&values, rows, cols);
        let sequences = vec![SequenceSpan { rows: 0..rows, start, block_table: table.to_vec() }];
        let step = dev.begin(&StepMeta { tokens: vec![0; rows], sequences, logit_rows: Vec::new() });
        dev.store_kv(kv, &qkv, &step, &self.spec);
        let q = dev.gather_cols(&qkv, 0..self.spec.num_heads * self.spec.head_dim);
        let seen = dev.attention_segments(&q, kv, &step, &self.spec, rows - 1..rows);
        Found::tensor(dev, "attention_segments", &seen)
    }
}

impl Case for Copies {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let AttentionSpec { num_kv_heads, head_dim, .. } = self.spec;
        let share = KvShare { owners: self.owners, owner: self.owners - 1 };
        let blocks = 2 * self.blocks;
        let mut kv = dev.alloc_kv(KvSpec { blocks, share, num_kv_heads, head_dim, dtype: self.dtype });
        let [table, copy] = self.tables();
        let length = self.blocks * KV_BLOCK - 3;
        self.step(dev, &mut kv, &table, 0, length, 1);
        let mut pairs: Vec<(u32, u32)> = table.iter().copied().zip(copy.iter().copied()).collect();
        if self.owners > 1 {
            pairs.insert(0, (0, self.owners as u32));
        }
        dev.copy_kv(&mut kv, &pairs);
        dev.copy_kv(&mut kv, &[]);
        // Each goes on alike; then the copy goes another way, of which the original knows nothing.
        let steps = [(&table, length, 2), (&copy, length, 2), (&copy, length, 3), (&table, length + 1, 4)];
        steps.map(|(table, start, seed)| self.step(dev, &mut kv, table, start, 1, seed)).into()
    }
}
