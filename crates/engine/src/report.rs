//! What one rank holds and has spent.

use collective::Coordinates;
use model::parallel::ExpertCounts;
use serde::{Deserialize, Serialize};

/// What one rank holds and has spent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// The rank.
    pub rank: usize,
    /// Its replica, stage, and place in its tensor-parallel group.
    pub place: (usize, usize, usize),
    /// The host that it runs on.
    pub host: String,
    /// Its layers: the first, and the one behind the last.
    pub layers: (usize, usize),
    /// Its query heads.
    pub query_heads: usize,
    /// The KV heads that they read.
    pub kv_heads: usize,
    /// Elements times stored type.
    pub weight_bytes: u64,
    /// What packed weights take.
    pub packed_bytes: u64,
    /// What its KV cache takes.
    pub kv_cache_bytes: u64,
    /// What one token takes in it.
    pub kv_bytes_per_token: u64,
    /// What it would take if no ranks shared their caches.
    pub kv_replicated_bytes_per_token: u64,
    /// All-reduces of one forward pass.
    pub all_reduce_calls: u64,
    /// Bytes that it contributed to those.
    pub all_reduce_bytes: u64,
    /// Seconds in all-reduces since the start.
    pub all_reduce_s: f64,
    /// Exchanges of embedding rows, sums and candidates for one forward pass and its choice.
    pub vocab_collective_calls: u64,
    /// Bytes that it sent to single ranks for one forward pass: activations, tokens for experts.
    pub sent_bytes: u64,
    /// What it has counted of its layers' experts since the last report, by layer.
    pub experts: Vec<(usize, ExpertCounts)>,
    /// Seconds at work, not waiting for the stage before, since the last call of the engine began.
    pub busy_s: f64,
    /// Seconds of the all-reduce of one row, where that was measured.
    pub row_all_reduce_s: Option<f64>,
    /// The most memory that its process has had, in bytes; 0 where the system doesn't say.
    pub peak_rss_bytes: u64,
}

impl RankReport {
    /// Its place in the mesh.
    pub fn coordinates(&self) -> Coordinates {
        Coordinates { dp: self.place.0, pp: self.place.1, tp: self.place.2 }
    }
}
