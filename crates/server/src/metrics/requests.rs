//! Metrics of single requests, as the front sees them.

use std::time::Instant;

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::timeline::{End, Timeline};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

/// An answer. All of its values are of a few.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    status: u16,
    handler: String,
}

/// Counters and histograms. Cloning shares them.
#[derive(Clone)]
pub struct RequestMetrics {
    http: Family<Answered, Counter>,
    success: Family<Finished, Counter>,
    prompts: Counter,
    params_n: Histogram,
    params_max_tokens: Histogram,
    longest_generation: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    iteration_tokens: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    inference_time: Histogram,
}

const TTFT_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_S: [f64; 18] =
    [0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0];
const REQUEST_S: [f64; 19] = [
    0.05, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0,
    1920.0,
];
const TOKENS: [f64; 18] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0,
    65536.0, 131072.0, 262144.0, 1048576.0,
];

const CHOICES: [f64; 7] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 128.0];

impl Default for RequestMetrics {
    fn default() -> Self {
        let success = Family::<Finished, Counter>::default();
        // A rate needs a counter that was there before.
        for end in End::ALL {
            drop(success.get_or_create(&Finished { finished_reason: end.name() }));
        }
        RequestMetrics {
            http: Family::default(),
            success,
            prompts: Counter::default(),
            params_n: Histogram::new(CHOICES),
            params_max_tokens: Histogram::new(TOKENS),
            longest_generation: Histogram::new(TOKENS),
            prompt_tokens: Histogram::new(TOKENS),
            generation_tokens: Histogram::new(TOKENS),
            iteration_tokens: Histogram::new(TOKENS),
            time_to_first_token: Histogram::new(TTFT_S),
            inter_token_latency: Histogram::new(TOKEN_S),
            time_per_output_token: Histogram::new(TOKEN_S),
            e2e_latency: Histogram::new(REQUEST_S),
            queue_time: Histogram::new(REQUEST_S),
            prefill_time: Histogram::new(REQUEST_S),
            decode_time: Histogram::new(REQUEST_S),
            inference_time: Histogram::new(REQUEST_S),
        }
    }
}

impl RequestMetrics {
    /// Names them.
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Answers to HTTP requests, by route";
        registry.register("http_requests", help, self.http.clone());
        let name = "anysplit:request_success";
        registry.register(name, "Requests that are over, by why", self.success.clone());
        let name = "anysplit:prompt_tokens";
        registry.register(
            name,
            "Prompt tokens of requests that got a token, cached ones too",
            self.prompts.clone(),
        );
        for (name, help, metric) in [
            ("request_params_n", "Completions that were asked for of a prompt", &self.params_n),
            ("request_params_max_tokens", "The most tokens that were asked for", &self.params_max_tokens),
            (
                "request_max_num_generation_tokens",
                "Tokens of the longest completion of a prompt",
                &self.longest_generation,
            ),
            ("request_prompt_tokens", "Prompt tokens of a request", &self.prompt_tokens),
            ("request_generation_tokens", "Tokens that a request got", &self.generation_tokens),
            ("iteration_tokens_total", "Tokens of a step", &self.iteration_tokens),
            (
                "time_to_first_token_seconds",
                "From a request's arrival to its first token",
                &self.time_to_first_token,
            ),
            ("inter_token_latency_seconds", "From a token to the next one", &self.inter_token_latency),
            (
                "request_time_per_output_token_seconds",
                "A request's mean of that",
                &self.time_per_output_token,
            ),
            ("e2e_request_latency_seconds", "From a request's arrival to its end", &self.e2e_latency),
            ("request_queue_time_seconds", "From arrival to the first step", &self.queue_time),
            ("request_prefill_time_seconds", "From the first step to the first token", &self.prefill_time),
            ("request_decode_time_seconds", "From the first token to the last", &self.decode_time),
            ("request_inference_time_seconds", "From the first step to the last token", &self.inference_time),
        ] {
            registry.register(format!("anysplit:{name}"), help, metric.clone());
        }
    }

    /// A HTTP request is answered. `route` is the path of a route, if there is one for it.
    pub fn answered(&self, method: &Method, status: StatusCode, route: Option<&str>) {
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::HEAD => "HEAD",
            Method::OPTIONS => "OPTIONS",
            // Clients may call theirs anything.
            _ => "other",
        };
        let handler = route.unwrap_or("none").replace("{*", "{");
        self.http.get_or_create(&Answered { method, status: status.as_u16(), handler }).inc();
    }

    /// So many completions of a prompt are asked for, of so many tokens each.
    pub fn asked(&self, n: usize, max_tokens: usize) {
        self.params_n.observe(n as f64);
        (0..n).for_each(|_| self.params_max_tokens.observe(max_tokens as f64));
    }

    /// All completions of a prompt have come to their end; the longest has so many tokens.
    pub fn completed(&self, longest: usize) {
        self.longest_generation.observe(longest as f64);
    }

    /// A step of so many tokens.
    pub fn step(&self, tokens: usize) {
        self.iteration_tokens.observe(tokens as f64);
    }

    /// A request's token; its timeline is as before it.
    pub fn token(&self, timeline: &Timeline, now: Instant) {
        let s = |from: Instant| now.saturating_duration_since(from).as_secs_f64();
        match timeline.last_token {
            None => {
                self.prompts.inc_by(timeline.prompt_tokens as u64);
                self.time_to_first_token.observe(s(timeline.arrived));
            }
            Some(before) => self.inter_token_latency.observe(s(before)),
        }
    }

    /// A request is over.
    pub fn ended(&self, timeline: &Timeline, now: Instant, end: End) {
        self.success.get_or_create(&Finished { finished_reason: end.name() }).inc();
        if !matches!(end, End::Stop | End::Length) {
            return;
        }
        let s = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        self.prompt_tokens.observe(timeline.prompt_tokens as f64);
        self.generation_tokens.observe(timeline.completion_tokens as f64);
        self.e2e_latency.observe(s(timeline.arrived, now));
        if let (Some(started), Some(first), Some(last)) =
            (timeline.started, timeline.first_token, timeline.last_token)
        {
            self.queue_time.observe(s(timeline.arrived, started));
            self.prefill_time.observe(s(started, first));
            self.decode_time.observe(s(first, last));
            self.inference_time.observe(s(started, last));
            if timeline.completion_tokens > 1 {
                self.time_per_output_token.observe(s(first, last) / (timeline.completion_tokens - 1) as f64);
            }
        }
    }
}
