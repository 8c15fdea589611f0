//! Ranks that exchange what lies in the memory of GPUs.

mod agreed;
mod collective;
mod compressed;
mod crossover;
mod finish;
mod fused;
mod group;
mod meeting;
mod moves;
mod path;
mod peers;
mod registry;
mod rings;
mod setup;
mod standing;
mod turns;
mod words;

pub(crate) use agreed::{Refusal, agreed};
pub(crate) use finish::Trees;
pub use group::{CudaGroup, GROUP_BYTES, Way};
pub(crate) use path::{DataPath, Move};
pub(crate) use turns::lets_kernels_wait;
