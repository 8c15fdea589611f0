//! kernels/attention_split.cuh.

use crate::kv::TILE;

/// For each type of cache. Over f32 there is another (kernels/attention_exact.cu).
pub(crate) const KERNELS: [&str; 4] =
    ["", "attention_split_bfloat", "attention_split_half", "attention_split_fp8"];
/// Rows of a block: a row is a token with one of the heads that read a KV head.
pub(super) const ROWS: usize = 16;
/// Threads of a block.
pub(super) const THREADS: usize = 32 * WARPS;
const WARPS: usize = 8;
/// Columns of a slice of weighted values, and some between rows.
const STRIDE: usize = 64 + 8;

/// What its struct of shared memory has, then queries and sums.
pub(super) fn shared_bytes(head_dim: usize) -> usize {
    let (of_warp, of_row) = (ROWS * (STRIDE + 3), 2 + 4);
    4 * (WARPS * of_warp + ROWS * of_row + 4) + ROWS * head_dim.next_multiple_of(TILE) * (2 + 4)
}
