//! A rank as others see it: whoever watches it, from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::channel::Op;
use super::region::Region;
use super::sync::Rendezvous;
use crate::{CollectiveError, Progress, Watched};

/// Bits of a number beside its operation.
const NUMBER_BITS: u32 = 56;

/// The group, and where one rank is in it.
pub(super) struct Watch {
    region: Arc<Region>,
    /// The operation, one more than its number in `Op`, above the operation's number. One word, so that both fit
    /// together, and a plain store for the rank.
    now: AtomicU64,
}

impl Watch {
    pub fn new(region: Arc<Region>) -> Self {
        Watch { region, now: AtomicU64::new(0) }
    }

    /// Says what the rank begins.
    pub fn set(&self, op: Op, number: u64) {
        self.now.store((op as u64 + 1) << NUMBER_BITS | number, Relaxed);
    }
}

impl Watched for Watch {
    fn abort(&self, rank: usize, message: &str) {
        self.region.fail_with(rank, message);
    }

    fn progress(&self) -> Progress {
        let now = self.now.load(Relaxed);
        let op = (now >> NUMBER_BITS).checked_sub(1).and_then(|op| Op::of_number(op as usize));
        Progress { op: op.map_or("", Op::name), sequence: now & ((1 << NUMBER_BITS) - 1) }
    }

    fn check(&self) -> Result<(), CollectiveError> {
        if !self.region.has_failed() {
            return Ok(());
        }
        let (rank, message) = self.region.explanation();
        Err(CollectiveError::Failed { rank, message })
    }
}
