//! Completions that somebody waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use engine::serving::Event;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::dispatch::Dispatch;
use crate::timeline::End;
use crate::wire::errors::ApiError;

/// News of a completion.
#[derive(Debug)]
pub enum Update {
    /// What the engine told.
    Event(Event),
    /// It is over.
    Failed(ApiError),
}

/// The completions of one HTTP request. Dropped, it aborts those that are not over.
pub struct Run {
    dispatch: Arc<Dispatch>,
    receiver: UnboundedReceiver<(usize, Update)>,
    /// By index; none once it is over.
    ids: Vec<Option<u64>>,
    deadline: Option<(Instant, Duration)>,
}

impl Run {
    pub(crate) fn new(
        dispatch: Arc<Dispatch>,
        receiver: UnboundedReceiver<(usize, Update)>,
        ids: Vec<Option<u64>>,
    ) -> Self {
        Run { dispatch, receiver, ids, deadline: None }
    }

    /// The same with an end that is no later than `limit` after `arrived`.
    #[must_use]
    pub fn within(mut self, arrived: Instant, limit: Option<Duration>) -> Self {
        self.deadline = limit.map(|limit| (arrived + limit, limit));
        self
    }

    /// What comes next of any of them; nothing once all are over.
    ///
    /// # Errors
    /// If one was refused, the worker failed or the deadline passed: then all are over.
    pub async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        while self.ids.iter().any(Option::is_some) {
            let update = match self.deadline {
                None => self.receiver.recv().await,
                Some((deadline, limit)) => {
                    match tokio::time::timeout_at(deadline.into(), self.receiver.recv()).await {
                        Ok(update) => update,
                        Err(_) => return Err(self.fail(too_slow(limit))),
                    }
                }
            };
            match update {
                // What was on its way when one ended.
                Some((index, _)) if self.ids[index].is_none() => {}
                Some((_, Update::Event(Event::Refused { message, .. }))) => {
                    return Err(self.fail(ApiError::bad(message)));
                }
                Some((index, Update::Event(event))) => {
                    if matches!(event, Event::Token { end: Some(_), .. }) {
                        self.ids[index] = None;
                    }
                    return Ok(Some((index, event)));
                }
                Some((_, Update::Failed(error))) => return Err(self.fail(error)),
                None => {
                    return Err(self.fail(ApiError::internal("the engine has ended").code("engine_failed")));
                }
            }
        }
        Ok(None)
    }

    /// Ends one whose text is complete before the engine knows.
    pub fn end(&mut self, index: usize, end: End) {
        if let Some(id) = self.ids[index].take() {
            self.dispatch.end(id, end);
        }
    }

    fn fail(&mut self, error: ApiError) -> ApiError {
        (0..self.ids.len()).for_each(|index| self.end(index, End::Abort));
        error
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        (0..self.ids.len()).for_each(|index| self.end(index, End::Abort));
    }
}

fn too_slow(limit: Duration) -> ApiError {
    let message = format!("the request took longer than the {} s allowed", limit.as_secs_f64());
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).code("request_timeout")
}
