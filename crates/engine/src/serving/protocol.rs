//! What front and worker tell each other.

use serde::{Deserialize, Serialize};

use crate::{FinishReason, GenerateBatch, Logprobs, RankPulse, RankReport};

/// To the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToEngine {
    /// Runs requests. Their ids have not been used before.
    Submit {
        /// Names the first in events; the others have the ids behind it.
        id: u64,
        /// What is wanted.
        batch: GenerateBatch,
    },
    /// Ends a request before its next step; no event of it follows once the worker has read this.
    Abort {
        /// The request.
        id: u64,
    },
    /// Asks for [`FromEngine::Pulses`], which come when all replicas are between two of their steps.
    Pulse,
    /// Ends the worker, whatever runs.
    Stop,
}

/// From the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromEngine {
    /// Weights that are loaded, in bytes, and all of them.
    Loading {
        /// Loaded.
        done: u64,
        /// In all.
        total: u64,
    },
    /// The model is loaded: requests can come.
    Ready(EngineInfo),
    /// What became of requests, in order.
    Events(Vec<Event>),
    /// How busy it is, whenever that has changed: after each step, and after what changes it without one; and the tokens of
    /// each step since the last time.
    Load(LoadReport, Vec<usize>),
    /// What each rank holds and has done since it was loaded.
    Pulses(Vec<RankPulse>),
    /// It has failed and ends. One line.
    Failed {
        /// What went wrong, and on which rank.
        message: String,
        /// Whether the user's input is the cause.
        is_usage: bool,
    },
}

/// What the front needs to know of a loaded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Longest sequence: prompt and completion. No more than the KV cache has room for.
    pub max_model_len: usize,
    /// What it would be if the KV cache had room.
    pub full_model_len: usize,
    /// Ids of the vocabulary are below this.
    pub vocab_size: usize,
    /// Sequences that run at a time, over all replicas.
    pub max_num_seqs: usize,
    /// Tokens that the KV caches of all replicas hold.
    pub kv_cache_tokens: usize,
    /// Bytes of all ranks' KV caches.
    pub kv_cache_bytes: u64,
    /// In what those are other than one may have wanted. One line each.
    pub kv_cache_warnings: Vec<String>,
    /// Sizes of the axes: tp, pp, dp, ep; and sequence parallelism.
    pub parallel: (usize, usize, usize, usize, bool),
    /// What weights are kept in, and quantised to.
    pub dtype: String,
    /// What weights are quantised to.
    pub quantization: Option<String>,
    /// In which order sums are made: `canonical` or `fast`.
    pub reduction: String,
    /// Seconds that loading took.
    pub load_s: f64,
    /// What each rank holds.
    pub ranks: Vec<RankReport>,
}

impl EngineInfo {
    /// The longest sequence in words, and why it is that if the model could take a longer one.
    pub fn longest(&self) -> String {
        match (self.max_model_len, self.full_model_len) {
            (len, full) if len < full => {
                format!("{len} tokens (not {full}: the server's KV cache has room for no more)")
            }
            (len, _) => format!("{len} tokens"),
        }
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Its first step has been issued, or the first after a preemption.
    Started {
        /// The request.
        id: u64,
        /// Tokens of the prompt that were in the KV cache already.
        cached_tokens: usize,
    },
    /// Log-probabilities of prompt tokens, in order; `None` of the first. All of them come before the first token.
    Prompt {
        /// The request.
        id: u64,
        /// Of the tokens that follow those told of before.
        logprobs: Vec<Option<Logprobs>>,
    },
    /// A token was chosen.
    Token {
        /// The request.
        id: u64,
        /// The token; of a request that ends by a stop token, that.
        token: u32,
        /// If they were asked for.
        logprobs: Option<Logprobs>,
        /// Why the request ended with it, if it did.
        end: Option<FinishReason>,
    },
    /// Its KV blocks were taken for requests before it; it waits, and goes on where it was.
    Preempted {
        /// The request.
        id: u64,
    },
    /// It can't be run. Nothing of it follows.
    Refused {
        /// The request.
        id: u64,
        /// One line.
        message: String,
    },
}

impl Event {
    /// The request that it is about.
    pub fn id(&self) -> u64 {
        match *self {
            Event::Started { id, .. }
            | Event::Prompt { id, .. }
            | Event::Token { id, .. }
            | Event::Preempted { id }
            | Event::Refused { id, .. } => id,
        }
    }

    /// Whether nothing of the request follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Refused { .. } | Event::Token { end: Some(_), .. })
    }
}

/// How busy a worker is: the state after a step, and sums since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait, preempted ones among them.
    pub waiting: usize,
    /// KV blocks, over all replicas.
    pub kv_blocks: usize,
    /// Those that running requests hold.
    pub kv_blocks_used: usize,
    /// Those that nobody holds, but whose contents can be used again.
    pub kv_blocks_cached: usize,
    /// Prompt tokens that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Those that were found.
    pub prefix_hits: u64,
    /// How often a running request lost its blocks.
    pub preemptions: u64,
    /// Prompt tokens that were computed.
    pub prompt_tokens: u64,
    /// Tokens that were chosen.
    pub generation_tokens: u64,
    /// Steps.
    pub steps: u64,
    /// Tokens of the last step, over its sequences.
    pub last_step_tokens: usize,
    /// Seconds that it took.
    pub last_step_s: f64,
    /// Seconds from step to step in which leaders of a single stage were at neither a forward pass nor a choice, but scheduled,
    /// told others and noted what was, since it began. Steps of a pipeline overlap: nothing of those.
    pub between_steps_s: f64,
}

impl LoadReport {
    /// That of replicas that work side by side.
    pub(crate) fn beside(self, other: LoadReport) -> LoadReport {
        LoadReport {
            running: self.running + other.running,
            waiting: self.waiting + other.waiting,
            kv_blocks: self.kv_blocks + other.kv_blocks,
            kv_blocks_used: self.kv_blocks_used + other.kv_blocks_used,
            kv_blocks_cached: self.kv_blocks_cached + other.kv_blocks_cached,
            prefix_queries: self.prefix_queries + other.prefix_queries,
            prefix_hits: self.prefix_hits + other.prefix_hits,
            preemptions: self.preemptions + other.preemptions,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            generation_tokens: self.generation_tokens + other.generation_tokens,
            steps: self.steps + other.steps,
            last_step_tokens: self.last_step_tokens.max(other.last_step_tokens),
            last_step_s: self.last_step_s.max(other.last_step_s),
            between_steps_s: self.between_steps_s + other.between_steps_s,
        }
    }
}
