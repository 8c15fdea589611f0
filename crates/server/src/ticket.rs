//! A request's id, and the line that is told of it once it is over. Never a prompt, a completion or a key.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{Method, StatusCode};
use hyper::body::{Body as _, Frame, SizeHint};

use crate::arrival::Arrival;
use crate::config::LogLevel;
use crate::log::Log;
use crate::wire::common::Usage;

/// What a request is called, and what came of it. Every request has this as an extension.
#[derive(Debug)]
pub struct Ticket {
    /// What the header `X-Request-Id` says.
    pub id: String,
    /// When it came, and when it must be over.
    pub arrival: Arrival,
    completion: Mutex<Option<Completion>>,
}

/// What is told of completions.
#[derive(Debug)]
struct Completion {
    /// The id in their body.
    id: String,
    usage: Usage,
    /// Each reason once.
    reasons: Vec<&'static str>,
}

impl Ticket {
    /// That of a request which has just come.
    pub fn new(id: String, arrival: Arrival) -> Self {
        Ticket { id, arrival, completion: Mutex::new(None) }
    }

    /// The engine has been asked for completions.
    pub fn begin(&self, id: &str, usage: Usage) {
        let begun = Completion { id: id.to_owned(), usage, reasons: Vec::new() };
        *self.completion.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
    }

    /// So many tokens so far; and the reason, if a choice has ended.
    pub fn go_on(&self, usage: Usage, reason: Option<&'static str>) {
        if let Some(completion) = &mut *self.completion.lock().unwrap_or_else(PoisonError::into_inner) {
            completion.usage = usage;
            completion.reasons.extend(reason.filter(|reason| !completion.reasons.contains(reason)));
        }
    }
}

/// The line of a request: written when this is dropped, which is when its answer has been sent or its client is gone.
pub struct Line {
    log: Log,
    ticket: Arc<Ticket>,
    method: Method,
    path: String,
    /// Once there is an answer.
    status: Option<StatusCode>,
    /// Whether all of that was sent.
    is_whole: bool,
}

impl Line {
    /// Of a request without an answer.
    pub fn new(log: Log, ticket: Arc<Ticket>, method: Method, path: String) -> Self {
        Line { log, ticket, method, path, status: None, is_whole: false }
    }

    /// The body of its answer, with which it ends.
    pub fn follow(mut self, status: StatusCode, body: Body) -> Body {
        self.status = Some(status);
        // Nobody sends the body of an answer to HEAD.
        self.is_whole = self.method == Method::HEAD || body.is_end_stream();
        match self.log.0 >= LogLevel::Debug {
            true => Body::new(Followed { body, line: self }),
            false => body,
        }
    }

    fn text(&self) -> String {
        let completion = self.ticket.completion.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.status.map_or("-".into(), |status| status.as_u16().to_string());
        let ms = self.ticket.arrival.at.elapsed().as_secs_f64() * 1e3;
        let id = completion.as_ref().map_or(&self.ticket.id, |completion| &completion.id);
        // Debug's quotes and escapes keep a path on one line.
        let mut text = format!("{} {:?} {status} {ms:.1} ms {id}", self.method, self.path);
        if let Some(Completion { usage, reasons, .. }) = &*completion {
            text += &format!(
                " prompt_tokens={} completion_tokens={}",
                usage.prompt_tokens, usage.completion_tokens
            );
            if !reasons.is_empty() {
                text += &format!(" finish_reason={}", reasons.join(","));
            }
        }
        if !self.is_whole {
            text += ", the client left";
        }
        text
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.log.debug(|| self.text());
    }
}

/// A body, and the line that is written when it ends.
struct Followed {
    body: Body,
    line: Line,
}

impl hyper::body::Body for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // Who knows that nothing more comes does not ask again.
        self.line.is_whole = matches!(polled, Poll::Ready(None)) || self.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ticket: &Arc<Ticket>) -> Line {
        Line::new(Log(LogLevel::Error), ticket.clone(), Method::POST, "/v1/a\nb".into())
    }

    #[test]
    fn a_line_tells_what_came_of_a_request() {
        let ticket = Arc::new(Ticket::new("abc-123".into(), Arrival::now(None)));
        let mut line = line(&ticket);
        let text = line.text();
        assert!(text.starts_with("POST \"/v1/a\\nb\" - ") && text.ends_with(" ms abc-123, the client left"));
        let usage = Usage { prompt_tokens: 3, ..Usage::default() };
        ticket.begin("cmpl-abc-123", usage);
        ticket.go_on(Usage { completion_tokens: 4, ..usage }, Some("stop"));
        ticket.go_on(Usage { completion_tokens: 5, ..usage }, Some("stop"));
        (line.status, line.is_whole) = (Some(StatusCode::OK), true);
        let text = line.text();
        assert!(text.contains(" 200 "), "{text}");
        let told = " ms cmpl-abc-123 prompt_tokens=3 completion_tokens=5 finish_reason=stop";
        assert!(text.ends_with(told), "{text}");
    }
}
