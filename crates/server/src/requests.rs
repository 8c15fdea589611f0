//! Requests to the engine, and its events back to whoever waits for them.
//!
//! ```text
//!  handler ── submit ──▶ Requests ── ToEngine ──▶ worker
//!  handler ◀── Run::next ── channel ◀── reader thread ◀── FromEngine
//! ```
//! A [`Run`] that is dropped, because its client is gone, aborts at once what of it runs.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use engine::GenerateBatch;
use engine::serving::{
    EngineInfo, Event, FromEngine, LoadReport, Places, QueueFull, QueueLimits, Queued, ToEngine,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::log::Log;
use crate::metrics::{RequestMetrics, Snapshot};
use crate::ranks::{PATIENCE, Ranks};
use crate::rates::{Pace, Rates, RecentRates};
use crate::run::{Run, Update};
use crate::timeline::{End, Entry, Timeline};
use crate::wire::errors::ApiError;
use crate::worker::{Worker, retry_after_s};

/// Requests that are over and still shown.
const ENDED_SHOWN: usize = 100;

/// Who asked for what, and how the worker is.
pub struct Requests {
    to_engine: Sender<ToEngine>,
    limits: QueueLimits,
    log: Log,
    logs_failure: bool,
    /// What is counted of requests.
    pub metrics: RequestMetrics,
    /// When the server began.
    pub began: Instant,
    /// Why the worker is no more, and whether the user's input is the cause.
    failed: watch::Sender<Option<(String, bool)>>,
    /// Changes when the ranks have answered.
    answered: watch::Sender<()>,
    state: Mutex<State>,
}

struct State {
    worker: Worker,
    is_draining: bool,
    /// Nothing runs any more.
    is_over: bool,
    next_id: u64,
    live: HashMap<u64, Live>,
    ended: VecDeque<Entry>,
    /// Requests that no step of has been told of, and tokens of their prompts.
    queued: Queued,
    load: LoadReport,
    /// When the engine last did something, or last had nothing to do.
    progress: Instant,
    ranks: Ranks,
    rates: Rates,
    /// What requests took from their first step, the latest counting most.
    usual_s: f64,
}

struct Live {
    sender: UnboundedSender<(usize, Update)>,
    index: usize,
    name: String,
    timeline: Timeline,
}

/// What `/status` shows of requests.
pub struct Overview {
    /// How the worker is.
    pub worker: Worker,
    /// No new requests come.
    pub is_draining: bool,
    /// Those that live, by arrival, behind those that ended.
    pub requests: Vec<Entry>,
    /// The last minute.
    pub rates: RecentRates,
}

impl Requests {
    /// With no worker yet.
    pub fn new(to_engine: Sender<ToEngine>, limits: QueueLimits, log: Log, logs_failure: bool) -> Self {
        let began = Instant::now();
        let state = State {
            worker: Worker::Loading(0, 0),
            is_draining: false,
            is_over: false,
            next_id: 0,
            live: HashMap::new(),
            ended: VecDeque::new(),
            queued: Queued::default(),
            load: LoadReport::default(),
            progress: began,
            ranks: Ranks::default(),
            rates: Rates::new(began),
            usual_s: 1.0,
        };
        Requests {
            to_engine,
            limits,
            log,
            logs_failure,
            metrics: RequestMetrics::default(),
            began,
            failed: watch::channel(None).0,
            answered: watch::channel(()).0,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands events on until the worker's end hangs up. `ready` is called when requests can come. For a thread of its own.
    pub fn read(&self, from_engine: &Receiver<FromEngine>, ready: &dyn Fn(&EngineInfo)) {
        while let Ok(message) = from_engine.recv() {
            let info = match &message {
                FromEngine::Ready(info) => Some(info.clone()),
                _ => None,
            };
            self.take(message);
            info.iter().for_each(ready);
        }
        self.fail("the worker has ended".into(), false);
    }

    fn take(&self, message: FromEngine) {
        let now = Instant::now();
        match message {
            FromEngine::Loading { done, total } => self.state().worker = Worker::Loading(done, total),
            FromEngine::Ready(info) => {
                let mut state = self.state();
                state.ranks = Ranks::loaded(&info.ranks);
                state.progress = now;
                state.worker = Worker::Ready(Arc::new(info));
            }
            FromEngine::Events(events) => {
                let mut state = self.state();
                for event in events {
                    state.event(event, now, &self.metrics, self.began);
                }
            }
            FromEngine::Load(load, steps) => {
                let mut state = self.state();
                if !steps.is_empty() {
                    state.progress = now;
                }
                steps.into_iter().for_each(|tokens| self.metrics.step(tokens));
                state.load = load;
            }
            FromEngine::Pulses(pulses) => {
                self.state().ranks.take(&pulses, now);
                self.answered.send_replace(());
            }
            FromEngine::Failed { message, is_usage } => self.fail(message, is_usage),
        }
    }

    /// Waits until the worker has failed: why, and whether the user's input is the cause.
    pub async fn failure(&self) -> (String, bool) {
        let mut failed = self.failed.subscribe();
        let failure = failed.wait_for(Option::is_some).await;
        failure.ok().and_then(|failure| failure.clone()).unwrap_or_default()
    }

    /// Tells everybody that the worker is no more. The first reason is the one that counts.
    fn fail(&self, message: String, is_usage: bool) {
        let mut state = self.state();
        if matches!(state.worker, Worker::Failed(_)) {
            return;
        }
        // Unless it was told to end, or the caller tells.
        if self.logs_failure && (!state.is_draining || !state.live.is_empty()) {
            self.log.error(&message);
        }
        let error = ApiError::internal(format!("the engine failed: {message}")).code("engine_failed");
        self.failed.send_replace(Some((message.clone(), is_usage)));
        state.worker = Worker::Failed(message);
        self.end_all(&mut state, End::Error, &error);
    }

    /// Ends whatever runs: there is no more time for it. Of how many HTTP requests that is.
    pub fn abort_all(&self) -> usize {
        let error = ApiError::unavailable("the server has shut down before the end", "shutting_down");
        let mut state = self.state();
        state.is_over = true;
        // Ids of one request's completions are one behind the other.
        let cut_off: HashSet<u64> = state.live.iter().map(|(id, live)| id - live.index as u64).collect();
        self.end_all(&mut state, End::Abort, &error);
        cut_off.len()
    }

    fn end_all(&self, state: &mut State, end: End, error: &ApiError) {
        let now = Instant::now();
        state.queued = Queued::default();
        for (id, live) in std::mem::take(&mut state.live) {
            self.metrics.ended(&live.timeline, now, end);
            state.remember(&live, now, end, self.began);
            // Who has left needs no error, and a worker that is gone no message.
            let _ = live.sender.send((live.index, Update::Failed(error.clone())));
            let _ = self.to_engine.send(ToEngine::Abort { id });
        }
    }

    /// Requests that are not over.
    pub fn live(&self) -> usize {
        self.state().live.len()
    }

    /// Whether an idle server would take completions.
    ///
    /// # Errors
    /// 400.
    pub fn could_wait(&self, info: &EngineInfo, wait: Queued) -> Result<(), ApiError> {
        let places = Places { all: info.max_num_seqs, taken: 0 };
        self.limits.admits(places, Queued::default(), wait).map_err(|full| too_large(&full))
    }

    /// Whether completions may wait now.
    ///
    /// # Errors
    /// 503 if there is no worker to ask, 429 if the queue is full, 400 for a batch that the queue never has room for.
    pub fn has_room(&self, wait: Queued) -> Result<(), ApiError> {
        self.state().has_room(self.limits, wait, self.began)
    }

    /// Asks the engine for completions, which are told of by their index: `wait.requests` with prompts of `wait.tokens`.
    ///
    /// # Errors
    /// As [`Requests::has_room`].
    pub fn submit(
        self: &Arc<Self>,
        name: &str,
        arrived: Instant,
        batch: GenerateBatch,
        wait: Queued,
    ) -> Result<Run, ApiError> {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut state = self.state();
        state.has_room(self.limits, wait, self.began)?;
        if state.live.is_empty() {
            state.progress = Instant::now();
        }
        let first = state.next_id;
        state.next_id += wait.requests as u64;
        for (index, id) in (first..state.next_id).enumerate() {
            let timeline = Timeline::new(arrived, batch.prompts[index / batch.n].tokens.len());
            let name = format!("{name}-{index}");
            state.live.insert(id, Live { sender: sender.clone(), index, name, timeline });
        }
        state.queued.requests += wait.requests;
        state.queued.tokens += wait.tokens;
        // If the worker is gone, the reader thread tells.
        let _ = self.to_engine.send(ToEngine::Submit { id: first, batch });
        let ids = (first..state.next_id).map(Some).collect();
        drop(state);
        Ok(Run::new(self.clone(), receiver, ids))
    }

    /// Ends a completion that the engine still works at, if it does.
    pub fn end(&self, id: u64, end: End) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(live) = state.forget(id) {
            self.metrics.ended(&live.timeline, now, end);
            state.remember(&live, now, end, self.began);
            // A worker that is gone aborts nothing.
            let _ = self.to_engine.send(ToEngine::Abort { id });
        }
    }

    /// What is loaded. A request asks for it when it comes; one that has is finished, also if the server is told to end.
    ///
    /// # Errors
    /// 503 unless requests can be taken.
    pub fn info(&self) -> Result<Arc<EngineInfo>, ApiError> {
        let state = self.state();
        match state.is_draining {
            true => Err(shutting_down()),
            false => state.worker.ready(self.began).cloned(),
        }
    }

    /// How the worker is.
    pub fn worker(&self) -> Worker {
        self.state().worker.clone()
    }

    /// Takes no more requests.
    pub fn drain(&self) {
        self.state().is_draining = true;
    }

    /// Whether it takes no more.
    pub fn is_draining(&self) -> bool {
        self.state().is_draining
    }

    /// Tells the worker to end.
    pub fn stop_worker(&self) {
        // One that has ended already needs no telling.
        let _ = self.to_engine.send(ToEngine::Stop);
    }

    /// For how long there has been work and no step.
    pub fn stalled(&self) -> Duration {
        let state = self.state();
        if state.live.is_empty() { Duration::ZERO } else { state.progress.elapsed() }
    }

    /// Asks the ranks how they are, unless it is known, and waits for their answer: for a step, but not for long.
    pub async fn hear_ranks(&self) {
        let mut answered = self.answered.subscribe();
        let heard = async { while self.must_hear_ranks() && answered.changed().await.is_ok() {} };
        // Who has no time to answer is told of as before.
        let _ = tokio::time::timeout(PATIENCE, heard).await;
    }

    /// Whether the ranks' answer is to be waited for; then they are asked.
    fn must_hear_ranks(&self) -> bool {
        let (mut state, now) = (self.state(), Instant::now());
        let (steps, is_idle) = (state.load.steps, state.live.is_empty());
        if !matches!(state.worker, Worker::Ready(_)) || state.ranks.are_fresh(now, steps, is_idle) {
            return false;
        }
        if state.ranks.ask(now, steps) {
            // A worker that is gone has no ranks.
            let _ = self.to_engine.send(ToEngine::Pulse);
        }
        true
    }

    /// What metrics tell of the worker.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let info = match &state.worker {
            Worker::Ready(info) => Some(info.clone()),
            _ => None,
        };
        let ranks = state.ranks.states().to_vec();
        Snapshot { info, load: state.load, queued: state.queued.requests, ranks }
    }

    /// What the page shows of requests.
    pub fn overview(&self) -> Overview {
        let state = self.state();
        let mut live: Vec<(&u64, &Live)> = state.live.iter().collect();
        live.sort_unstable_by_key(|(id, _)| **id);
        // Of thousands that wait, the first are enough.
        let live = live.into_iter().take(ENDED_SHOWN);
        let live = live.map(|(_, live)| live.timeline.entry(&live.name, self.began, None));
        Overview {
            worker: state.worker.clone(),
            is_draining: state.is_draining,
            requests: state.ended.iter().cloned().chain(live).collect(),
            rates: state.rates.recent(Instant::now()),
        }
    }
}

