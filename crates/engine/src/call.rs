//! One call of [`crate::Engine::generate`]: which requests wait, run and have ended.

use std::collections::VecDeque;

use crate::replica::TokenEvent;
use crate::router::Router;
use crate::{Completion, FinishReason, GenerateRequest};

/// One call of `generate`.
pub(crate) struct Call<'a> {
    /// Id of its first request.
    pub first: u64,
    requests: &'a [GenerateRequest],
    pub router: Router,
    waiting: VecDeque<usize>,
    running: Vec<bool>,
    pub completions: Vec<Completion>,
    on_token: &'a mut dyn FnMut(usize, u32) -> bool,
}

impl<'a> Call<'a> {
    pub fn new(
        first: u64,
        requests: &'a [GenerateRequest],
        replicas: usize,
        on_token: &'a mut dyn FnMut(usize, u32) -> bool,
    ) -> Self {
        let empty = Completion { token_ids: Vec::new(), finish_reason: FinishReason::Length };
        Call {
            first,
            requests,
            router: Router::new(replicas),
            waiting: (0..requests.len()).collect(),
            running: vec![true; requests.len()],
            completions: vec![empty; requests.len()],
            on_token,
        }
    }

    pub fn is_done(&self) -> bool {
        !self.running.contains(&true)
    }

    /// The requests that find a replica now: (replica, request).
    pub fn assign(&mut self, most: usize) -> Vec<(usize, usize)> {
        let mut assigned = Vec::new();
        while let Some(&index) = self.waiting.front() {
            let (id, request) = (self.first + index as u64, &self.requests[index]);
            let Some(replica) = self.router.assign(id, &request.prompt, request.work(), most) else { break };
            self.waiting.pop_front();
            assigned.push((replica, index));
        }
        assigned
    }

    /// The requests that a replica works on: (replica, id).
    pub fn running(&self) -> Vec<(usize, u64)> {
        let ids = self.running.iter().zip(self.first..).filter(|(runs, _)| **runs).map(|(_, id)| id);
        ids.filter_map(|id| Some((self.router.replica_of(id)?, id))).collect()
    }

    /// Notes a token. Returns a request that its caller wants to end, and its replica.
    pub fn take(&mut self, event: TokenEvent) -> Option<(usize, u64)> {
        let index = event.id.checked_sub(self.first)? as usize;
        if !*self.running.get(index)? {
            return None; // it was aborted, and its replica did not know yet
        }
        self.completions[index].token_ids.push(event.token);
        // The caller hears of every token, also of one that ends the completion.
        let wants_end = (self.on_token)(index, event.token);
        let end = if wants_end { Some(FinishReason::Stop) } else { event.end };
        self.completions[index].finish_reason = end?;
        self.running[index] = false;
        let replica = self.router.replica_of(event.id)?;
        self.router.done(event.id);
        event.end.is_none().then_some((replica, event.id))
    }
}
