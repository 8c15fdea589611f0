//! Sends the requests when they are due, and hears every answer.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use indicatif::ProgressBar;
use signal_hook::low_level;
use tokio::sync::{Semaphore, mpsc as channel};

use super::client::{self, Client};
use super::stream::{Heard, Lines, Timing};

/// A request that is ready to be sent.
pub struct Prepared {
    pub body: Bytes,
    /// Tokens of its prompt, if they are known.
    pub prompt_tokens: Option<usize>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which one.
    pub index: usize,
    /// From the start of the run to sending it.
    pub sent: Duration,
    /// From the start of the run to its end.
    pub ended: Duration,
    /// Its times, or why there are none, in one line.
    pub timing: Result<Timing, String>,
}

/// What a run came to.
pub struct Run {
    /// In the order of requests; those that were not answered yet when the run was stopped are not here.
    pub outcomes: Vec<Outcome>,
    /// From the start to the last answer, or to the signal.
    pub duration: Duration,
    /// The signal that stopped it.
    pub stopped_by: Option<i32>,
}

/// How requests are sent.
#[derive(Clone)]
pub struct Manner {
    pub path: String,
    /// Requests that run at a time; none: as many as are due.
    pub max_concurrency: Option<usize>,
    /// The longest that a request may take.
    pub timeout: Duration,
}

/// What is told to who counts.
enum Told {
    Outcome(Outcome),
    Signal(i32),
}

/// Sends each request when it is due, in seconds from now, or as soon after as others leave room; waits for all of them, or for
/// a signal.
pub async fn run(
    client: &Arc<Client>,
    manner: &Manner,
    requests: Vec<Prepared>,
    due: &[f64],
    signals: Option<mpsc::Receiver<i32>>,
    bar: &ProgressBar,
) -> Run {
    let count = requests.len();
    let (tell, mut hear) = channel::unbounded_channel();
    if let Some(signals) = signals {
        let tell = tell.clone();
        std::thread::spawn(move || stop_at_first(&signals, &tell));
    }
    let start = Instant::now();
    let sending = tokio::spawn(send_all(client.clone(), manner.clone(), requests, due.to_vec(), start, tell));
    let (mut outcomes, mut stopped_by) = (Vec::with_capacity(count), None);
    while outcomes.len() < count {
        match hear.recv().await {
            Some(Told::Outcome(outcome)) => {
                bar.inc(1);
                outcomes.push(outcome);
            }
            Some(Told::Signal(signal)) => {
                stopped_by = Some(signal);
                break;
            }
            None => break,
        }
    }
    let last = outcomes.iter().map(|outcome: &Outcome| outcome.ended).max();
    let duration = match stopped_by {
        Some(_) => start.elapsed(),
        None => last.unwrap_or_else(|| start.elapsed()),
    };
    sending.abort();
    outcomes.sort_by_key(|outcome| outcome.index);
    Run { outcomes, duration, stopped_by }
}

/// The first signal ends the run; a second one ends the process, as it always does.
fn stop_at_first(signals: &mpsc::Receiver<i32>, tell: &channel::UnboundedSender<Told>) {
    let Ok(first) = signals.recv() else { return };
    // Where no one hears it the run is over.
    let _ = tell.send(Told::Signal(first));
    if let Ok(second) = signals.recv() {
        let _ = low_level::emulate_default_handler(second);
    }
}

async fn send_all(
    client: Arc<Client>,
    manner: Manner,
    requests: Vec<Prepared>,
    due: Vec<f64>,
    start: Instant,
    tell: channel::UnboundedSender<Told>,
) {
    let room = Arc::new(Semaphore::new(manner.max_concurrency.unwrap_or(requests.len()).min(requests.len())));
    let manner = Arc::new(manner);
    for (index, (request, due)) in requests.into_iter().zip(due).enumerate() {
        let due = start + Duration::from_secs_f64(due);
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let permit = room.clone().acquire_owned().await;
        let (client, manner, tell) = (client.clone(), manner.clone(), tell.clone());
        tokio::spawn(async move {
            let sent = Instant::now();
            let limit = manner.timeout;
            let timing = tokio::time::timeout(limit, ask(&client, &manner.path, request, sent)).await;
            let timing = timing.unwrap_or_else(|_| {
                Err(format!("no end after {} s (--request-timeout)", limit.as_secs_f64()))
            });
            let ended = match &timing {
                Ok(timing) => sent + timing.e2el,
                Err(_) => Instant::now(),
            };
            drop(permit);
            let outcome = Outcome { index, sent: sent - start, ended: ended - start, timing };
            // Where no one counts any more the run was stopped.
            let _ = tell.send(Told::Outcome(outcome));
        });
    }
}

/// Sends one request and hears its answer to the end.
async fn ask(client: &Client, path: &str, request: Prepared, sent: Instant) -> Result<Timing, String> {
    let mut answer = client.send(path, Some(request.body)).await?;
    let status = answer.response.status();
    if status != StatusCode::OK {
        let said = client::message(&answer.body().await.unwrap_or_default());
        client.keep(answer);
        return Err(format!("HTTP {status}: {said}"));
    }
    let kind = answer.response.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    if !kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
        let kind = kind.map_or("of no type".into(), |kind| client::shown(&String::from_utf8_lossy(kind)));
        return Err(format!("the answer is no stream of events, but {kind}"));
    }
    let (mut lines, mut heard) = (Lines::default(), Heard::new(sent));
    while let Some(frame) = answer.response.body_mut().frame().await {
        let now = Instant::now();
        let frame = frame.map_err(|error| client::told(&error))?;
        let bytes = frame.data_ref().map_or(&[][..], |data| data);
        lines.feed(bytes, |data| heard.event(data, now))?;
    }
    client.keep(answer);
    heard.ended(request.prompt_tokens)
}
