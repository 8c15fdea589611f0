//! Requests whose grammars are being made ready, on a thread of their own: a large one takes some hundred milliseconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::grammar::{Grammars, Start};
use crate::helper::Helper;
use crate::{EngineError, GenerateRequest};

/// A request that may have been aborted since.
type Task = (u64, Weak<GenerateRequest>);
/// `None`: it was.
type Done = (u64, Option<Result<Start, EngineError>>);
/// A request, and what it begins with.
type Started = (u64, GenerateRequest, Result<Start, EngineError>);

/// Requests that wait for their grammars. Each comes before those whose grammars are ready later.
#[derive(Default)]
pub struct Starting {
    requests: BTreeMap<u64, Arc<GenerateRequest>>,
    helper: Option<Helper<Task, Done>>,
}

impl Starting {
    /// # Errors
    /// There are no grammars, or no thread.
    pub fn begin(
        &mut self,
        id: u64,
        request: GenerateRequest,
        grammars: Option<&Arc<Grammars>>,
    ) -> Result<(), EngineError> {
        let none = || EngineError::Request("grammars need a tokenizer, which this model has not".into());
        let grammars = grammars.ok_or_else(none)?;
        let helper = match self.helper.take() {
            Some(helper) => helper,
            None => helper_of(grammars.clone())?,
        };
        let request = Arc::new(request);
        self.helper.insert(helper).give((id, Arc::downgrade(&request)));
        self.requests.insert(id, request);
        Ok(())
    }

    /// Forgets a request. Its grammar is not made ready if that hasn't begun.
    pub fn abort(&mut self, id: u64) {
        self.requests.remove(&id);
    }

    /// The next one whose grammar is ready, or can't be. `None` if there is none within `patience`.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn next_within(&mut self, patience: Duration) -> Result<Option<Started>, EngineError> {
        let Some(helper) = self.helper.as_ref().filter(|_| !self.requests.is_empty()) else {
            return Ok(None);
        };
        while let Some((id, start)) = helper.next_within(patience)? {
            if let Some((request, start)) = self.requests.remove(&id).zip(start) {
                return Ok(Some((id, Arc::unwrap_or_clone(request), start)));
            }
        }
        Ok(None)
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

fn helper_of(grammars: Arc<Grammars>) -> Result<Helper<Task, Done>, EngineError> {
    Helper::start("grammars", move |(id, request): Task| {
        let request = request.upgrade();
        let start =
            request.and_then(|request| request.grammar.as_ref().map(|grammar| grammars.start(grammar)));
        (id, start)
    })
}
