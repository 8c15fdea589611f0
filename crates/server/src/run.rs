//! Completions that somebody waits for.

use std::sync::Arc;

use engine::serving::Event;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::requests::Requests;
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
    requests: Arc<Requests>,
    receiver: UnboundedReceiver<(usize, Update)>,
    /// By index; none once it is over.
    ids: Vec<Option<u64>>,
    /// How many are not over.
    running: usize,
}

impl Run {
    pub(crate) fn new(
        requests: Arc<Requests>,
        receiver: UnboundedReceiver<(usize, Update)>,
        ids: Vec<Option<u64>>,
    ) -> Self {
        Run { requests, receiver, running: ids.len(), ids }
    }

    /// What comes next of any of them; nothing once all are over.
    ///
    /// # Errors
    /// If one was refused or the worker failed: then all are over.
    pub async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        while self.running > 0 {
            let update = self.receiver.recv().await;
            match update {
                // What was on its way when one ended.
                Some((index, _)) if self.ids[index].is_none() => {}
                Some((_, Update::Event(Event::Refused { message, .. }))) => {
                    return Err(self.fail(ApiError::bad(message)));
                }
                Some((index, Update::Event(event))) => {
                    if matches!(event, Event::Token { end: Some(_), .. }) {
                        self.over(index);
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
        if let Some(id) = self.over(index) {
            self.requests.end(id, end);
        }
    }

    /// Its id, unless it was over before.
    fn over(&mut self, index: usize) -> Option<u64> {
        let id = self.ids[index].take()?;
        self.running -= 1;
        Some(id)
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
