use tensor::{Device, KvDType, KvSpec};

use crate::parallel::{Layout, Stage};

/// A rank's keys and values of the layers of its stage.
pub struct KvCache<D: Device> {
    pub(crate) layers: Vec<D::Kv>,
    bytes: u64,
}

impl<D: Device> KvCache<D> {
    /// This rank's part of a cache of `blocks` blocks: all of them, or what its context group leaves to it.
    pub fn new(dev: &D, layout: &Layout, stage: &Stage, rank: usize, blocks: usize, dtype: KvDType) -> Self {
        let share = layout.kv_share(rank);
        let blocks = blocks.div_ceil(share.owners);
        let spec = |layer| KvSpec {
            blocks,
            share,
            num_kv_heads: layout.attention(layer, rank).num_kv_heads,
            head_dim: layout.config.head_dim,
            dtype,
        };
        let layers = stage.layers.clone().map(|layer| dev.alloc_kv(spec(layer))).collect();
        let per_token = replicated_bytes_per_token(layout, stage, rank, dtype);
        let bytes = per_token * (blocks * tensor::KV_BLOCK) as u64;
        KvCache { layers, bytes }
    }

    /// Copies blocks in all layers, from the first of each pair to the second, as [`Device::copy_kv`] says.
    pub fn copy_blocks(&mut self, dev: &D, pairs: &[(u32, u32)]) {
        if !pairs.is_empty() {
            self.layers.iter_mut().for_each(|kv| dev.copy_kv(kv, pairs));
        }
    }

    /// Size of the cache.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Bytes that one token's keys and values take on a rank of a stage, on average if its context group shares them.
pub fn bytes_per_token(layout: &Layout, stage: &Stage, rank: usize, dtype: KvDType) -> u64 {
    replicated_bytes_per_token(layout, stage, rank, dtype).div_ceil(layout.context_parallel() as u64)
}

/// What [`bytes_per_token`] is, or would be, where every rank has all positions of its KV heads.
pub fn replicated_bytes_per_token(layout: &Layout, stage: &Stage, rank: usize, dtype: KvDType) -> u64 {
    let heads: usize = stage.layers.clone().map(|layer| layout.attention(layer, rank).num_kv_heads).sum();
    (2 * heads * dtype.bytes(layout.config.head_dim)) as u64
}
