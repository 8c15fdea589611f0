//! Moves between ranks with a GPU each, by the library.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use collective::{CallId, CollectiveError, Group};

use super::api::Transfer;
use super::call::Call;
use super::communicator::Communicator;
use super::setup;
use crate::driver::{Address, Fault};
use crate::ranks::{DataPath, Move, Refusal};
use crate::tensor::Queue;

const WORD: usize = 4;

/// The way to the other ranks of a group, each of which has a GPU of its own.
pub(crate) struct NcclPath {
    communicator: Arc<Communicator>,
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
    ) -> Result<Result<Self, Refusal>, CollectiveError> {
        let made = setup::communicator(queue, group, deadline)?;
        Ok(made.map(|made| NcclPath { communicator: Arc::new(made) }))
    }

    fn call(&self, queue: &Queue, call: CallId, transfers: Vec<Transfer>) -> Result<(), Fault> {
        if transfers.is_empty() {
            return Ok(());
        }
        queue.call(Rc::new(Call { communicator: self.communicator.clone(), call, transfers }))
    }
}

impl DataPath for NcclPath {
    fn exchange(&self, queue: &Queue, call: CallId, sends: &[Move], receives: &[Move]) -> Result<(), Fault> {
        let send = |m: &Move| Transfer::Send { from: m.at, bytes: WORD * m.words, peer: m.rank };
        let receive = |m: &Move| Transfer::Recv { to: m.at, bytes: WORD * m.words, peer: m.rank };
        self.call(queue, call, sends.iter().map(send).chain(receives.iter().map(receive)).collect())
    }

    fn all_gather(
        &self,
        queue: &Queue,
        call: CallId,
        from: Address,
        words: usize,
        to: Address,
    ) -> Result<(), Fault> {
        let all = (words > 0).then_some(Transfer::AllGather { from, to, count: words });
        self.call(queue, call, all.into_iter().collect())
    }

    fn sum(&self, queue: &Queue, call: CallId, at: Address, count: usize) -> Result<(), Fault> {
        let all = (count > 0).then_some(Transfer::AllReduce { from: at, to: at, count });
        self.call(queue, call, all.into_iter().collect())
    }

    fn sum_scatter(
        &self,
        queue: &Queue,
        call: CallId,
        from: Address,
        count: usize,
        to: Address,
    ) -> Result<(), Fault> {
        let all = (count > 0).then_some(Transfer::ReduceScatter { from, to, count });
        self.call(queue, call, all.into_iter().collect())
    }
}
