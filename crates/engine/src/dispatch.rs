//! Requests on their way to replicas: who waits, who has which.

use std::collections::VecDeque;

use crate::GenerateRequest;
use crate::router::Router;
use crate::serving::Event;

/// The requests that have not ended, first come, first served.
pub(crate) struct Dispatch {
    router: Router,
    /// Those that no replica has yet.
    waiting: VecDeque<(u64, GenerateRequest)>,
}

/// A request that has found its replica.
pub(crate) struct Assigned {
    pub replica: usize,
    pub id: u64,
    pub request: GenerateRequest,
}

impl Dispatch {
    pub fn new(replicas: usize) -> Self {
        Dispatch { router: Router::new(replicas), waiting: VecDeque::new() }
    }

    pub fn submit(&mut self, id: u64, request: GenerateRequest) {
        self.waiting.push_back((id, request));
    }

    /// The next request that finds a replica with fewer than `most` requests.
    pub fn assign(&mut self, most: usize) -> Option<Assigned> {
        let (id, request) = self.waiting.front()?;
        let replica = self.router.assign(*id, &request.prompt, request.work(), most)?;
        let (id, request) = self.waiting.pop_front()?;
        Some(Assigned { replica, id, request })
    }

    /// Forgets a request. Its replica, if one has it.
    pub fn end(&mut self, id: u64) -> Option<usize> {
        let replica = self.router.replica_of(id);
        match replica {
            Some(_) => self.router.done(id),
            None => self.waiting.retain(|(waiting, _)| *waiting != id),
        }
        replica
    }

    /// Notes what became of a request; `false` if it was aborted, and its replica did not know yet.
    pub fn note(&mut self, event: &Event) -> bool {
        let is_known = self.router.replica_of(event.id()).is_some();
        if is_known && event.is_last() {
            self.router.done(event.id());
        }
        is_known
    }

    /// All requests.
    pub fn ids(&self) -> Vec<u64> {
        self.router.ids().chain(self.waiting.iter().map(|(id, _)| *id)).collect()
    }

    /// Requests that no replica has yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there are no requests.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.router.ids().next().is_none()
    }
}
