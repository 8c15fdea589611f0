//! Where a group is, and how those who watch it end its waits: from any thread.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use collective::{CallId, CollectiveError, Progress, Watched};

use super::words::{MOST_RANKS, Words};

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
    /// The same of exchanges, by their number among themselves.
    exchanges: VecDeque<(u32, u64)>,
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

    /// A message begins, of this number among those of its pair.
    pub fn enter_message(&self, op: &'static str, sequence: u64, host: Progress) {
        self.calls().last = Some((Progress { op, sequence }, host));
    }

    /// It has launched all its kernels; there were so many so far.
    pub fn leave(&self, kernels: u32) {
        let calls = &mut *self.calls();
        keep(&mut calls.numbers, kernels, calls.all);
    }

    /// The same of an exchange; there were so many so far.
    pub fn leave_exchange(&self, exchanges: u32) {
        let calls = &mut *self.calls();
        keep(&mut calls.exchanges, exchanges, calls.all);
    }

    /// The number of the call that a kernel belonged to.
    pub fn number_of(&self, kernel: u32) -> u64 {
        let calls = self.calls();
        found(&calls.numbers, kernel).unwrap_or(calls.all)
    }

    /// The number of the call that an exchange was.
    pub fn number_of_exchange(&self, exchange: u32) -> u64 {
        let calls = self.calls();
        found(&calls.exchanges, exchange).unwrap_or(calls.all)
    }

    /// Nobody's kernels wait any more.
    pub fn stop_all(&self) {
        self.words.get().into_iter().flatten().flatten().for_each(Words::stop);
    }

    /// A rank has ended after so many kernels, and so many messages to each rank and of each.
    pub fn end(&self, rank: usize, kernels: u32, messages: &[[u32; 2]]) {
        let all = self.words.get().into_iter().flatten().zip(messages);
        for (words, [to, of]) in all.filter_map(|(words, messages)| Some((words.as_ref()?, *messages))) {
            words.set_last_messages(rank, to, of);
            words.set_ended(rank, kernels);
        }
    }

    fn progress(&self, host: Progress) -> Progress {
        match self.calls().last {
            Some((own, before)) if before == host => own,
            _ => host,
        }
    }
}

fn keep(numbers: &mut VecDeque<(u32, u64)>, counted: u32, number: u64) {
    if numbers.len() == MOST_CALLS {
        numbers.pop_front();
    }
    numbers.push_back((counted, number));
}

fn found(numbers: &VecDeque<(u32, u64)>, counted: u32) -> Option<u64> {
    let is_behind = |&&(last, _): &&(u32, u64)| last.wrapping_sub(counted) as i32 >= 0;
    numbers.iter().find(is_behind).map(|&(_, number)| number)
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
    pub kernels: Cell<u32>,
    /// Messages to each rank, and of each.
    pub messages: Cell<[[u32; 2]; MOST_RANKS]>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.standing.end(self.rank, self.kernels.get(), &self.messages.get());
    }
}
