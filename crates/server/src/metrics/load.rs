//! Metrics of the worker: its load, its KV cache, its ranks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;

use super::Snapshot;

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let load = &self.load;
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        // What is on its way to the worker waits too.
        let waiting = load.waiting.max(self.queued);
        for (name, help, value) in [
            ("num_requests_running", "Requests that run", load.running as f64),
            ("num_requests_waiting", "Requests that wait", waiting as f64),
            (
                "kv_cache_usage_perc",
                "Share of KV blocks that requests hold, 1 is all",
                share(load.kv_blocks_used, load.kv_blocks),
            ),
            (
                "kv_cache_cached_perc",
                "Share of KV blocks that nobody holds and whose contents can be used again",
                share(load.kv_blocks_cached, load.kv_blocks),
            ),
            ("last_step_seconds", "How long the last step took", load.last_step_s),
        ] {
            let gauge = ConstGauge::new(value);
            let name = format!("anysplit:{name}");
            let metric = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        // vLLM's other reason, what is not ready yet, doesn't exist here.
        let help = "Requests that wait, by what for: capacity is KV blocks, or a place in the batch";
        let name = "anysplit:num_requests_waiting_by_reason";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(waiting as f64).encode(metric.encode_family(&[("reason", "capacity")])?)?;
        for (name, help, value) in [
            (
                "prefix_cache_queries",
                "Prompt tokens that were looked up in the prefix cache",
                load.prefix_queries as f64,
            ),
            ("prefix_cache_hits", "Prompt tokens that were found there", load.prefix_hits as f64),
            ("num_preemptions", "How often a running request lost its KV blocks", load.preemptions as f64),
            (
                "computed_prompt_tokens",
                "Prompt tokens that were computed: not those that were cached, and again those of preempted requests",
                load.prompt_tokens as f64,
            ),
            ("generation_tokens", "Tokens that were chosen", load.generation_tokens as f64),
            ("steps", "Steps of the engine", load.steps as f64),
            ("between_steps_seconds", "Time of the worker between steps", load.between_steps_s),
        ] {
            let counter = ConstCounter::new(value);
            let name = format!("anysplit:{name}");
            let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        if let Some(info) = &self.info {
            let labels = [
                ("kv_cache_tokens", info.kv_cache_tokens.to_string()),
                ("kv_cache_bytes", info.kv_cache_bytes.to_string()),
                ("num_blocks", load.kv_blocks.to_string()),
                ("max_model_len", info.max_model_len.to_string()),
                ("max_num_seqs", info.max_num_seqs.to_string()),
            ];
            let labels = Info::new(labels.to_vec());
            let help = "What the KV cache has room for";
            let metric =
                encoder.encode_descriptor("anysplit:cache_config", help, None, labels.metric_type())?;
            labels.encode(metric)?;
        }
        super::ranks::encode(&self.ranks, &mut encoder)
    }
}
