//! What ranks with a GPU each exchange, by the library.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use collective::{CollectiveError, Group};

use super::api::{Nccl, Transfer};
use super::call::Call;
use super::communicator::Communicator;
use crate::driver::{Address, Fault};
use crate::ranks::DataPath;
use crate::tensor::Queue;

const WORD: usize = 4;

/// The ranks of a group, each of which has a GPU of its own.
pub(crate) struct NcclPath {
    communicator: Arc<Communicator>,
    calls: AtomicU64,
}

impl NcclPath {
    /// Makes a communicator of a group's ranks and their GPUs. All ranks call it, on their own threads.
    ///
    /// # Errors
    /// A rank is missing at the deadline or has failed; or what the library says, of two ranks on one GPU, say. The group has failed
    /// then.
    pub fn new(nccl: Arc<Nccl>, queue: &Queue, group: &dyn Group, deadline: Duration) -> Result<Self, Fault> {
        queue.0.driver.bind().inspect_err(|Fault(why)| group.fail(why))?;
        let communicator = Arc::new(Communicator::new(nccl, group, deadline)?);
        Ok(NcclPath { communicator, calls: AtomicU64::new(0) })
    }

    fn call(&self, queue: &Queue, op: &'static str, transfers: Vec<Transfer>) -> Result<(), Fault> {
        let number = self.calls.fetch_add(1, Relaxed) + 1;
        if transfers.is_empty() {
            return Ok(());
        }
        let communicator = self.communicator.clone();
        queue.call(Rc::new(Call { communicator, op, number, transfers }))
    }

    /// Words of this rank to where others' are, if they are not there already.
    fn copy(&self, queue: &Queue, from: Address, to: Address, words: usize) -> Result<(), Fault> {
        if from == to || words == 0 { Ok(()) } else { queue.copy(from, to, WORD * words) }
    }
}

/// For each rank where its words begin, and how many they are.
fn places(at: Address, words_of_rank: &[usize]) -> impl Iterator<Item = (usize, Address, usize)> {
    let ends = words_of_rank.iter().scan(0, |end, words| {
        *end += words;
        Some(*end)
    });
    let places = words_of_rank.iter().zip(ends).enumerate();
    places.map(move |(rank, (&words, end))| (rank, at + (WORD * (end - words)) as u64, words))
}

impl DataPath for NcclPath {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn all_gather(
        &self,
        queue: &Queue,
        from: Address,
        words_of_rank: &[usize],
        to: Address,
    ) -> Result<(), Fault> {
        let own = words_of_rank[self.communicator.rank];
        if words_of_rank.iter().all(|&words| words == own) {
            let all = Transfer::AllGather { from, to, count: own };
            return self.call(queue, "all_gather", if own == 0 { vec![] } else { vec![all] });
        }
        let mut transfers = Vec::new();
        for (peer, to, words) in places(to, words_of_rank) {
            if peer == self.communicator.rank {
                self.copy(queue, from, to, words)?;
                continue;
            }
            if own > 0 {
                transfers.push(Transfer::Send { from, bytes: WORD * own, peer });
            }
            if words > 0 {
                transfers.push(Transfer::Recv { to, bytes: WORD * words, peer });
            }
        }
        self.call(queue, "all_gather", transfers)
    }

    fn all_to_all(
        &self,
        queue: &Queue,
        from: Address,
        words_to: &[usize],
        to: Address,
        words_from: &[usize],
    ) -> Result<(), Fault> {
        let mut transfers = Vec::new();
        for ((peer, from, sent), (_, to, received)) in places(from, words_to).zip(places(to, words_from)) {
            if peer == self.communicator.rank {
                assert_eq!(sent, received, "what a rank sends itself it receives");
                self.copy(queue, from, to, sent)?;
                continue;
            }
            if sent > 0 {
                transfers.push(Transfer::Send { from, bytes: WORD * sent, peer });
            }
            if received > 0 {
                transfers.push(Transfer::Recv { to, bytes: WORD * received, peer });
            }
        }
        self.call(queue, "all_to_all", transfers)
    }

    fn send(&self, queue: &Queue, from: Address, words: usize, rank: usize) -> Result<(), Fault> {
        self.call(queue, "send", vec![Transfer::Send { from, bytes: WORD * words, peer: rank }])
    }

    fn recv(&self, queue: &Queue, to: Address, words: usize, rank: usize) -> Result<(), Fault> {
        self.call(queue, "recv", vec![Transfer::Recv { to, bytes: WORD * words, peer: rank }])
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.communicator.check()
    }
}
