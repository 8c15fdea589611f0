//! Server-sent events.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, Sleep};

use crate::arrival::Arrival;
use crate::config::Timeouts;
use crate::guard::too_slow;
use crate::wire::errors::ApiError;

/// Events that wait for a client to take them. More wait as tokens.
const EVENTS_HELD: usize = 16;
/// What is sent while there is nothing to tell; clients skip it.
const COMMENT: &[u8] = b": waiting\n\n";
/// The end.
const DONE: &str = "data: [DONE]\n\n";

/// Where events go.
#[derive(Clone)]
pub struct Sink(Sender<Bytes>);

/// Why a stream ends early.
pub enum Broken {
    /// The client is gone.
    Gone,
    /// Something failed, which the client is told.
    Failed(ApiError),
}

impl From<ApiError> for Broken {
    fn from(error: ApiError) -> Self {
        Broken::Failed(error)
    }
}

impl Sink {
    /// Sends an event.
    ///
    /// # Errors
    /// [`Broken::Gone`].
    pub async fn send(&self, data: &Value) -> Result<(), Broken> {
        self.send_text(format!("data: {data}\n\n")).await
    }

    async fn send_text(&self, text: String) -> Result<(), Broken> {
        self.0.send(text.into()).await.map_err(|_| Broken::Gone)
    }
}

/// A response whose events `write` sends. It is dropped at once when the client is gone, or the deadline passes.
pub fn respond<F>(timeouts: &Timeouts, arrival: Arrival, write: impl FnOnce(Sink) -> F) -> Response
where
    F: Future<Output = Result<(), Broken>> + Send + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(EVENTS_HELD);
    let sink = Sink(sender);
    let written = write(sink.clone());
    let limit = timeouts.request;
    tokio::spawn(async move {
        let work = async {
            match written.await {
                Ok(()) => {}
                Err(Broken::Gone) => return Err(Broken::Gone),
                Err(Broken::Failed(error)) => sink.send(&error.to_json()).await?,
            }
            sink.send_text(DONE.into()).await
        };
        tokio::select! {
            () = sink.0.closed() => {}
            // Who is gone needs no end.
            _ = work => {}
            // Who reads so slowly that there is no room for it is not told.
            () = arrival.is_over() => {
                let _ = sink.0.try_send(format!("data: {}\n\n{DONE}", too_slow(limit).to_json()).into());
            }
        }
    });
    let mut response = Response::new(Body::new(Events::new(receiver, timeouts.quiet)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Events as they come, and comments while none do: proxies take a connection that says nothing for a dead one.
struct Events {
    receiver: Receiver<Bytes>,
    quiet: Duration,
    /// When something was last sent.
    last: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Events {
    fn new(receiver: Receiver<Bytes>, quiet: Duration) -> Self {
        Events { receiver, quiet, last: Instant::now(), sleep: Box::pin(tokio::time::sleep(quiet)) }
    }
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Poll::Ready(bytes) = self.receiver.poll_recv(cx) {
            self.last = Instant::now();
            return Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))));
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            // Setting the clock at each event would cost more than at each time that it rings.
            let (due, now) = (self.last + self.quiet, Instant::now());
            let is_quiet = due <= now;
            self.last = if is_quiet { now } else { self.last };
            let next = self.last + self.quiet;
            self.sleep.as_mut().reset(next);
            if is_quiet {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))));
            }
        }
    }
}
