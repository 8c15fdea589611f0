//! Heads that are normed, rotated and stored at once.

use super::attention::spec;
use super::values::Values;
use super::{Case, Found, compare};
use crate::{
    AttentionSpec, Device, HeadSpan, Heads, KvDType, KvShare, KvSpec, NormKind, NormSpec, RopeSpec,
    SequenceSpan, StepMeta,
};

/// [`Device::rotate_store`] gives what the operations one by one give: queries, and what attention finds of keys and values.
///
/// # Panics
/// If the device differs from itself.
pub fn rotated(dev: &impl Device) {
    let kinds = [None, Some(NormKind::Rms { weight_offset: 1.0 }), Some(NormKind::Layer)];
    let specs = [spec(4, 2, 16), spec(3, 1, 80), spec(1, 1, 12)];
    for (i, dtype) in KvDType::ALL.into_iter().enumerate() {
        for (j, norm) in kinds.into_iter().enumerate() {
            let spec = specs[(i + j) % specs.len()];
            for pairs in [0, spec.head_dim / 4, spec.head_dim / 2] {
                for share in [KvShare::WHOLE, KvShare { owners: 2, owner: 1 }] {
                    let case = |at_once| Rotated { spec, dtype, norm, pairs, share, at_once };
                    let (found, expected) = (case(true).run(dev), case(false).run(dev));
                    compare(&format!("{}, against itself", dev.name()), &case(true), &found, &expected);
                }
            }
        }
    }
}

#[derive(Debug)]
struct Rotated {
    spec: AttentionSpec,
    dtype: KvDType,
    norm: Option<NormKind>,
    /// Rotated pairs; without any there is no table.
    pairs: usize,
    share: KvShare,
    at_once: bool,
}

impl Case for Rotated {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let spec = &self.spec;
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = *spec;
        let (blocks, share) = (6, self.share);
        let kv_spec = KvSpec { blocks, share, num_kv_heads, head_dim, dtype: self.dtype };
        let mut kv = dev.alloc_kv(kv_spec);
        // With two owners, every other block is here.
        let table = |first: u32| (0..3).map(|i| first + i * share.owners as u32).collect();
        let owned = share.owner as u32;
        let sequences = vec![
            SequenceSpan { rows: 0..35, start: 0, block_table: table(owned) },
            SequenceSpan { rows: 35..36, start: 0, block_table: table(owned + 3 * share.owners as u32) },
        ];
        let (rows, cols) = (36, spec.qkv_cols());
        let meta = StepMeta { tokens: vec![0; rows], sequences, logit_rows: Vec::new() };
        let step = dev.begin(&meta);
        let mut values = Values::new(cols + self.pairs);
        let mut qkv = dev.upload(&values.scaled(rows * cols, 1.5), rows, cols);
        let weights: [D::Tensor; 2] = std::array::from_fn(|_| dev.upload(&values.vec(head_dim), 1, head_dim));
        let inv_freq = (0..self.pairs).map(|pair| 0.7f32.powi(pair as i32)).collect();
        let table = (self.pairs > 0).then(|| dev.rope_table(&step, &RopeSpec { inv_freq }));
        let norm = self.norm.map(|kind| NormSpec { kind, eps: 1e-6 });
        if self.at_once {
            let [q, k] = &weights;
            let heads = Heads { norms: norm.map(|norm| ([q, k], norm)), table: table.as_ref() };
            dev.rotate_store(&mut kv, &mut qkv, heads, &step, spec);
        } else {
            for (span, weight) in [spec.q(), spec.k()].into_iter().zip(&weights) {
                norm.iter().for_each(|norm| dev.head_norm(&mut qkv, span, weight, *norm));
            }
            let both = HeadSpan { first_col: 0, heads: num_heads + num_kv_heads, head_dim };
            table.iter().for_each(|table| dev.rope(&mut qkv, both, table));
            dev.store_kv(&mut kv, &qkv, &step, spec);
        }
        let queries = dev.gather_cols(&qkv, 0..num_heads * head_dim);
        let seen = dev.attention_segments(&queries, &kv, &step, spec, 0..rows);
        vec![
            Found::tensor(dev, "rotate_store: queries", &queries),
            Found::tensor(dev, "rotate_store: keys and values", &seen),
        ]
    }
}
