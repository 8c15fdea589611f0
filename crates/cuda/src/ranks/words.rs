//! What a rank's host and its kernels tell each other while kernels run: `ranks::Words` of `kernels/ranks.cuh`, in memory of the host
//! that the GPU reads and writes by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::peers::OPS;
use crate::driver::{Address, Fault, SharedMemory};

/// As in the kernels.
pub(super) const MOST_RANKS: usize = 16;
const STOP: usize = 0;
const STATE: usize = 1;
const OP: usize = 2;
const AT: usize = 3;
const MISSING: usize = 4;
const ENDED: usize = 5;
/// Bytes of them.
pub(super) const WORDS_BYTES: usize = 4 * (ENDED + MOST_RANKS);

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
    /// Which of the group's calls it was.
    pub epoch: u32,
    /// Who did not come, a bit per rank.
    pub missing: u32,
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

    /// What kernels have found out.
    pub fn report(&self) -> Option<Report> {
        let state = self.word(STATE).load(Ordering::Acquire);
        let word = |i| self.word(i).load(Ordering::Relaxed);
        let report =
            || Report { is_late: state == 1, op: word(OP) as usize, epoch: word(AT), missing: word(MISSING) };
        (state != 0).then(report)
    }
}

impl Report {
    /// The ranks that did not come.
    pub fn missing_ranks(&self) -> Vec<usize> {
        (0..MOST_RANKS).filter(|rank| self.missing >> rank & 1 == 1).collect()
    }

    /// For whoever reads what was never computed.
    pub fn fault(&self) -> Fault {
        let op = OPS.get(self.op).copied().unwrap_or("a collective");
        let (missing, epoch) = (self.missing_ranks(), self.epoch);
        Fault(match self.is_late {
            true => format!("{op} (exchange {epoch} of its group): rank {missing:?} did not arrive in time"),
            false => {
                format!("{op} (exchange {epoch} of its group) was given up: rank {missing:?} had not arrived")
            }
        })
    }
}
