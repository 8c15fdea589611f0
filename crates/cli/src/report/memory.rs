//! What each rank needed memory for.

use comfy_table::{CellAlignment, Table, presets};
use engine::RankReport;

use super::bytes;

/// A line per rank, and what its columns mean. `replicas`: of the model.
pub fn table(ranks: &[RankReport], replicas: usize) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "memory of rank",
        "weights",
        "packed",
        "KV cache",
        "KV/token",
        "activations",
        "scratch",
        "process's peak",
    ]);
    for r in ranks {
        let sizes = [
            r.weight_bytes,
            r.packed_bytes,
            r.kv_cache_bytes,
            r.kv_bytes_per_token,
            r.activation_bytes,
            r.scratch_bytes,
            r.peak_rss_bytes,
        ];
        table.add_row(std::iter::once(r.rank.to_string()).chain(sizes.map(bytes)));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut legend = "(weights: elements × stored type; packed: what they take in this rank's memory, in the kernels' layout; the \
                      process's peak is taken before the limits are measured, so without their buffers"
        .to_owned();
    if replicas > 1 {
        legend += "; replicas on a host that map the same packed checkpoint have its pages in memory once";
    }
    format!("{table}\n{legend})")
}
