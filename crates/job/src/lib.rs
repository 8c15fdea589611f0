//! Everything that makes processes into one job: which launcher started them, how they meet, how they watch each other.

pub mod env;
mod error;

pub use env::{JobEnv, Launcher};
pub use error::JobError;
