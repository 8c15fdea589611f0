//! What single ranks hold and have done. The only file that knows the engine's words for it.

use std::fmt;
use std::time::Instant;

use engine::{RankPulse, RankReport};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

/// Utilization is of no shorter time.
const UTILIZATION_S: f64 = 0.5;

/// A rank, as metrics and the page show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RankState {
    /// Its number.
    pub rank: usize,
    /// Its replica, stage, and place in its tensor-parallel group.
    pub place: (usize, usize, usize),
    /// Where it runs.
    pub host: String,
    /// What it computes on: `cpu`, or a GPU's name.
    pub device: String,
    /// Its layers: the first, and the one behind the last.
    pub layers: (usize, usize),
    /// Steps since it was loaded.
    pub steps: u64,
    /// Seconds that it computed in them.
    pub busy_s: f64,
    /// Seconds in which it exchanged something with other ranks, without waiting for them.
    pub communication_s: f64,
    /// Seconds in which it waited for other ranks.
    pub waiting_s: f64,
    /// Seconds of its last step.
    pub last_step_s: f64,
    /// The share of the time between two of its last reports in which it computed.
    pub utilization: Option<f64>,
    /// When the first of those was, and how long it had computed by then.
    #[serde(skip)]
    since: Option<(Instant, f64)>,
    /// Bytes by kind.
    pub memory_bytes: Memory,
    /// Bytes that it gave to other ranks.
    pub sent_bytes: u64,
    /// Bytes that it took over from the stage before.
    pub received_bytes: u64,
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
    /// What its device has left for it; on CPUs, to all ranks of a host.
    pub free: Option<u64>,
}

impl Memory {
    fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let kinds = [
            ("weights", self.weights),
            ("kv_cache", self.kv_cache),
            ("activations", self.activations),
            ("scratch", self.scratch),
            ("process_peak", self.process_peak),
        ];
        kinds.into_iter().chain(self.free.map(|free| ("free", free)))
    }
}

impl RankState {
    /// A rank that is loaded.
    pub fn loaded(report: &RankReport) -> Self {
        RankState {
            rank: report.rank,
            place: report.place,
            host: report.host.clone(),
            device: report.device.clone(),
            layers: report.layers,
            memory_bytes: Memory {
                weights: report.packed_bytes.max(report.weight_bytes),
                kv_cache: report.kv_cache_bytes,
                activations: report.activation_bytes,
                scratch: report.scratch_bytes,
                process_peak: report.peak_rss_bytes,
                free: None,
            },
            ..RankState::default()
        }
    }

    /// What it has done meanwhile.
    pub fn update(&mut self, pulse: &RankPulse, now: Instant) {
        let (since, busy_s) = *self.since.get_or_insert((now, pulse.busy_s));
        let past_s = now.saturating_duration_since(since).as_secs_f64();
        // Of a short time, a single step is all or nothing.
        if past_s >= UTILIZATION_S {
            // Reports take their time: one that came late must not make it more than all.
            self.utilization = Some(((pulse.busy_s - busy_s) / past_s).clamp(0.0, 1.0));
            self.since = Some((now, pulse.busy_s));
        }
        self.steps = pulse.steps;
        self.busy_s = pulse.busy_s;
        self.communication_s = pulse.communication_s;
        self.waiting_s = pulse.waiting_s;
        self.last_step_s = pulse.last_step_s;
        self.sent_bytes = pulse.sent_bytes;
        self.received_bytes = pulse.received_bytes;
        self.memory_bytes.activations = pulse.activation_bytes;
        self.memory_bytes.scratch = pulse.scratch_bytes;
        self.memory_bytes.process_peak = pulse.peak_rss_bytes;
        self.memory_bytes.free = pulse.free_bytes;
    }
}

/// Writes what there is of each rank.
pub(super) fn encode(ranks: &[RankState], encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
    if ranks.is_empty() {
        return Ok(());
    }
    type Value = fn(&RankState) -> f64;
    let counters: [(&str, &str, Value); 6] = [
        ("rank_steps", "Steps", |rank| rank.steps as f64),
        ("rank_busy_seconds", "Time of steps in which it computed", |rank| rank.busy_s),
        ("rank_communication_seconds", "Time in which it exchanged something with others", |rank| {
            rank.communication_s
        }),
        ("rank_waiting_seconds", "Time in which it waited for other ranks", |rank| rank.waiting_s),
        ("rank_sent_bytes", "Given to other ranks", |rank| rank.sent_bytes as f64),
        ("rank_stage_received_bytes", "Activations taken over from the stage before", |rank| {
            rank.received_bytes as f64
        }),
    ];
    for (name, help, value) in counters {
        let name = format!("anysplit:{name}");
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        for rank in ranks {
            ConstCounter::new(value(rank))
                .encode(metric.encode_family(&[("rank", rank.rank.to_string())])?)?;
        }
    }
    let (name, help) = ("anysplit:rank_last_step_seconds", "How long the last step took");
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for rank in ranks {
        ConstGauge::new(rank.last_step_s)
            .encode(metric.encode_family(&[("rank", rank.rank.to_string())])?)?;
    }
    let help = "Share of the time since it was asked before in which it computed, 1 is all";
    let mut metric = encoder.encode_descriptor("anysplit:rank_utilization", help, None, MetricType::Gauge)?;
    for rank in ranks {
        if let Some(share) = rank.utilization {
            ConstGauge::new(share).encode(metric.encode_family(&[("rank", rank.rank.to_string())])?)?;
        }
    }
    let help = "Memory by kind; free is what the device, or the host with all its ranks, has left";
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn utilization_is_of_the_time_between_two_reports() {
        let (mut rank, began) = (RankState::default(), Instant::now());
        let mut told = |busy_s: f64, at_s: f64| {
            let pulse = RankPulse { busy_s, free_bytes: Some(5), ..RankPulse::default() };
            rank.update(&pulse, began + Duration::from_secs_f64(at_s));
            rank.utilization
        };
        assert_eq!(
            [told(30.0, 0.0), told(33.0, 4.0), told(33.25, 4.25), told(34.5, 6.0), told(99.0, 8.0)],
            [None, Some(0.75), Some(0.75), Some(0.75), Some(1.0)]
        );
        assert!(rank.memory_bytes.kinds().any(|kind| kind == ("free", 5)));
    }
}
