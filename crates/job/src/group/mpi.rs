//! Groups over MPI, in builds that have it.

#[cfg(feature = "mpi")]
mod with {
    use std::time::Duration;

    use collective::mpi::{MpiRank, MpiWorld};

    use crate::JobError;

    /// This process in MPI's own world, whose ranks are the job's.
    pub struct Mpi(MpiWorld);

    impl Mpi {
        /// Starts MPI; it ends when this is dropped.
        ///
        /// # Errors
        /// It can't be used, or mpirun did not start this job.
        pub fn start(rank: usize, size: usize, deadline: Duration) -> Result<Mpi, JobError> {
            let world = MpiWorld::start(deadline)?;
            match (world.rank(), world.size()) == (rank, size) {
                true => Ok(Mpi(world)),
                false => Err(JobError::NoMpi(format!(
                    "MPI takes this process for {} of {}, the job for {rank} of {size}; start the job with the mpirun of \
                     the MPI that anysplit was built with",
                    world.rank(),
                    world.size()
                ))),
            }
        }

        /// This process's rank in a group.
        pub fn group(&self, id: u16, members: &[usize], deadline: Duration) -> Result<MpiRank, JobError> {
            Ok(self.0.group_with_deadline(id, members, deadline)?)
        }
    }
}

#[cfg(not(feature = "mpi"))]
mod without {
    use std::time::Duration;

    use crate::JobError;

    /// There is none.
    pub enum Mpi {}

    impl Mpi {
        /// Says that this build has no MPI.
        pub fn start(_: usize, _: usize, _: Duration) -> Result<Mpi, JobError> {
            Err(JobError::NoMpi(
                "this anysplit was built without it; cargo build --release --features mpi (docs/mpi.md)"
                    .into(),
            ))
        }
    }
}

#[cfg(feature = "mpi")]
pub use with::Mpi;
#[cfg(not(feature = "mpi"))]
pub use without::Mpi;
