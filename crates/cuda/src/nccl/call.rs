//! Transfers as work of a GPU's queue.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::api::Transfer;
use super::communicator::Communicator;
use crate::driver::{Fault, Foreign};

/// Transfers that are done together.
pub(super) struct Call {
    pub communicator: Arc<Communicator>,
    /// What they are for, and its number since the communicator was made: what errors call them.
    pub op: &'static str,
    pub number: u64,
    pub transfers: Vec<Transfer>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {} over NCCL on rank {}", self.op, self.number, self.communicator.rank)
    }
}

impl Call {
    /// Tells the other ranks what went wrong here.
    fn told(&self, result: Result<(), Fault>) -> Result<(), Fault> {
        result.inspect_err(|Fault(why)| self.communicator.tell(&format!("{self}: {why}")))
    }
}

impl Foreign for Call {
    fn words(&self) -> Vec<u64> {
        let words = |transfer: &Transfer| match *transfer {
            Transfer::AllReduce { from, to, count } => [0, from, to, count as u64],
            Transfer::ReduceScatter { from, to, count } => [1, from, to, count as u64],
            Transfer::AllGather { from, to, count } => [2, from, to, count as u64],
            Transfer::Broadcast { at, bytes, root } => [3, at, bytes as u64, root as u64],
            Transfer::Send { from, bytes, peer } => [4, from, bytes as u64, peer as u64],
            Transfer::Recv { to, bytes, peer } => [5, to, bytes as u64, peer as u64],
        };
        [self.communicator.serial].into_iter().chain(self.transfers.iter().flat_map(words)).collect()
    }

    fn enqueue(&self, stream: *mut c_void) -> Result<(), Fault> {
        let enqueued = self.communicator.enqueue(&self.transfers, stream);
        self.told(enqueued).map_err(|Fault(why)| Fault(format!("{self}: {why}")))
    }

    fn watch(&self, waited: Duration) -> Result<(), Fault> {
        self.told(self.communicator.watch(waited))
    }

    fn abort(&self) {
        self.communicator.abort();
    }
}
