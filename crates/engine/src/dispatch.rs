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

    /// The next request that finds a replica on which fewer than `most` run. One with a grammar leaves its place to those behind
    /// it until that is ready; then the next place is its own. Where enough are on their way there, it is passed over.
    pub fn assign(&mut self, most: usize) -> Option<Assigned> {
        let mut at = 0;
        let replica = loop {
            let (id, request) = self.waiting.get(at)?;
            let prepares = request.grammar.is_some();
            match self.router.assign(*id, &request.prompt, request.work(), prepares, most) {
                Some(replica) => break replica,
                None if prepares && self.router.has_room(most) => at += 1,
                None => return None,
            }
        };
        let (id, request) = self.waiting.remove(at)?;
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
        if let Event::Started { id, .. } = event {
            self.router.started(*id);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Grammar;

    #[test]
    fn who_came_first_is_first_also_behind_grammars_that_are_not_ready() {
        let mut dispatch = Dispatch::new(1);
        let grammar = || Some(Arc::new(Grammar::Regex("a".into())));
        for (id, grammar) in [(0, grammar()), (1, grammar()), (2, None), (3, None), (4, grammar())] {
            dispatch.submit(id, GenerateRequest { prompt: vec![1], grammar, ..GenerateRequest::default() });
        }
        let next = |dispatch: &mut Dispatch| dispatch.assign(1).map(|assigned| assigned.id);
        // One place, and one grammar at a time.
        assert_eq!([(); 3].map(|()| next(&mut dispatch)), [Some(0), Some(2), None]);
        assert!(dispatch.note(&Event::Started { id: 0, cached_tokens: 0 }));
        dispatch.end(2);
        assert_eq!(next(&mut dispatch), None, "the place is that of the grammar that is ready");
        dispatch.end(0);
        assert_eq!([(); 3].map(|()| next(&mut dispatch)), [Some(1), Some(3), None]);
        // Who gives up leaves nothing behind.
        assert_eq!([dispatch.end(1), dispatch.end(3)], [Some(0), Some(0)]);
        assert_eq!(next(&mut dispatch), Some(4));
        dispatch.end(4);
        assert!(dispatch.is_idle() && dispatch.router.has_room(1));
    }
}
