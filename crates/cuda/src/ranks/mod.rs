//! Ranks that exchange what lies in the memory of GPUs.

mod finish;
mod moves;
mod path;

pub(crate) use path::{DataPath, Move};
