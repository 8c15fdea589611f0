//! What a rank's host and its kernels tell each other while kernels run: `ranks::Words` of `kernels/ranks.cuh`, in memory of the host
//! that the GPU reads and writes by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::peers::{FIRST_OF_MESSAGES, OPS};
use crate::driver::{Address, Fault, SharedMemory};

/// As in the kernels.
pub(super) const MOST_RANKS: usize = 16;
const STOP: usize = 0;
const STATE: usize = 1;
const OP: usize = 2;
const AT: usize = 3;
const MISSING: usize = 4;
const ENDED: usize = 5;
const GAVE: usize = ENDED + MOST_RANKS;
const TOOK: usize = GAVE + MOST_RANKS;
const SIZES: usize = TOOK + MOST_RANKS;
/// Bytes of them.
pub(super) const WORDS_BYTES: usize = 4 * (SIZES + 4);
/// Of those, the state of a rank that stopped because a message was of another size.
const OTHER_SIZE: u32 = 3;

/// One rank's words. Its group's other ranks have them too.
#[derive(Clone)]
pub(super) struct Words(Arc<dyn SharedMemory>);

/// Why a rank's kernels wait no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// Whether the deadline has passed; else somebody stopped them.
    pub is_late: bool,
    /// The operation's number among [`super::peers::OPS`].
    pub op: usize,
    /// Which of the group's calls it was, or of the messages of two ranks.
    pub epoch: u32,
    /// Who did not come, a bit per rank.
    pub missing: u32,
    /// Bytes of a message that came, and how many were expected, where they differ.
    pub sizes: Option<[u64; 2]>,
}

impl Words {
    /// In memory of [`WORDS_BYTES`] bytes that are 0.
    pub fn new(memory: Arc<dyn SharedMemory>) -> Self {
        Words(memory)
    }

    pub fn at(&self) -> Address {
        self.0.at()
    }

    fn word(&self, i: usize) -> &AtomicU32 {
        // SAFETY: there are as many words, which are there as long as the memory is, and of which kernels read and write each at once.
        unsafe { &*(self.0.at() as *const AtomicU32).add(i) }
    }

    /// From now on this rank's kernels wait for nobody.
    pub fn stop(&self) {
        self.word(STOP).store(1, Ordering::Release);
    }

    /// Another rank made so many calls and makes no more.
    pub fn set_ended(&self, rank: usize, calls: u32) {
        self.word(ENDED + rank).store(calls.wrapping_add(1), Ordering::Release);
    }

    /// Another rank gave this one so many messages, took so many of it, and is done with that.
    pub fn set_last_messages(&self, rank: usize, gave: u32, took: u32) {
        self.word(GAVE + rank).store(gave.wrapping_add(1), Ordering::Release);
        self.word(TOOK + rank).store(took.wrapping_add(1), Ordering::Release);
    }

    /// What kernels have found out.
    pub fn report(&self) -> Option<Report> {
        let state = self.word(STATE).load(Ordering::Acquire);
        let word = |i| self.word(i).load(Ordering::Relaxed);
        let bytes = |i| 4 * (u64::from(word(i)) | u64::from(word(i + 1)) << 32);
        let report = || Report {
            is_late: state == 1,
            op: word(OP) as usize,
            epoch: word(AT),
            missing: word(MISSING),
            sizes: (state == OTHER_SIZE).then(|| [bytes(SIZES), bytes(SIZES + 2)]),
        };
        (state != 0).then(report)
    }
}

impl Report {
    /// The ranks that did not come.
    pub fn missing_ranks(&self) -> Vec<usize> {
        (0..MOST_RANKS).filter(|rank| self.missing >> rank & 1 == 1).collect()
    }

    /// The same by what ranks are called.
    pub fn missing_of(&self, numbers: &[usize]) -> Vec<usize> {
        self.missing_ranks().into_iter().map(|rank| numbers[rank]).collect()
    }

    /// What was sent and what was expected, where they differ. `numbers`: what ranks are called.
    pub fn other_size(&self, numbers: &[usize]) -> Option<String> {
        let [sent, expected] = self.sizes?;
        let (number, from) = (self.epoch, self.missing_of(numbers));
        Some(format!(
            "recv number {number}: a matrix of rank {from:?} has {sent} bytes, and {expected} were expected"
        ))
    }

    /// For whoever reads what was never computed. `numbers`: what ranks are called.
    pub fn fault(&self, numbers: &[usize]) -> Fault {
        let op = OPS.get(self.op).copied().unwrap_or("a collective");
        let (missing, epoch) = (self.missing_of(numbers), self.epoch);
        let which = if self.op >= FIRST_OF_MESSAGES { "matrix" } else { "exchange" };
        Fault(match (self.other_size(numbers), self.is_late) {
            (Some(sizes), _) => sizes,
            (None, true) => {
                format!("{op} ({which} {epoch} of its group): rank {missing:?} did not arrive in time")
            }
            (None, false) => {
                format!("{op} ({which} {epoch} of its group) was given up: rank {missing:?} had not arrived")
            }
        })
    }
}
