//! When a request came, started, gave tokens and ended: what metrics and the page tell of it. No prompts, no text.

use std::time::Instant;

use engine::FinishReason;
use serde::Serialize;

use crate::rates::Pace;

/// Why a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens`.
    Length,
    /// The client left, or the deadline passed.
    Abort,
    /// It was refused, or the worker failed.
    Error,
}

impl End {
    /// Each of them.
    pub const ALL: [End; 4] = [End::Stop, End::Length, End::Abort, End::Error];

    /// That of a completion that ended as it should.
    pub fn of(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => End::Stop,
            FinishReason::Length => End::Length,
        }
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::Length => "length",
            End::Abort => "abort",
            End::Error => "error",
        }
    }
}

/// A request's times.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// When its HTTP request was there.
    pub arrived: Instant,
    /// Its first step.
    pub started: Option<Instant>,
    /// Its first token.
    pub first_token: Option<Instant>,
    /// Its latest token.
    pub last_token: Option<Instant>,
    /// How quickly those behind the first come.
    pub pace: Option<Pace>,
    /// Each time that it lost its blocks.
    pub preempted: Vec<Instant>,
    /// Each time that it went on after that.
    pub resumed: Vec<Instant>,
    /// Whether it waits again after that.
    pub is_preempted: bool,
    /// Of its prompt.
    pub prompt_tokens: usize,
    /// Of those, that were in the cache.
    pub cached_tokens: usize,
    /// Chosen so far.
    pub completion_tokens: usize,
}

impl Timeline {
    /// That of a request that has just been asked for.
    pub fn new(arrived: Instant, prompt_tokens: usize) -> Self {
        Timeline {
            arrived,
            started: None,
            first_token: None,
            last_token: None,
            pace: None,
            preempted: Vec::new(),
            resumed: Vec::new(),
            is_preempted: false,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
        }
    }

    /// How the page shows it: seconds since `epoch`.
    pub fn entry(&self, id: &str, epoch: Instant, ended: Option<(Instant, End)>) -> Entry {
        let s = |at: Instant| at.saturating_duration_since(epoch).as_secs_f64();
        let state = match (ended, self.started, self.is_preempted) {
            (Some(_), ..) => "ended",
            (None, None, _) => "waiting",
            (None, Some(_), true) => "preempted",
            (None, Some(_), false) if self.first_token.is_none() => "prefill",
            (None, Some(_), false) => "decode",
        };
        Entry {
            id: id.to_owned(),
            state,
            arrived_s: s(self.arrived),
            started_s: self.started.map(s),
            first_token_s: self.first_token.map(s),
            ended_s: ended.map(|(at, _)| s(at)),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.completion_tokens,
            preempted_s: self.preempted.iter().copied().map(s).collect(),
            resumed_s: self.resumed.iter().copied().map(s).collect(),
            finish_reason: ended.map(|(_, end)| end.name()),
        }
    }
}

/// A row of the waterfall. Times are seconds since the server began.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// The completion's id, and which of its choices.
    pub id: String,
    /// `waiting`, `prefill`, `decode`, `preempted` or `ended`.
    pub state: &'static str,
    /// When it came.
    pub arrived_s: f64,
    /// Its first step.
    pub started_s: Option<f64>,
    /// Its first token.
    pub first_token_s: Option<f64>,
    /// Its end.
    pub ended_s: Option<f64>,
    /// Of its prompt.
    pub prompt_tokens: usize,
    /// Of those, that were in the cache.
    pub cached_tokens: usize,
    /// Chosen so far.
    pub completion_tokens: usize,
    /// Each time that it lost its KV blocks.
    pub preempted_s: Vec<f64>,
    /// Each time that it went on after that.
    pub resumed_s: Vec<f64>,
    /// `stop`, `length`, `abort` or `error`.
    pub finish_reason: Option<&'static str>,
}
