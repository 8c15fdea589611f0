//! Ranks that exchange what lies in the memory of GPUs.

mod finish;
mod path;

pub(crate) use path::DataPath;
