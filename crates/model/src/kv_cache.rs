use tensor::{DType, Device, KvSpec};

use crate::parallel::{Layout, Stage};

/// A rank's keys and values of the layers of its stage.
pub struct KvCache<D: Device> {
    pub(crate) layers: Vec<D::Kv>,
    bytes: u64,
}

impl<D: Device> KvCache<D> {
    /// A cache of `blocks` blocks on this rank.
    pub fn new(dev: &D, layout: &Layout, stage: &Stage, rank: usize, blocks: usize, dtype: DType) -> Self {
        let spec = |layer| KvSpec {
            blocks,
            num_kv_heads: layout.attention(layer, rank).num_kv_heads,
            head_dim: layout.config.head_dim,
            dtype,
        };
        let layers = stage.layers.clone().map(|layer| dev.alloc_kv(spec(layer))).collect();
        let bytes = bytes_per_token(layout, stage, rank, dtype) * (blocks * tensor::KV_BLOCK) as u64;
        KvCache { layers, bytes }
    }

    /// Size of the cache.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Bytes that one token's keys and values take on a rank of a stage.
pub fn bytes_per_token(layout: &Layout, stage: &Stage, rank: usize, dtype: DType) -> u64 {
    let heads: usize = stage.layers.clone().map(|layer| layout.attention(layer, rank).num_kv_heads).sum();
    (2 * heads * layout.config.head_dim * dtype.bytes()) as u64
}
