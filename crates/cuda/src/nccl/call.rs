//! Transfers as work of a GPU's queue.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use collective::CallId;

use super::api::Transfer;
use super::communicator::Communicator;
use crate::driver::{Fault, Foreign};

/// Transfers that are done together.
pub(super) struct Call {
    pub communicator: Arc<Communicator>,
    /// What they are a part of: what errors call them.
    pub call: CallId,
    pub transfers: Vec<Transfer>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CallId { op, number, peer } = self.call;
        write!(f, "{op} number {number} ")?;
        peer.map_or(Ok(()), |peer| write!(f, "with rank {peer} "))?;
        write!(f, "over NCCL on rank {}", self.communicator.rank)
    }
}

impl Call {
    /// Tells the other ranks what went wrong here.
    fn told(&self, result: Result<(), Fault>) -> Result<(), Fault> {
        result.inspect_err(|Fault(why)| self.communicator.tell(&format!("{self}: {why}")))
    }
}

impl Foreign for Call {
    fn words(&self) -> Option<Vec<u64>> {
        None
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
