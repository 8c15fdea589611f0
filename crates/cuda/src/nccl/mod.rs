//! Collectives of ranks with a GPU each by NVIDIA's library, which is found at run time.
//!
//! ```text
//! setup.rs         whether all ranks can, and a communicator if they do
//! path.rs          moves of words ─▶ transfers
//! call.rs          transfers as work of a GPU's queue; in no graph, for both sides would have to have them in one
//! communicator.rs  made of a group's ranks; watched while somebody waits; aborted when it takes too long
//! api.rs           the library's functions
//! ```
//!
//! Its own sums have an order of their own, so canonical reductions are made of moves and of kernels of ours.

mod api;
mod call;
mod communicator;
mod path;
mod setup;

pub use api::Nccl;
pub(crate) use path::NcclPath;
