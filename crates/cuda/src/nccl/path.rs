//! Moves between ranks with a GPU each, by the library.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use collective::{CollectiveError, Group};

use super::api::Transfer;
use super::call::Call;
use super::communicator::Communicator;
use super::setup;
use crate::driver::{Address, Fault};
use crate::ranks::{DataPath, Move};
use crate::tensor::Queue;

const WORD: usize = 4;

/// The way to the other ranks of a group, each of which has a GPU of its own.
pub(crate) struct NcclPath {
    communicator: Arc<Communicator>,
    calls: AtomicU64,
}

impl NcclPath {
    /// Makes a communicator of a group's ranks and their GPUs. All ranks call it, on their own threads, and get one or the same error.
    ///
    /// # Errors
    /// A rank is missing or has failed, or the group is lost for other reasons. The inner error, which is no failure of the group:
    /// a rank has no library, or another one than the others, or the library finds no way between the GPUs.
    pub fn new(
        queue: &Queue,
        group: &dyn Group,
        deadline: Duration,
    ) -> Result<Result<Self, Fault>, CollectiveError> {
        let made = setup::communicator(queue, group, deadline)?;
        Ok(made.map(|made| NcclPath { communicator: Arc::new(made), calls: AtomicU64::new(0) }))
    }

    fn call(&self, queue: &Queue, op: &'static str, transfers: Vec<Transfer>) -> Result<(), Fault> {
        let number = self.calls.fetch_add(1, Relaxed) + 1;
        if transfers.is_empty() {
            return Ok(());
        }
        let communicator = self.communicator.clone();
        queue.call(Rc::new(Call { communicator, op, number, transfers }))
    }
}

impl DataPath for NcclPath {
    fn exchange(
        &self,
        queue: &Queue,
        op: &'static str,
        sends: &[Move],
        receives: &[Move],
    ) -> Result<(), Fault> {
        let send = |m: &Move| Transfer::Send { from: m.at, bytes: WORD * m.words, peer: m.rank };
        let receive = |m: &Move| Transfer::Recv { to: m.at, bytes: WORD * m.words, peer: m.rank };
        self.call(queue, op, sends.iter().map(send).chain(receives.iter().map(receive)).collect())
    }

    fn all_gather(
        &self,
        queue: &Queue,
        op: &'static str,
        from: Address,
        words: usize,
        to: Address,
    ) -> Result<(), Fault> {
        let all = (words > 0).then_some(Transfer::AllGather { from, to, count: words });
        self.call(queue, op, all.into_iter().collect())
    }

    fn sum(&self, queue: &Queue, op: &'static str, at: Address, count: usize) -> Result<(), Fault> {
        let all = (count > 0).then_some(Transfer::AllReduce { from: at, to: at, count });
        self.call(queue, op, all.into_iter().collect())
    }
}
