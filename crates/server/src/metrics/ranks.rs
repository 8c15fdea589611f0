//! What single ranks hold and have spent. The only file that knows the engine's report of a rank.

use std::fmt;
use std::time::Duration;

use engine::RankReport;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

/// A rank, as metrics and the page show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RankState {
    /// Its number.
    pub rank: usize,
    /// Its replica, stage, and place in its tensor-parallel group.
    pub place: (usize, usize, usize),
    /// Where it runs.
    pub host: String,
    /// Its layers: the first, and the one behind the last.
    pub layers: (usize, usize),
    /// Seconds at work.
    pub busy_s: f64,
    /// Seconds in collectives.
    pub communication_s: f64,
    /// Of those, seconds of waiting for other ranks, in the steps that are known in detail.
    pub waiting_s: f64,
    /// Seconds of its last step.
    pub last_step_s: Option<f64>,
    /// Bytes by kind.
    pub memory_bytes: Memory,
    /// Bytes that it gave to all-reduces for one forward pass.
    pub all_reduce_bytes: u64,
    /// Bytes that it sent to single ranks for one forward pass.
    pub sent_bytes: u64,
}

/// Bytes of a rank by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights, as they are kept.
    pub weights: u64,
    /// The KV cache.
    pub kv_cache: u64,
    /// The most that activations took.
    pub activations: u64,
    /// The most that operations took for themselves.
    pub scratch: u64,
    /// The most that the process had.
    pub process_peak: u64,
}

impl Memory {
    fn kinds(&self) -> [(&'static str, u64); 5] {
        [
            ("weights", self.weights),
            ("kv_cache", self.kv_cache),
            ("activations", self.activations),
            ("scratch", self.scratch),
            ("process_peak", self.process_peak),
        ]
    }
}

/// The ranks of a report.
pub fn rank_states(reports: &[RankReport]) -> Vec<RankState> {
    reports.iter().map(rank_state).collect()
}

fn rank_state(report: &RankReport) -> RankState {
    let steps = [&report.prefill, &report.decode].into_iter().flatten();
    let waited: Duration = steps.flat_map(|step| &step.parts).map(|part| part.waited).sum();
    RankState {
        rank: report.rank,
        place: report.place,
        host: report.host.clone(),
        layers: report.layers,
        busy_s: report.busy_s,
        communication_s: report.all_reduce_s,
        waiting_s: waited.as_secs_f64(),
        last_step_s: report.decode.as_ref().or(report.prefill.as_ref()).map(|step| step.time().as_secs_f64()),
        memory_bytes: Memory {
            weights: report.packed_bytes.max(report.weight_bytes),
            kv_cache: report.kv_cache_bytes,
            activations: report.activation_bytes,
            scratch: report.scratch_bytes,
            process_peak: report.peak_rss_bytes,
        },
        all_reduce_bytes: report.all_reduce_bytes,
        sent_bytes: report.sent_bytes,
    }
}

/// Writes what there is of each rank.
pub(super) fn encode(ranks: &[RankState], encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
    if ranks.is_empty() {
        return Ok(());
    }
    type Value = fn(&RankState) -> Option<f64>;
    let counters: [(&str, &str, Value); 2] = [
        ("rank_busy_seconds", "Time at work", |rank| Some(rank.busy_s)),
        ("rank_communication_seconds", "Time in collectives", |rank| Some(rank.communication_s)),
    ];
    let gauges: [(&str, &str, Value); 4] = [
        ("rank_waiting_seconds", "Waiting for other ranks, of the steps known in detail", |rank| {
            Some(rank.waiting_s)
        }),
        ("rank_last_step_seconds", "How long the last step took", |rank| rank.last_step_s),
        ("rank_all_reduce_bytes", "Given to all-reduces for one forward pass", |rank| {
            Some(rank.all_reduce_bytes as f64)
        }),
        ("rank_sent_bytes", "Sent to single ranks for one forward pass", |rank| Some(rank.sent_bytes as f64)),
    ];
    for (name, help, value) in counters {
        let name = format!("anysplit:{name}");
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        for rank in ranks {
            if let Some(value) = value(rank) {
                ConstCounter::new(value).encode(metric.encode_family(&[("rank", rank.rank.to_string())])?)?;
            }
        }
    }
    for (name, help, value) in gauges {
        let name = format!("anysplit:{name}");
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for rank in ranks {
            if let Some(value) = value(rank) {
                ConstGauge::new(value).encode(metric.encode_family(&[("rank", rank.rank.to_string())])?)?;
            }
        }
    }
    let help = "Memory by kind";
    let mut metric =
        encoder.encode_descriptor("anysplit:rank_memory_bytes", help, None, MetricType::Gauge)?;
    for rank in ranks {
        for (kind, bytes) in rank.memory_bytes.kinds() {
            let labels = [("rank", rank.rank.to_string()), ("kind", kind.to_owned())];
            ConstGauge::new(bytes as f64).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
