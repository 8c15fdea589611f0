//! Server-sent events.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender};

use crate::wire::errors::ApiError;

/// Events that wait for a client to take them. More wait as tokens.
const EVENTS_HELD: usize = 16;

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

/// A response whose events `write` sends. It is dropped at once when the client is gone.
pub fn respond<F>(write: impl FnOnce(Sink) -> F) -> Response
where
    F: Future<Output = Result<(), Broken>> + Send + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(EVENTS_HELD);
    let sink = Sink(sender);
    let written = write(sink.clone());
    tokio::spawn(async move {
        let work = async {
            match written.await {
                Ok(()) => {}
                Err(Broken::Gone) => return Err(Broken::Gone),
                Err(Broken::Failed(error)) => sink.send(&error.to_json()).await?,
            }
            sink.send_text("data: [DONE]\n\n".into()).await
        };
        tokio::select! {
            () = sink.0.closed() => {}
            // Who is gone needs no end.
            _ = work => {}
        }
    });
    let mut response = Response::new(Body::new(Events(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Events(Receiver<Bytes>);

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