impl State {
    fn has_room(&self, limits: QueueLimits, more: Queued, began: Instant) -> Result<(), ApiError> {
        if self.is_over {
            return Err(shutting_down());
        }
        let at_a_time = self.worker.ready(began)?.max_num_seqs.max(1);
        let places = Places { all: at_a_time, taken: self.live.len() - self.queued.requests };
        let full = match limits.admits(places, self.queued, more) {
            Ok(()) => return Ok(()),
            Err(full @ QueueFull::Always { .. }) => return Err(too_large(&full)),
            Err(full @ QueueFull::Now { .. }) => full,
        };
        let waves = (self.live.len() as f64 / at_a_time as f64).ceil();
        Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, full.to_string())
            .code("queue_full")
            .retry_after_s(retry_after_s(waves * self.usual_s)))
    }

    fn event(&mut self, event: Event, now: Instant, metrics: &RequestMetrics, began: Instant) {
        let id = event.id();
        // A client that left can still be told of.
        let Some(live) = self.live.get_mut(&id) else { return };
        let timeline = &mut live.timeline;
        let mut end = None;
        match &event {
            Event::Started { cached_tokens, .. } => {
                if timeline.started.is_none() {
                    (timeline.started, timeline.cached_tokens) = (Some(now), *cached_tokens);
                    self.queued.requests -= 1;
                    self.queued.tokens -= timeline.prompt_tokens;
                }
                if std::mem::take(&mut timeline.is_preempted) {
                    timeline.resumed.push(now);
                }
            }
            Event::Token { end: reason, .. } => {
                metrics.token(timeline, now);
                match &mut timeline.pace {
                    None => {
                        self.rates.first_token(now, now - timeline.arrived, timeline.prompt_tokens);
                        timeline.pace = Some(Pace::new(now));
                    }
                    Some(pace) => self.rates.token(now, pace.token(now)),
                }
                timeline.first_token.get_or_insert(now);
                timeline.last_token = Some(now);
                timeline.completion_tokens += 1;
                end = reason.map(End::of);
            }
            Event::Preempted { .. } => {
                timeline.preempted.push(now);
                timeline.is_preempted = true;
            }
            Event::Prompt { .. } => {}
            Event::Refused { .. } => end = Some(End::Error),
        }
        // Who has left aborts it at once.
        let _ = live.sender.send((live.index, Update::Event(event)));
        if let Some(end) = end
            && let Some(live) = self.forget(id)
        {
            metrics.ended(&live.timeline, now, end);
            self.remember(&live, now, end, began);
        }
    }

    /// Takes a request out of those that live.
    fn forget(&mut self, id: u64) -> Option<Live> {
        let live = self.live.remove(&id)?;
        if live.timeline.started.is_none() {
            self.queued.requests -= 1;
            self.queued.tokens -= live.timeline.prompt_tokens;
        }
        Some(live)
    }

    fn remember(&mut self, live: &Live, now: Instant, end: End, began: Instant) {
        if matches!(end, End::Stop | End::Length) {
            let started = live.timeline.started.unwrap_or(now);
            let took_s = now.saturating_duration_since(started).as_secs_f64();
            self.usual_s += (took_s - self.usual_s) / 8.0;
        }
        if self.ended.len() == ENDED_SHOWN {
            self.ended.pop_front();
        }
        self.ended.push_back(live.timeline.entry(&live.name, began, Some((now, end))));
    }
}

fn shutting_down() -> ApiError {
    ApiError::unavailable("the server is shutting down", "shutting_down")
}

fn too_large(full: &QueueFull) -> ApiError {
    ApiError::bad(full.to_string()).code("request_too_large")
}
