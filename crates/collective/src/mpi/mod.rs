//! Groups over MPI, for hosts between which an MPI that knows their network is installed.
//!
//! Only messages between two ranks are MPI's; sums are made here, of the tree's nodes, so that their bits are the
//! canonical ones. MPI has no waits with a deadline, and none that another thread could end; so ranks look again and
//! again, ever less often. See docs/mpi.md.

mod lane;
mod notice;
mod wire;
mod world;

use std::sync::Arc;
use std::time::Duration;

use crate::CollectiveError;
use crate::message::Messages;
pub use wire::MpiWire;
use world::World;

/// A rank of a group over MPI.
pub type MpiRank = Messages<MpiWire>;

/// Groups that a process can be in, one after the other or at a time: MPI promises this many tags.
pub const GROUPS_MAX: u16 = (32_768 / notice::TAGS) as u16;

/// This process among those that `mpirun` started together. MPI ends when it is dropped, which must happen on the
/// thread that started it, after the last call of its groups.
pub struct MpiWorld {
    world: Arc<World>,
    deadline: Duration,
}

impl MpiWorld {
    /// Starts MPI. All processes call it, once. `deadline`: what a wait of its groups may take.
    ///
    /// # Errors
    /// It has been started before, or cannot be used.
    pub fn start(deadline: Duration) -> Result<Self, CollectiveError> {
        Ok(MpiWorld { world: Arc::new(World::start()?), deadline })
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.world.rank
    }

    /// Processes in all.
    pub fn size(&self) -> usize {
        self.world.size
    }

    /// This process's rank in a group of some processes, which all give the same `members`, in the order of ranks, and
    /// the same number `id`, which no other group of theirs has. Waits for nobody.
    ///
    /// # Errors
    /// This process is no member, or a number is too large.
    pub fn group(&self, id: u16, members: &[usize]) -> Result<MpiRank, CollectiveError> {
        self.group_with_deadline(id, members, self.deadline)
    }

    /// The same, with a deadline of its own.
    ///
    /// # Errors
    /// As for [`MpiWorld::group`].
    pub fn group_with_deadline(
        &self,
        id: u16,
        members: &[usize],
        deadline: Duration,
    ) -> Result<MpiRank, CollectiveError> {
        let (rank, size) = (self.rank(), self.size());
        if id >= GROUPS_MAX {
            return Err(CollectiveError::Mpi(format!("group {id} is one too many; there are {GROUPS_MAX}")));
        }
        if let Some(member) = members.iter().find(|&&m| m >= size) {
            return Err(CollectiveError::Mpi(format!("group {id}: there is no process {member} of {size}")));
        }
        let Some(me) = members.iter().position(|&m| m == rank) else {
            return Err(CollectiveError::Mpi(format!("group {id}: process {rank} is no member")));
        };
        Ok(Messages::new(MpiWire::new(self.world.clone(), id, members.to_vec(), me, deadline)))
    }
}

impl std::fmt::Debug for MpiWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MpiWorld({} of {})", self.rank(), self.size())
    }
}

impl Drop for MpiWorld {
    fn drop(&mut self) {
        self.world.end(self.deadline);
    }
}
