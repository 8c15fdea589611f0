//! Jobs whose ranks are threads of the test.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod hosts;
mod ports;
pub mod ranks;
pub mod role;

use std::time::Duration;

use job::{Fingerprint, Job, JobEnv, JobError, JobOptions};
pub use ports::free_port;

/// A rank's environment, as a launcher that has all ranks on one host sets it, and other variables.
pub fn env(rank: usize, size: usize, port: u16, more: &[(&str, &str)]) -> JobEnv {
    let common = [
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
    ];
    let lookup = |name: &str| {
        let special = more.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        special.or_else(|| common.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()))
    };
    JobEnv::detect(&lookup).expect("fine").expect("a job")
}

/// Deadlines that nothing reaches unless it hangs.
pub fn options() -> JobOptions {
    JobOptions {
        comm_timeout: Duration::from_secs(20),
        startup_timeout: Duration::from_secs(20),
        exit_after: None,
        ..JobOptions::default()
    }
}

pub fn print(entries: &[(&str, &str)]) -> Fingerprint {
    entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// All ranks' ways to join, on one host.
pub fn same(size: usize, port: u16, more: &[(&str, &str)]) -> Vec<(JobEnv, Fingerprint, JobOptions)> {
    (0..size).map(|rank| (env(rank, size, port, more), print(&[("version", "1")]), options())).collect()
}

/// All join at once; what each got.
pub fn join_all(ranks: Vec<(JobEnv, Fingerprint, JobOptions)>) -> Vec<Result<Job, JobError>> {
    std::thread::scope(|scope| {
        let join = |(env, print, options)| scope.spawn(move || Job::join(&env, &print, &options));
        let ranks: Vec<_> = ranks.into_iter().map(join).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

pub fn jobs(results: Vec<Result<Job, JobError>>) -> Vec<Job> {
    results.into_iter().map(|job| job.expect("joined")).collect()
}
