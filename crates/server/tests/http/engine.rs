//! A server with an engine that plays what a test tells it.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use engine::serving::{EngineInfo, Event, FromEngine, LoadReport, ToEngine};
use engine::text::Tokenizer;
use engine::{FinishReason, GenerateRequest, Logprobs, RankPulse, RankReport};
use server::{Link, ServeError, ServerConfig, TextModel};
use tokio::sync::oneshot;

/// Everything that a test waits for comes within this, or never.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// The demo model's tokens that end a completion.
pub const EOS: [u32; 2] = [1, 3];
pub const MAX_MODEL_LEN: usize = 1024;

/// The demo model's tokenizer, and its chat template.
pub fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| tokenizer_with(None)).clone()
}

/// The same with another template.
fn tokenizer_with(template: Option<&str>) -> Arc<Tokenizer> {
    let json = include_bytes!("../../../cli/demo/tokenizer.json");
    let config = include_bytes!("../../../cli/demo/tokenizer_config.json");
    Arc::new(Tokenizer::from_bytes(json, Some(config), template).unwrap())
}

/// The tokens of a text, without any around them.
pub fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, false).unwrap()
}

/// What the engine does with a request.
pub type Script = fn(u64, &GenerateRequest) -> Vec<Event>;

/// What the default script says.
pub const TEXT: &str = " quiet and the water was grey — no héron in sight.";

/// Says [`TEXT`], as much of it as was asked for, then ends. Log-probabilities are minus the token's id over 1024.
pub fn says_text(id: u64, request: &GenerateRequest) -> Vec<Event> {
    says(id, request, &[ids(TEXT), vec![EOS[0]]].concat())
}

/// Says these tokens.
pub fn says(id: u64, request: &GenerateRequest, tokens: &[u32]) -> Vec<Event> {
    let logprobs = |token: u32, top: Option<usize>| {
        top.map(|top| {
            let top = (token..).take(top).map(|token| (token % 2048, -(token as f32) / 1024.0));
            Logprobs { logprob: -(token as f32) / 1024.0, rank: 1 + token % 7, top: top.collect() }
        })
    };
    let mut events = vec![Event::Started { id, cached_tokens: 1 }];
    if request.prompt_logprobs.is_some() {
        let of = |(i, &token): (usize, &u32)| logprobs(token, request.prompt_logprobs).filter(|_| i > 0);
        let all: Vec<_> = request.prompt.iter().enumerate().map(of).collect();
        // They come in chunks.
        let (first, rest) = all.split_at(all.len() / 2);
        events.push(Event::Prompt { id, logprobs: first.to_vec() });
        events.push(Event::Prompt { id, logprobs: rest.to_vec() });
    }
    for (i, &token) in tokens.iter().enumerate().take(request.max_tokens) {
        let is_stop = i >= request.min_tokens && request.stop_token_ids.contains(&token);
        let end = match is_stop {
            true => Some(FinishReason::Stop),
            false => (i + 1 == request.max_tokens).then_some(FinishReason::Length),
        };
        events.push(Event::Token { id, token, logprobs: logprobs(token, request.logprobs), end });
        if end.is_some() {
            break;
        }
    }
    events
}

/// Starts, says one token, and goes on for ever, if it isn't aborted.
pub fn never_ends(id: u64, _: &GenerateRequest) -> Vec<Event> {
    vec![
        Event::Started { id, cached_tokens: 0 },
        Event::Token { id, token: ids(" a")[0], logprobs: None, end: None },
    ]
}

/// Never starts.
pub fn never_starts(_: u64, _: &GenerateRequest) -> Vec<Event> {
    Vec::new()
}

/// A prompt that ends so never ends; others are answered at once.
pub fn waits_on_request(id: u64, request: &GenerateRequest) -> Vec<Event> {
    match request.prompt.ends_with(&ids(" wait")) {
        true => never_ends(id, request),
        false => says_text(id, request),
    }
}

pub fn info() -> EngineInfo {
    EngineInfo {
        max_model_len: MAX_MODEL_LEN,
        full_model_len: MAX_MODEL_LEN,
        vocab_size: 2048,
        max_num_seqs: 8,
        kv_cache_tokens: 4096,
        kv_cache_bytes: 1 << 20,
        kv_cache_warnings: Vec::new(),
        parallel: (2, 1, 1, 1, false),
        dtype: "float32".into(),
        quantization: None,
        reduction: "canonical".into(),
        load_s: 0.5,
        ranks: vec![
            RankReport { rank: 0, device: "cpu".into(), ..Default::default() },
            RankReport { rank: 1, device: "cpu".into(), ..Default::default() },
        ],
    }
}

