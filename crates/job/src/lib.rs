//! Everything that makes processes into one job: which launcher started them, how they meet, how they watch each other,
//! and the groups in which they exchange data.

mod auth;
pub mod env;
mod error;
mod frame;
mod group;
mod host;
mod job;
mod lifeline;
mod line;
mod rendezvous;
mod report;
mod watch;

pub use env::{JobEnv, Launcher};
pub use error::JobError;
pub use frame::Failure;
pub use group::{Backend, JobGroup};
pub use host::Host;
pub use job::{Job, JobOptions};
pub use lifeline::{LIFE_FD, hold_lifeline};
pub use report::{Cause, Ending, REPORT_FD, Report};

/// What all ranks of a job must have in common: names and values, such as the version and the plan.
pub type Fingerprint = Vec<(String, String)>;
