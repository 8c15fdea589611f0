//! Everything that makes processes into one job: which launcher started them, how they meet, how they watch each other,
//! and the groups in which they exchange data.
//!
//! ```no_run
//! use job::{Ending, Failure, Job, JobEnv, JobOptions, Report, hold_lifeline};
//! # fn work(job: &Job) -> Result<(), Failure> { Ok(()) }
//! # fn main() -> Result<(), job::JobError> {
//! let lookup = |name: &str| std::env::var(name).ok();
//! let Some(env) = JobEnv::detect(&lookup)? else { return Ok(()) }; // on its own
//! let options = JobOptions { report: Report::open(&lookup)?, ..JobOptions::default() };
//! hold_lifeline(&lookup, options.comm_timeout)?;
//! let ending = match Job::join(&env, &vec![("version".into(), "0.1.0".into())], &options) {
//!     Ok(job) => {
//!         let result = work(&job); // makes groups, drops them
//!         job.finish(result) // has told the launcher
//!     }
//!     Err(error) => {
//!         let ending = Ending::of_error(&env, &error, options.report.as_ref());
//!         options.report.inspect(|report| report.send(&ending));
//!         Some(ending)
//!     }
//! };
//! if let Some(ending) = ending {
//!     if ending.is_printed {
//!         eprintln!("error: {}", ending.message);
//!     }
//!     std::process::exit(ending.code.into());
//! }
//! # Ok(())
//! # }
//! ```

#![warn(clippy::print_stderr)] // it panics where nothing can be written: `say!` does not

mod auth;
pub mod env;
mod error;
mod frame;
mod group;
mod host;
mod job;
mod lifeline;
mod line;
mod process;
mod rendezvous;
mod report;
mod say;
mod watch;

pub use env::{JobEnv, Launcher};
pub use error::JobError;
pub use frame::Failure;
pub use group::{Backend, JobGroup};
pub use host::Host;
pub use job::{Job, JobOptions};
pub use lifeline::{LIFE_FD, hold_lifeline, wait_for_launcher};
pub use process::process_state;
pub use report::{Cause, Ending, REPORT_FD, Report};
pub use watch::Hold;

/// What all ranks of a job must have in common: names and values, such as the version and the plan.
pub type Fingerprint = Vec<(String, String)>;