/// A running server. Dropped, it shuts down.
pub struct Harness {
    pub address: SocketAddr,
    /// What the engine was told, in order.
    pub seen: Receiver<ToEngine>,
    /// To tell the server what the script doesn't.
    pub from_engine: Option<Sender<FromEngine>>,
    shutdown: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Harness {
    /// With a loaded model.
    pub fn new(config: ServerConfig, script: Script) -> Harness {
        Harness::loading(config, script).loaded()
    }

    /// With one of another chat template.
    pub fn of_template(template: &str, script: Script) -> Harness {
        Harness::start(Default::default(), tokenizer_with(Some(template)), script).loaded()
    }

    /// With a model that is still to be loaded.
    pub fn loading(config: ServerConfig, script: Script) -> Harness {
        Harness::start(config, tokenizer(), script)
    }

    fn loaded(self) -> Harness {
        self.tell(FromEngine::Ready(info()));
        until("the server is ready", || super::client::get(self.address, "/ready").status == 200);
        self
    }

    fn start(mut config: ServerConfig, tokenizer: Arc<Tokenizer>, script: Script) -> Harness {
        config.log_level = server::LogLevel::Debug;
        let (to_engine, inbox) = channel();
        let (outbox, from_engine) = channel();
        let (seen_by_engine, seen) = channel();
        let out = outbox.clone();
        std::thread::spawn(move || play(&inbox, &out, &seen_by_engine, script));
        let (shutdown, told) = oneshot::channel();
        let (address, bound) = channel();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.unwrap();
            let result = runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                address.send(listener.local_addr().unwrap()).unwrap();
                let text = TextModel {
                    tokenizer: Some(tokenizer),
                    eos_token_ids: EOS.to_vec(),
                    defaults: Default::default(),
                };
                let link = Link { to_engine, from_engine, ready: Box::new(|_| {}) };
                let told = async { told.await.unwrap_or_default() };
                server::serve(listener, link, text, config, told).await
            });
            // A test's stream that nobody reads is no reason to wait.
            runtime.shutdown_background();
            result
        });
        Harness {
            address: bound.recv_timeout(DEADLINE).unwrap(),
            seen,
            from_engine: Some(outbox),
            shutdown: Some(shutdown),
            server: Some(server),
        }
    }

    pub fn tell(&self, message: FromEngine) {
        self.from_engine.as_ref().unwrap().send(message).unwrap();
    }

    /// The next message to the engine that is as wanted.
    pub fn sees<T>(&self, what: &str, wanted: impl Fn(&ToEngine) -> Option<T>) -> T {
        loop {
            let message = self.seen.recv_timeout(DEADLINE);
            let message = message.unwrap_or_else(|_| panic!("the engine never saw {what}"));
            if let Some(found) = wanted(&message) {
                return found;
            }
        }
    }

    /// The next request that comes to the engine.
    pub fn submitted(&self) -> (u64, GenerateRequest) {
        self.sees("a request", |message| match message {
            ToEngine::Submit { id, batch } => {
                Some((*id, batch.clone().requests().next().expect("there is one")))
            }
            _ => None,
        })
    }

    /// Waits until the request is aborted.
    pub fn aborted(&self, aborted: u64) {
        self.sees("an abort", |message| {
            matches!(message, ToEngine::Abort { id } if *id == aborted).then_some(())
        });
    }

    /// Tells the server to end, without waiting for it.
    pub fn shut_down(&mut self) {
        drop(self.shutdown.take());
    }

    /// Waits for the server's end.
    pub fn ends(&mut self) -> Result<(), ServeError> {
        let server = self.server.take().unwrap();
        until("the server ends", || server.is_finished());
        server.join().unwrap()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn play(inbox: &Receiver<ToEngine>, out: &Sender<FromEngine>, seen: &Sender<ToEngine>, script: Script) {
    let mut load = LoadReport { kv_blocks: 256, ..LoadReport::default() };
    while let Ok(message) = inbox.recv() {
        if !matches!(message, ToEngine::Submit { .. }) {
            // A test may not look.
            let _ = seen.send(message.clone());
        }
        match message {
            ToEngine::Submit { id, batch } => {
                // Tests look at one request at a time.
                for (id, request) in (id..).zip(batch.requests()) {
                    let _ = seen.send(ToEngine::Submit { id, batch: request.clone().into() });
                    let events = script(id, &request);
                    let tokens = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
                    load.steps += 1;
                    load.generation_tokens += tokens as u64;
                    load.prompt_tokens += request.prompt.len() as u64;
                    load.last_step_tokens = request.prompt.len();
                    let _ = out.send(FromEngine::Events(events));
                    let _ = out.send(FromEngine::Load(load, vec![request.prompt.len()]));
                }
            }
            ToEngine::Abort { .. } => {}
            ToEngine::Pulse => {
                let pulse = |rank| RankPulse {
                    rank,
                    steps: load.steps,
                    busy_s: 1.5,
                    free_bytes: Some(7),
                    ..Default::default()
                };
                let _ = out.send(FromEngine::Pulses(vec![pulse(0), pulse(1)]));
            }
            ToEngine::Stop => break,
        }
    }
}

/// Polls until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}
