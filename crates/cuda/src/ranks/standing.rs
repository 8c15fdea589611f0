//! Where a group is, and how those who watch it end its waits: from any thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use collective::{CallId, CollectiveError, Progress, Watched};

use super::words::Words;

/// Calls that are known by their kernels' numbers.
const MOST_CALLS: usize = 1 << 12;

/// What a group and its watchers share.
#[derive(Default)]
pub(super) struct Standing {
    /// Of the ranks of this process, once they know each other's.
    words: OnceLock<Vec<Option<Words>>>,
    calls: Mutex<Calls>,
}

/// Collectives, of which the host's group sees some.
#[derive(Default)]
struct Calls {
    /// All of them.
    all: u64,
    /// The last that the host's group did not see, and where the host's group was.
    last: Option<(Progress, Progress)>,
    /// The number of kernels after each of them that came last, and its own.
    numbers: VecDeque<(u32, u64)>,
}

impl Standing {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on waits can be ended.
    pub fn set_words(&self, words: Vec<Option<Words>>) {
        // It is called once.
        self.words.set(words).ok();
    }

    /// Collectives of the host's group begin.
    pub fn enter_host(&self, calls: u64) {
        self.calls().all += calls;
    }

    /// Another one begins.
    pub fn enter(&self, op: &'static str, host: Progress) -> CallId {
        let mut calls = self.calls();
        calls.all += 1;
        calls.last = Some((Progress { op, sequence: calls.all }, host));
        CallId { op, number: calls.all, peer: None }
    }

    /// It has launched all its kernels; there were so many so far.
    pub fn leave(&self, kernels: u32) {
        let mut calls = self.calls();
        if calls.numbers.len() == MOST_CALLS {
            calls.numbers.pop_front();
        }
        let number = calls.all;
        calls.numbers.push_back((kernels, number));
    }

    /// The number of the call that a kernel belonged to.
    pub fn number_of(&self, kernel: u32) -> u64 {
        let calls = self.calls();
        let is_behind = |&&(last, _): &&(u32, u64)| last.wrapping_sub(kernel) as i32 >= 0;
        calls.numbers.iter().find(is_behind).map_or(calls.all, |&(_, number)| number)
    }

    /// Nobody's kernels wait any more.
    pub fn stop_all(&self) {
        self.words.get().into_iter().flatten().flatten().for_each(Words::stop);
    }

    /// A rank has ended after so many kernels.
    pub fn end(&self, rank: usize, kernels: u32) {
        self.words.get().into_iter().flatten().flatten().for_each(|words| words.set_ended(rank, kernels));
    }

    fn progress(&self, host: Progress) -> Progress {
        match self.calls().last {
            Some((own, before)) if before == host => own,
            _ => host,
        }
    }
}

/// A group, for whoever watches it.
pub(super) struct WatchedStanding {
    pub host: Arc<dyn Watched>,
    pub standing: Arc<Standing>,
}

impl Watched for WatchedStanding {
    fn abort(&self, rank: usize, message: &str) {
        self.host.abort(rank, message);
        self.standing.stop_all();
    }

    fn progress(&self) -> Progress {
        self.standing.progress(self.host.progress())
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.host.check()
    }
}

/// Tells the others when a rank has ended: dropped behind the host's group, which knows then.
pub(super) struct Ending {
    pub standing: Arc<Standing>,
    pub rank: usize,
    pub kernels: std::cell::Cell<u32>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.standing.end(self.rank, self.kernels.get());
    }
}
