//! A table for people, or one JSON value with the keys of vLLM's results.

use std::io::{self, Write};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::ServeArgs;
use super::date;
use super::load::{Outcome, Run};
use super::metrics::{Metric, Summary, values};
use super::stream::Timing;

/// What is shown and saved.
pub struct Report<'a> {
    pub args: &'a ServeArgs,
    /// The model that was asked.
    pub model: &'a str,
    pub run: &'a Run,
    pub at: SystemTime,
    summary: Summary,
}

impl<'a> Report<'a> {
    pub fn new(args: &'a ServeArgs, model: &'a str, run: &'a Run, at: SystemTime) -> Self {
        Report { summary: Summary::of(run, &args.goodput), args, model, run, at }
    }

    /// The file's name that nobody gave, after vLLM's.
    pub fn file_name(&self) -> String {
        let concurrency = self.args.max_concurrency.map_or(String::new(), |n| format!("-concurrency{n}"));
        let model = self.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let clean = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let model: String = model.chars().map(clean).collect();
        let (backend, rate, at) =
            (self.args.endpoint_type.name(), self.args.request_rate, date::stamp(self.at));
        format!("{backend}-{rate}qps{concurrency}-{model}-{at}.json")
    }

    /// One value, as vLLM saves it.
    pub fn json(&self) -> Value {
        let (args, summary) = (self.args, &self.summary);
        let or_inf = |rate: f64| if rate.is_finite() { json!(rate) } else { json!("inf") };
        let mut result = Map::new();
        let mut put = |key: &str, value: Value| {
            result.insert(key.to_owned(), value);
        };
        put("date", json!(date::stamp(self.at)));
        put("backend", json!(args.endpoint_type.name()));
        put("model_id", json!(self.model));
        put("dataset_name", json!(args.dataset_name.name()));
        put("seed", json!(args.seed));
        put("num_prompts", json!(args.num_prompts));
        put("request_rate", or_inf(args.request_rate));
        put("burstiness", or_inf(args.burstiness));
        put("max_concurrency", json!(args.max_concurrency));
        put("interrupted", json!(self.run.stopped_by.is_some()));
        put("duration", json!(summary.duration_s));
        put("completed", json!(summary.completed));
        put("failed", json!(summary.failed));
        put("total_input_tokens", json!(summary.input_tokens));
        put("total_output_tokens", json!(summary.output_tokens));
        put("request_throughput", json!(summary.per_second(summary.completed)));
        put("request_goodput", json!(summary.good.map(|good| summary.per_second(good))));
        put("output_throughput", json!(summary.per_second(summary.output_tokens)));
        put(
            "total_token_throughput",
            json!(summary.per_second(summary.output_tokens + summary.input_tokens)),
        );
        put("max_output_tokens_per_s", json!(summary.peak_output_throughput));
        put("max_concurrent_requests", json!(summary.peak_concurrency));
        for &metric in &args.percentile_metrics {
            let (key, of) = (metric.key(), values(self.run, metric));
            put(&format!("mean_{key}_ms"), json!(of.mean()));
            put(&format!("median_{key}_ms"), json!(of.percentile(50.0)));
            put(&format!("std_{key}_ms"), json!(of.std()));
            for percent in &args.metric_percentiles {
                put(&format!("p{percent}_{key}_ms"), json!(of.percentile(*percent)));
            }
        }
        if args.save_detailed {
            let outcomes = &self.run.outcomes;
            // Of a request that failed: zeros, as in vLLM's results.
            let each = |of: fn(&Outcome, Option<&Timing>) -> Value| -> Value {
                outcomes.iter().map(|outcome| of(outcome, outcome.timing.as_ref().ok())).collect()
            };
            put("input_lens", each(|_, t| json!(t.map_or(0, |t| t.prompt_tokens.unwrap_or(0)))));
            put("output_lens", each(|_, t| json!(t.map_or(0, |t| t.output_tokens))));
            put("start_times", each(|outcome, _| json!(outcome.sent.as_secs_f64())));
            put("ttfts", each(|_, t| json!(t.map_or(0.0, |t| t.ttft.as_secs_f64()))));
            put(
                "itls",
                each(|_, t| t.into_iter().flat_map(|t| &t.itls).map(|itl| itl.as_secs_f64()).collect()),
            );
            put("errors", each(|outcome, _| json!(outcome.timing.as_ref().err().map_or("", |e| e))));
        }
        Value::Object(result)
    }

    /// The table.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let (args, summary) = (self.args, &self.summary);
        title(out, " Serving Benchmark Result ", '=')?;
        count(out, "Successful requests:", summary.completed)?;
        count(out, "Failed requests:", summary.failed)?;
        if let Some(concurrency) = args.max_concurrency {
            count(out, "Maximum request concurrency:", concurrency)?;
        }
        if args.request_rate.is_finite() {
            number(out, "Request rate configured (req/s):", args.request_rate)?;
        }
        number(out, "Benchmark duration (s):", summary.duration_s)?;
        count(out, "Total input tokens:", summary.input_tokens)?;
        count(out, "Total generated tokens:", summary.output_tokens)?;
        number(out, "Request throughput (req/s):", summary.per_second(summary.completed))?;
        if let Some(good) = summary.good {
            number(out, "Request goodput (req/s):", summary.per_second(good))?;
        }
        number(out, "Output token throughput (tok/s):", summary.per_second(summary.output_tokens))?;
        number(out, "Peak output token throughput (tok/s):", summary.peak_output_throughput)?;
        count(out, "Peak concurrent requests:", summary.peak_concurrency)?;
        let total = summary.per_second(summary.output_tokens + summary.input_tokens);
        number(out, "Total token throughput (tok/s):", total)?;
        for &metric in &args.percentile_metrics {
            let (name, heading) = match metric {
                Metric::Ttft => ("TTFT", "Time to First Token"),
                Metric::Tpot => ("TPOT", "Time per Output Token (excl. 1st token)"),
                Metric::Itl => ("ITL", "Inter-token Latency"),
                Metric::E2el => ("E2EL", "End-to-end Latency"),
            };
            let of = values(self.run, metric);
            title(out, heading, '-')?;
            number(out, &format!("Mean {name} (ms):"), of.mean())?;
            number(out, &format!("Median {name} (ms):"), of.percentile(50.0))?;
            for percent in &args.metric_percentiles {
                number(out, &format!("P{percent} {name} (ms):"), of.percentile(*percent))?;
            }
        }
        title(out, "", '=')
    }
}

fn title(out: &mut impl Write, text: &str, fill: char) -> io::Result<()> {
    const WIDTH: usize = 50;
    let left = (WIDTH - text.len()) / 2;
    let line = |n: usize| fill.to_string().repeat(n);
    writeln!(out, "{}{text}{}", line(left), line(WIDTH - text.len() - left))
}

fn count(out: &mut impl Write, name: &str, value: usize) -> io::Result<()> {
    writeln!(out, "{name:<40} {value}")
}

fn number(out: &mut impl Write, name: &str, value: f64) -> io::Result<()> {
    writeln!(out, "{name:<40} {value:.2}")
}
