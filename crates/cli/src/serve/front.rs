//! The front: HTTP and text, and a worker behind it.

use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use engine::EngineOptions;
use engine::serving::{EngineInfo, FromEngine, QueueLimits, ToEngine};
use engine::text::TextError;
use serde_json::Value;
use server::{Limits, Link, LogLevel, SamplingDefaults, ServeError, ServerConfig, TextModel, Timeouts};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::args::LogLevelArg;
use super::worker::{Worker, serve_here};
use super::{ServeArgs, start_up};
use crate::error::CliError;
use crate::launch::signals;
use crate::membership::Membership;
use crate::model::OpenModel;
use crate::open_files;
use crate::progress::bytes_bar;

/// How long a worker may take to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves with the ranks in a child process.
pub fn with_child(args: &ServeArgs, model: &OpenModel) -> Result<(), CliError> {
    let front = Front::open(args, model)?;
    let Worker { child, to_engine, from_engine } = Worker::start()?;
    let child = Arc::new(Mutex::new(child));
    let stop = to_engine.clone();
    let ended = {
        let child = child.clone();
        move || end(&mut child.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let link = front.link(to_engine, from_engine, ended.clone())?;
    let failure = front.failure.clone();
    let (runtime, serving) = front.serve(link);
    let served = runtime.block_on(serving);
    // Also where it was about to end: requests that still ran have got errors.
    let served = served.and_then(|()| match failure.get() {
        Some((message, is_usage)) => Err(failed(message, *is_usage)),
        None => Ok(()),
    });
    // The server has told it, unless that failed.
    let _ = stop.send(ToEngine::Stop);
    drop(ended());
    served
}

fn failed(message: &str, is_usage: bool) -> CliError {
    match is_usage {
        true => CliError::Usage(message.into()),
        false => CliError::failed(message.into()),
    }
}

/// Serves with rank 0 of a job in this process, on this thread.
pub fn with_rank_0(
    args: &ServeArgs,
    options: &EngineOptions,
    membership: &Membership,
    model: OpenModel,
) -> Result<(), CliError> {
    let front = Front::open(args, &model)?;
    let (to_engine, inbox) = channel();
    let (out, from_engine) = channel();
    let link = front.link(to_engine, from_engine, || None)?;
    let (runtime, serving) = front.serve(link);
    let served = runtime.spawn(serving);
    let progress = |done, total| drop(out.send(FromEngine::Loading { done, total }));
    let ran = model.load_with(options, membership, &args.run, true, &progress).and_then(|engine| {
        let engine = engine.expect("rank 0 has the engine");
        serve_here(engine, args, &inbox, &out)
    });
    if let Err(error) = &ran {
        let (message, is_usage) = (error.to_string(), error.status() == 2);
        let _ = out.send(FromEngine::Failed { message, is_usage });
    }
    drop(out);
    let ended = runtime.block_on(served);
    // The engine's error is the cause, and names a rank.
    ran.and(ended.unwrap_or_else(|e| Err(CliError::failed(format!("the server has failed: {e}")))))
}

/// What listens, before there is a worker.
struct Front {
    runtime: Runtime,
    listener: std::net::TcpListener,
    start_up: start_up::Lines,
    text: TextModel,
    config: ServerConfig,
    is_quiet: bool,
    /// Why the worker has failed, if it has; and whether the user's input is the cause.
    failure: Arc<OnceLock<(String, bool)>>,
}

impl Front {
    /// Takes the address first: where another server has it, nothing is loaded.
    fn open(args: &ServeArgs, model: &OpenModel) -> Result<Front, CliError> {
        let config = config(args, &model.name)?;
        let text = text(model)?;
        let at = (args.host.as_str(), args.port);
        let listener = std::net::TcpListener::bind(at).map_err(|e| {
            CliError::failed(format!(
                "cannot listen on {}:{}: {e}; another --port or --host may be free",
                args.host, args.port
            ))
        })?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()?;
        let is_quiet = args.log_level == LogLevelArg::Error;
        let connections = open_files::for_connections(args.max_connections as usize);
        if connections < args.max_connections as usize && !is_quiet {
            job::say!(
                "warning: --max-connections is {}, and the limit of open files (ulimit -Hn) has room for {connections}; \
                 more wait",
                args.max_connections
            );
        }
        let start_up = start_up::Lines {
            model: model.name.clone(),
            address: listener.local_addr()?,
            names: config.served_model_names.clone(),
            has_keys: !config.api_keys.is_empty(),
        };
        let failure = Arc::default();
        Ok(Front { runtime, listener, start_up, text, config, is_quiet, failure })
    }

    /// The way to a worker. How loading goes is shown on the way, and what is served once it is loaded. `ended` says why
    /// nothing more comes, if that is a failure.
    fn link(
        &self,
        to_engine: Sender<ToEngine>,
        from_engine: Receiver<FromEngine>,
        ended: impl FnOnce() -> Option<String> + Send + 'static,
    ) -> Result<Link, CliError> {
        let (sender, receiver) = channel();
        let failure = self.failure.clone();
        let watch = move || {
            let bar = bytes_bar("loading", 0);
            for message in from_engine {
                match &message {
                    FromEngine::Loading { done, total } => {
                        bar.set_length(*total);
                        bar.set_position(*done);
                    }
                    FromEngine::Ready(_) => bar.finish_and_clear(),
                    FromEngine::Failed { message, is_usage } => {
                        bar.finish_and_clear();
                        let _ = failure.set((message.clone(), *is_usage));
                    }
                    _ => {}
                }
                if sender.send(message).is_err() {
                    return;
                }
            }
            if let Some(message) = ended() {
                let _ = failure.set((message.clone(), false));
                let _ = sender.send(FromEngine::Failed { message, is_usage: false });
            }
        };
        std::thread::Builder::new().name("worker's news".into()).spawn(watch)?;
        let (is_quiet, lines) = (self.is_quiet, self.start_up.clone());
        let ready = move |info: &EngineInfo| {
            if !is_quiet {
                lines.of(info).iter().for_each(|line| job::say!("{line}"));
            }
        };
        Ok(Link { to_engine, from_engine: receiver, ready: Box::new(ready) })
    }

    /// Serves until a signal, or until the worker fails; on the runtime.
    fn serve(self, link: Link) -> (Runtime, impl Future<Output = Result<(), CliError>> + Send + 'static) {
        let Front { runtime, listener, text, config, .. } = self;
        let serving = async move {
            let listener = TcpListener::from_std(listener)?;
            let asked = asked_to_end()?;
            let served = server::serve(listener, link, text, config, async { drop(asked.await) }).await;
            served.map_err(|error| match error {
                ServeError::Worker { message, is_usage } => failed(&message, is_usage),
                other => CliError::failed(other.to_string()),
            })
        };
        (runtime, serving)
    }
}

/// One that comes so soon after the first is the same: some programs tell a process and also its group.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// Resolves when this process is asked to end. Asked again, it ends at once.
fn asked_to_end() -> Result<oneshot::Receiver<i32>, CliError> {
    let (sender, receiver) = oneshot::channel();
    let signals: Receiver<i32> = signals::listen(signals::to_end())?;
    let tell = move || {
        let Ok(first) = signals.recv() else { return };
        let asked = Instant::now();
        // A server that has ended by itself needs no telling.
        let _ = sender.send(first);
        for signal in signals {
            if asked.elapsed() >= SAME_SIGNAL {
                let (line, status) = signals::ending(signal);
                job::say!("error: {line} before running requests had ended");
                std::process::exit(status.into());
            }
        }
    };
    std::thread::Builder::new().name("asked to end".into()).spawn(tell)?;
    Ok(receiver)
}

/// Waits for the worker, and kills it if that takes long. How it ended, if it did not end by itself and well.
fn end(child: &mut Child) -> Option<String> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Ok(Some(status)) if status.success() => return None,
            Ok(Some(status)) => return Some(format!("the worker process has ended ({status})")),
            Err(error) => return Some(format!("the worker process is lost: {error}")),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Some("the worker process did not end, and was killed".into())
}

fn config(args: &ServeArgs, model: &str) -> Result<ServerConfig, CliError> {
    let names = match args.served_model_name.is_empty() {
        true => vec![model.to_owned()],
        false => args.served_model_name.clone(),
    };
    let limits = Limits::default();
    let queue = QueueLimits { requests: args.max_num_queued_reqs, tokens: args.max_num_queued_tokens };
    Ok(ServerConfig {
        served_model_names: names,
        api_keys: args.keys()?,
        allowed_hosts: args.allowed_hosts.clone(),
        allowed_origins: args.allowed_origins.clone(),
        tool_call_parser: args.tool_call_parser.clone(),
        seed: args.model.seed,
        limits: Limits {
            body_bytes: args.max_body_bytes,
            body_bytes_total: limits.body_bytes_total.max(args.max_body_bytes),
            connections: args.max_connections,
            queue,
            ..limits
        },
        timeouts: Timeouts {
            request: args.request_timeout.map(Duration::from_secs_f64),
            shutdown: args.shutdown_timeout(),
            ..Timeouts::default()
        },
        log_level: match args.log_level {
            LogLevelArg::Error => LogLevel::Error,
            LogLevelArg::Info => LogLevel::Info,
            LogLevelArg::Debug => LogLevel::Debug,
        },
        version: env!("CARGO_PKG_VERSION").into(),
        ends_with_worker: true,
    })
}

/// Tokenizer and defaults of a model. One without a tokenizer takes and gives token ids.
fn text(model: &OpenModel) -> Result<TextModel, CliError> {
    let tokenizer = match model.tokenizer() {
        Err(CliError::Text(TextError::MissingTokenizer { .. })) => None,
        found => Some(found?.clone()),
    };
    Ok(TextModel {
        tokenizer,
        eos_token_ids: model.config.eos_token_ids.clone(),
        defaults: model.generation.as_ref().map(defaults).unwrap_or_default(),
    })
}

/// How generation_config.json wants tokens to be chosen, where it says that they are sampled at all.
fn defaults(generation: &Value) -> SamplingDefaults {
    let number = |name: &str| generation[name].as_f64().map(|number| number as f32);
    SamplingDefaults {
        temperature: number("temperature"),
        top_p: number("top_p"),
        top_k: generation["top_k"].as_u64().and_then(|k| usize::try_from(k).ok()),
        min_p: number("min_p"),
        repetition_penalty: number("repetition_penalty"),
    }
}
