//! How a rank stands: what it does, and whether its group has failed. Other threads see and change it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Call, Op};
use crate::{CollectiveError, Progress, Watched};

/// Bits of a number beside its operation.
const NUMBER_BITS: u32 = 56;

/// A rank's place in its group, shared with whoever watches it.
pub struct Standing {
    failure: OnceLock<(usize, String)>,
    /// The operation plus one, above its number: one word, so that both fit together.
    now: AtomicU64,
    /// Ends the rank's wait, wherever it waits, so that it looks at the failure.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Standing {
    /// A rank that has not begun. `wake` is called from any thread, also under locks of the transport that are held by
    /// whoever reports a failure.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Standing { failure: OnceLock::new(), now: AtomicU64::new(0), wake: Box::new(wake) }
    }

    /// Says what the rank begins.
    ///
    /// # Errors
    /// The group has failed.
    pub fn begin(&self, call: &Call) -> Result<(), CollectiveError> {
        self.now.store((call.op as u64 + 1) << NUMBER_BITS | call.number, Relaxed);
        self.check()
    }

    /// Notes a failure, unless there is one already, and wakes the rank.
    pub fn fail(&self, rank: usize, message: &str) {
        if self.failure.set((rank, message.to_string())).is_ok() {
            (self.wake)();
        }
    }

    /// The failure.
    pub fn failure(&self) -> Option<&(usize, String)> {
        self.failure.get()
    }

    /// # Errors
    /// The group has failed.
    pub fn check(&self) -> Result<(), CollectiveError> {
        match self.failure.get() {
            None => Ok(()),
            Some((rank, message)) => Err(CollectiveError::Failed { rank: *rank, message: message.clone() }),
        }
    }
}

impl Watched for Standing {
    fn abort(&self, rank: usize, message: &str) {
        self.fail(rank, message);
    }

    fn progress(&self) -> Progress {
        let now = self.now.load(Relaxed);
        let op = (now >> NUMBER_BITS).checked_sub(1).and_then(|op| Op::of_number(op as usize));
        Progress { op: op.map_or("", Op::name), sequence: now & ((1 << NUMBER_BITS) - 1) }
    }

    fn check(&self) -> Result<(), CollectiveError> {
        Standing::check(self)
    }
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Standing({:?}, {:?})", self.progress(), self.failure.get())
    }
}
