//! What the threads of one rank did, event by event, while it is recorded.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::Part;

/// Events of a thread from which on no new step is recorded: some hundred steps of a large model, and no more memory than a
/// browser can show.
pub const MOST_EVENTS: usize = 1 << 18;

/// Something that took time on a rank's own thread. Events nest: they are in the order of their beginnings.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What it was.
    pub what: What,
    /// Its beginning.
    pub began: Instant,
    /// Its end.
    pub ended: Instant,
}

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A part of a step.
    Part {
        /// The part.
        part: Part,
        /// What ranks did in it together, and the bytes that this one gave to others, or got, if it only got some.
        exchanged: Option<(&'static str, u64)>,
    },
    /// An operation of the device, and the shape of what it made.
    Op {
        /// Its name in [`crate::Device`].
        name: &'static str,
        /// Rows and columns.
        made: Option<[usize; 2]>,
    },
    /// Waiting for other ranks.
    Wait,
}

/// What a rank's threads did.
#[derive(Debug, Default)]
pub struct Timeline {
    /// On its own thread.
    pub events: Vec<Event>,
    /// On each further thread of the device: from when to when it had a share of an operation.
    pub threads: Vec<Vec<(Instant, Instant)>>,
    /// Events on its own thread that found no room.
    pub dropped: u64,
}

/// When the threads of a device work, kept while someone wants to know. Until then it costs one look at a flag per
/// operation.
#[derive(Debug)]
pub struct ThreadLog {
    is_on: AtomicBool,
    /// One per thread but the first, which is the rank's own.
    shares: Vec<Mutex<Vec<(Instant, Instant)>>>,
}

impl ThreadLog {
    /// For a device of so many threads, the rank's own included.
    pub fn new(threads: usize) -> Self {
        let shares = (1..threads).map(|_| Mutex::default()).collect();
        ThreadLog { is_on: AtomicBool::new(false), shares }
    }

    /// Whether someone wants to know.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// Begins or stops.
    pub fn set(&self, on: bool) {
        self.is_on.store(on, Relaxed);
    }

    /// Does a thread's share of an operation, and notes when. The first thread's is the operation itself.
    pub fn share<T>(&self, thread: usize, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        if let Some(shares) = thread.checked_sub(1).and_then(|at| self.shares.get(at)) {
            shares.lock().unwrap_or_else(PoisonError::into_inner).push((began, Instant::now()));
        }
        result
    }

    /// What was noted of each thread but the first.
    pub fn take(&self) -> Vec<Vec<(Instant, Instant)>> {
        let take = |shares: &Mutex<Vec<_>>| {
            std::mem::take(&mut *shares.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.shares.iter().map(take).collect()
    }
}
