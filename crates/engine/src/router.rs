//! Which replica gets a request: a function of what is outstanding, without clock or I/O.

use std::collections::{BTreeMap, HashMap};

/// Tokens of a prompt that are compared at a time.
const CHUNK: usize = 64;
/// Prompt chunks that are remembered per replica.
const REMEMBERED: usize = 4096;

/// Spreads requests over replicas: the least outstanding work first, less what a replica has seen of the prompt before
/// and so may hold in its cache.
#[derive(Debug)]
pub struct Router {
    replicas: Vec<State>,
    /// Requests that are out.
    out: BTreeMap<u64, Out>,
}

#[derive(Debug)]
struct Out {
    replica: usize,
    work: usize,
    is_preparing: bool,
}

#[derive(Debug, Default)]
struct State {
    work: usize,
    /// Requests that have one of its places.
    running: usize,
    /// Those that are made ready, and have none yet.
    preparing: usize,
    /// Hash chains of prompts that it got, and when it last got them.
    seen: HashMap<u64, u64>,
    clock: u64,
}

impl Router {
    /// Replicas without work.
    pub fn new(replicas: usize) -> Self {
        Router { replicas: (0..replicas).map(|_| State::default()).collect(), out: BTreeMap::new() }
    }

    /// Gives a request of `work` tokens to a replica on which fewer than `most` run; `None` if all are full. It counts as one
    /// that runs, unless it `prepares`: then it does from [`Router::started`] on, and each replica prepares `most` at a time.
    pub fn assign(
        &mut self,
        id: u64,
        prompt: &[u32],
        work: usize,
        prepares: bool,
        most: usize,
    ) -> Option<usize> {
        let is_open = |state: &State| state.running < most && !(prepares && state.preparing >= most);
        if !self.replicas.iter().any(is_open) {
            return None;
        }
        // All of a prompt is read only where there is a choice.
        let chain = if self.replicas.len() > 1 { chain(prompt) } else { Vec::new() };
        let cost = |state: &State| state.work.saturating_sub(state.known(&chain));
        let open = self.replicas.iter().enumerate().filter(|(_, state)| is_open(state));
        let (replica, _) = open.min_by_key(|(replica, state)| (cost(state), *replica))?;
        let state = &mut self.replicas[replica];
        state.work += work;
        *state.count(prepares) += 1;
        state.remember(chain);
        let before = self.out.insert(id, Out { replica, work, is_preparing: prepares });
        assert!(before.is_none(), "request {id} is out already");
        Some(replica)
    }

    /// Whether fewer than `most` run on some replica.
    pub fn has_room(&self, most: usize) -> bool {
        self.replicas.iter().any(|state| state.running < most)
    }

    /// Notes that a request runs.
    pub fn started(&mut self, id: u64) {
        if let Some(out) = self.out.get_mut(&id).filter(|out| out.is_preparing) {
            out.is_preparing = false;
            let state = &mut self.replicas[out.replica];
            state.preparing -= 1;
            state.running += 1;
        }
    }

    /// Notes that a request has ended.
    pub fn done(&mut self, id: u64) {
        if let Some(Out { replica, work, is_preparing }) = self.out.remove(&id) {
            self.replicas[replica].work -= work;
            *self.replicas[replica].count(is_preparing) -= 1;
        }
    }

    /// The replica that has a request.
    pub fn replica_of(&self, id: u64) -> Option<usize> {
        self.out.get(&id).map(|out| out.replica)
    }

    /// All requests that are out.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.out.keys().copied()
    }
}

impl State {
    fn count(&mut self, is_preparing: bool) -> &mut usize {
        if is_preparing { &mut self.preparing } else { &mut self.running }
    }

    /// Tokens at the start of a prompt that this replica has seen.
    fn known(&self, chain: &[u64]) -> usize {
        CHUNK * chain.iter().take_while(|hash| self.seen.contains_key(hash)).count()
    }

    fn remember(&mut self, chain: Vec<u64>) {
        self.clock += 1;
        self.seen.extend(chain.into_iter().map(|hash| (hash, self.clock)));
        if self.seen.len() > REMEMBERED {
            // The older half goes.
            let mut times: Vec<u64> = self.seen.values().copied().collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            self.seen.retain(|_, time| *time > middle);
        }
    }
}

/// A hash of each whole chunk of a prompt and all before it (FNV-1a).
fn chain(prompt: &[u32]) -> Vec<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let chunks = prompt.chunks_exact(CHUNK).map(|chunk| {
        for byte in chunk.iter().flat_map(|token| token.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash
    });
    chunks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replica_with_the_least_work_is_next() {
        let mut router = Router::new(3);
        let works = [100, 10, 10, 50, 1];
        let got: Vec<_> =
            (0..5).map(|i| router.assign(i as u64, &[i as u32], works[i], false, 9).unwrap()).collect();
        assert_eq!(got, [0, 1, 2, 1, 2]);
        router.done(0);
        assert_eq!(router.assign(9, &[1], 1, false, 9), Some(0));
    }

    #[test]
    fn a_prompt_goes_where_its_beginning_is_known_unless_that_replica_is_busier_by_more() {
        let system: Vec<u32> = (0..200).collect();
        let with = |end: u32| [&system[..], &[end]].concat();
        let mut router = Router::new(2);
        assert_eq!(router.assign(0, &with(1), 150, false, 9), Some(0));
        assert_eq!(router.assign(1, &[7; 300], 20, false, 9), Some(1));
        assert_eq!(router.assign(2, &with(2), 150, false, 9), Some(0), "192 tokens are known there");
        assert_eq!(router.assign(3, &with(3), 150, false, 9), Some(1), "that is too busy now");
    }

    #[test]
    fn a_full_replica_gets_nothing() {
        let mut router = Router::new(2);
        assert_eq!(
            [router.assign(0, &[1], 1, false, 1), router.assign(1, &[1], 1, false, 1)],
            [Some(0), Some(1)]
        );
        assert_eq!(router.assign(2, &[1], 1, false, 1), None);
        router.done(1);
        assert_eq!((router.replica_of(0), router.replica_of(1)), (Some(0), None));
        assert_eq!(router.assign(2, &[1], 1, false, 1), Some(1));
    }

    #[test]
    fn what_is_made_ready_takes_a_place_when_it_starts() {
        let mut router = Router::new(1);
        let assign = |router: &mut Router, id, prepares| router.assign(id, &[1], 1, prepares, 2).is_some();
        assert_eq!([0, 1, 2].map(|id| assign(&mut router, id, true)), [true, true, false]);
        assert_eq!([3, 4, 5].map(|id| assign(&mut router, id, false)), [true, true, false]);
        router.done(3);
        router.started(0);
        router.started(0);
        assert!(!router.has_room(2));
        router.done(1); // it was aborted
        router.done(0);
        assert_eq!([6, 7, 8].map(|id| assign(&mut router, id, true)), [true, true, false]);
        assert!(assign(&mut router, 9, false) && !assign(&mut router, 10, false));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut router = Router::new(1);
        for i in 0..10_000u32 {
            let prompt: Vec<u32> = (0..64).map(|t| t ^ (i << 8)).collect();
            router.assign(u64::from(i), &prompt, 1, false, usize::MAX);
        }
        assert!(router.replicas[0].seen.len() <= REMEMBERED);
    }
}
