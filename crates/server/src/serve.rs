//! A server's life: it accepts connections, and when it is told to end it drains.

use std::future::{Future, pending};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::app::{App, Shared, token_bytes_max, unix_s};
use crate::auth::Keys;
use crate::config::{Link, ServerConfig, TextModel};
use crate::connection::{self, Phase};
use crate::host::Hosts;
use crate::log::Log;
use crate::requests::Requests;
use crate::routes;
use crate::tools::format::Format;
use crate::work::TextThreads;

/// How often it is seen whether the last request is over.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// For answers that are complete to reach their clients, where the limit has passed.
const FLUSH: Duration = Duration::from_secs(2);
/// For errors to reach them, where the worker has failed: whoever runs the server hears of that once this is over.
const FLUSH_FAILED: Duration = Duration::from_millis(500);
/// After an accept that failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// That is told no more often.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration can't be.
    #[error("{0}")]
    Config(&'static str),
    /// The system refused something.
    #[error("cannot {action}: {reason}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// What the system said.
        reason: String,
    },
    /// The worker failed.
    #[error("{message}")]
    Worker {
        /// Its own words.
        message: String,
        /// Whether the user's input is the cause.
        is_usage: bool,
    },
}

/// Serves until `shutdown` completes, then drains: new requests are refused, running ones have
/// `config.timeouts.shutdown`. At the end the worker is told to stop.
///
/// It serves from the start: `/health` answers while the model loads. A worker that fails ends its requests with errors and
/// makes `/health` fail; the server goes on, and is ready again if the link says so. With `config.ends_with_worker` it ends at
/// once instead, also while it drains.
///
/// It wants a runtime of several threads, with timers and I/O.
///
/// # Errors
/// [`ServeError`]: before anything is accepted, or [`ServeError::Worker`] if the server ends with its worker.
pub async fn serve(
    listener: TcpListener,
    link: Link,
    text: TextModel,
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let threads = TextThreads::start().map_err(|e| failed("start a thread")(e.to_string()))?;
    let app = start(&listener, link, text, config, &threads)?;
    let router = routes::router(app.clone());
    let (phase, _) = watch::channel(Phase::Serve);
    let connections = Arc::new(Semaphore::new(app.config.limits.connections as usize));
    let told = async {
        shutdown.await;
        app.log.info("shutting down: running requests are finished, new ones refused");
        app.requests.drain();
        let deadline = Instant::now() + app.config.timeouts.shutdown;
        drained(&app, deadline).await;
        deadline.max(Instant::now() + FLUSH)
    };
    let failed = async {
        match app.config.ends_with_worker {
            true => app.requests.failure().await,
            false => pending().await,
        }
    };
    // The listener closes with the first: who connects to a server that is at its end is refused.
    let (result, deadline) = tokio::select! {
        () = accept(listener, &app, &router, &connections, &phase) => (Ok(()), Instant::now()),
        deadline = told => (Ok(()), deadline),
        (message, is_usage) = failed => {
            (Err(ServeError::Worker { message, is_usage }), Instant::now() + FLUSH_FAILED)
        }
    };
    let cut_off = app.requests.abort_all();
    if cut_off > 0 {
        let after = format!("after {} s (--shutdown-timeout)", app.config.timeouts.shutdown.as_secs_f64());
        let requests = if cut_off == 1 { "1 request was" } else { &format!("{cut_off} requests were") };
        app.log.info(&format!("{requests} cut off {after}"));
    }
    // Answers that are being written end; connections without one close.
    phase.send_replace(Phase::Finish);
    let all = connections.acquire_many(app.config.limits.connections);
    if timeout_at(deadline, all).await.is_err() {
        phase.send_replace(Phase::Close);
    }
    app.requests.stop_worker();
    result
}

fn failed(action: &'static str) -> impl Fn(String) -> ServeError {
    move |reason| ServeError::System { action, reason }
}

fn start(
    listener: &TcpListener,
    link: Link,
    text: TextModel,
    config: ServerConfig,
    threads: &TextThreads,
) -> Result<Shared, ServeError> {
    if config.served_model_names.is_empty() {
        return Err(ServeError::Config("a served model needs a name"));
    }
    if config.limits.connections == 0 {
        return Err(ServeError::Config("a server that takes no connections serves nobody"));
    }
    if config.api_keys.iter().any(String::is_empty) {
        return Err(ServeError::Config("an API key is empty; give one that is not, or none"));
    }
    if config.tool_call_parser.as_deref().is_some_and(|name| Format::named(name).is_none()) {
        return Err(ServeError::Config(
            "the tool call parser must be hermes, llama3_json, mistral, pythonic or qwen3_coder",
        ));
    }
    let address = listener.local_addr().map_err(|e| failed("see the server's address")(e.to_string()))?;
    let keys = Keys::new(&config.api_keys).map_err(|e| failed("get random bytes")(e.to_string()))?;
    let log = Log(config.log_level);
    let requests =
        Arc::new(Requests::new(link.to_engine.clone(), config.limits.queue, log, !config.ends_with_worker));
    let reading = std::thread::available_parallelism().map_or(1, |cores| cores.get()).clamp(2, 8);
    let app = Arc::new(App {
        requests: requests.clone(),
        token_bytes_max: text.tokenizer.as_ref().map_or(1, |tokenizer| token_bytes_max(tokenizer)),
        text,
        grammars: OnceLock::new(),
        dialect: OnceLock::new(),
        work: threads.work(reading),
        bodies: Arc::new(Semaphore::new((config.limits.body_bytes_total / 1024).clamp(1, u32::MAX as usize))),
        answering: AtomicUsize::new(0),
        seeded: AtomicU64::new(0),
        keys,
        hosts: Hosts::new(address.ip(), &config.allowed_hosts),
        log,
        created_unix_s: unix_s(),
        config,
    });
    let reader = std::thread::Builder::new().name("engine-events".into());
    let Link { from_engine, ready, .. } = link;
    reader
        .spawn(move || requests.read(&from_engine, &*ready))
        .map_err(|e| failed("start a thread")(e.to_string()))?;
    Ok(app)
}

/// Waits until nothing runs and no request is without an answer, or the deadline.
async fn drained(app: &App, deadline: Instant) {
    let is_busy = || app.answering.load(Ordering::Relaxed) > 0 || app.requests.live() > 0;
    while is_busy() && Instant::now() < deadline {
        sleep(DRAIN_POLL).await;
    }
}

/// Accepts for ever. Beyond the limit, connections wait in the system's queue.
async fn accept(
    listener: TcpListener,
    app: &Shared,
    router: &Router,
    connections: &Arc<Semaphore>,
    phase: &watch::Sender<Phase>,
) {
    let mut told: Option<Instant> = None;
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= ACCEPT_TOLD_EVERY) {
                    told = Some(Instant::now());
                    app.log.error(&format!("cannot accept a connection: {error}"));
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (app, router, phase) = (app.clone(), router.clone(), phase.subscribe());
        tokio::spawn(async move {
            connection::serve(stream, router, &app.config.limits, &app.config.timeouts, phase).await;
            drop(permit);
        });
    }
}
