//! What a server is told when it starts.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use engine::serving::{EngineInfo, FromEngine, QueueLimits, ToEngine};
use engine::text::Tokenizer;

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// What clients may call the model: answers have the name that they were asked for by, else the first. At least one.
    pub served_model_names: Vec<String>,
    /// Keys, of which a request must have one; with none, no request needs any.
    pub api_keys: Vec<String>,
    /// Names besides the loopback's own that `Host` may have. On other addresses than the loopback, with none here, any.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may read answers (CORS); `*` is all of them.
    pub allowed_origins: Vec<String>,
    /// How the model writes calls of tools: hermes, llama3_json, mistral, pythonic or
    /// qwen3_coder. By default what its chat template shows.
    pub tool_call_parser: Option<String>,
    /// What the seeds of requests that give none come from: each from it and the request's place. By default from the system.
    pub seed: Option<u64>,
    /// What a client may take.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Whether the server ends, with an error, when its worker fails. Else it stays, not healthy, and waits for another one.
    pub ends_with_worker: bool,
    /// What is told on stderr.
    pub log_level: LogLevel,
    /// What `/version` says.
    pub version: String,
}

/// What a client may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read or parsed.
    pub body_bytes_total: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Connections at a time; more wait to be accepted. At least one.
    pub connections: u32,
    /// What may wait for a place to run in; more is refused with 429.
    pub queue: QueueLimits,
}

/// How long things may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// From the first wait for a request's head to its end; so also how long a connection may be idle.
    pub head: Duration,
    /// For a body to arrive.
    pub body: Duration,
    /// For a client to take any byte of what is written to it.
    pub write: Duration,
    /// For a request, from its arrival to the end of its answer.
    pub request: Option<Duration>,
    /// For the first news of a stream: until then it can be an error with a status.
    pub first: Duration,
    /// Between two signs of life of a stream.
    pub quiet: Duration,
    /// For what runs when the server is told to end.
    pub shutdown: Duration,
    /// For a step, while there is work; `/ready` fails beyond it.
    pub step: Duration,
}

/// What is told on stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// Start and end of the server and its worker.
    #[default]
    Info,
    /// One line per request.
    Debug,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            served_model_names: vec!["model".into()],
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            tool_call_parser: None,
            seed: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            ends_with_worker: false,
            log_level: LogLevel::default(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: 16 << 20,
            body_bytes_total: 256 << 20,
            head_bytes: 64 << 10,
            headers: 100,
            connections: 4096,
            queue: QueueLimits { requests: 4096, tokens: 16 << 20 },
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Timeouts {
            head: seconds(30),
            body: seconds(60),
            write: seconds(60),
            request: None,
            first: seconds(1),
            quiet: seconds(15),
            shutdown: seconds(30),
            step: seconds(60),
        }
    }
}

/// The channels to a worker.
pub struct Link {
    /// To it.
    pub to_engine: Sender<ToEngine>,
    /// From it.
    pub from_engine: Receiver<FromEngine>,
    /// Called when the model is loaded and requests can come.
    pub ready: Box<dyn Fn(&EngineInfo) + Send>,
}

/// What the front needs of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct TextModel {
    /// Without one, prompts are token ids, and so are completions.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The tokens that end a completion.
    pub eos_token_ids: Vec<u32>,
    /// What requests leave out.
    pub defaults: SamplingDefaults,
}

/// `generation_config.json`, as far as it says how tokens are chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Else 1.
    pub temperature: Option<f32>,
    /// Else 1.
    pub top_p: Option<f32>,
    /// Else 0: all.
    pub top_k: Option<usize>,
    /// Else 0.
    pub min_p: Option<f32>,
    /// Else 1.
    pub repetition_penalty: Option<f32>,
}
