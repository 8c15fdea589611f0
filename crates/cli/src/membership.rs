//! A command that is one rank of a job: `anysplit launch`, torchrun, MPI, Slurm or Kubernetes started several of it.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use collective::Secret;
use engine::EngineError;
use job::{
    Backend, Cause, Ending, Failure, Fingerprint, Hold, Host, Job, JobEnv, JobOptions, Report, hold_lifeline,
    wait_for_launcher,
};

use crate::error::{self, CliError, one_line};
use crate::secret;

/// How ranks of several processes meet and watch each other.
#[derive(Args)]
pub struct JobArgs {
    /// Seconds after which a rank that the others wait for is an error
    #[arg(long, env = "ANYSPLIT_COMM_TIMEOUT", default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=COMM_TIMEOUT_MAX_S))]
    pub comm_timeout: u64,
    /// Seconds in which all ranks of a job must have come; default: twice --comm-timeout
    #[arg(long, env = "ANYSPLIT_STARTUP_TIMEOUT", value_name = "S", value_parser = clap::value_parser!(u64).range(1..=COMM_TIMEOUT_MAX_S))]
    pub startup_timeout: Option<u64>,
    /// A file with the secret that a job's hosts share, which no one else can read; needed between hosts
    #[arg(long, env = "ANYSPLIT_GROUP_SECRET_FILE", value_name = "FILE")]
    pub group_secret_file: Option<PathBuf>,
    /// What ranks of several processes exchange over: auto (memory inside a host, TCP between hosts), shared, tcp, or mpi in a build with it
    #[arg(long, env = "ANYSPLIT_COMM_BACKEND", default_value = "auto", value_name = "BACKEND")]
    pub comm_backend: Backend,
}

/// A year: longer than anyone waits, and short enough for every clock.
pub const COMM_TIMEOUT_MAX_S: u64 = 31_536_000;

/// What this process is part of, if of anything.
pub struct Membership {
    env: Option<JobEnv>,
    report: Option<Report>,
    job: OnceCell<Job>,
}

impl Membership {
    /// Reads what a launcher has left in the environment.
    pub fn find(args: &JobArgs) -> Result<Self, CliError> {
        let lookup = |name: &str| std::env::var(name).ok();
        let env = JobEnv::detect(&lookup).map_err(EngineError::from)?;
        let report = Report::open(&lookup).map_err(EngineError::from)?;
        hold_lifeline(&lookup, Duration::from_secs(args.comm_timeout)).map_err(EngineError::from)?;
        Ok(Membership { env, report, job: OnceCell::new() })
    }

    /// Ranks that the launcher has started; `None` for a process on its own.
    pub fn ranks(&self) -> Option<usize> {
        self.env.as_ref().map(|env| env.size)
    }

    /// Whether a launcher that reads reports has started this process: `anysplit launch`.
    pub fn is_launched(&self) -> bool {
        self.report.is_some()
    }

    /// Meets the other ranks, if there are others.
    pub fn join(
        &self,
        fingerprint: impl FnOnce() -> Fingerprint,
        args: &JobArgs,
    ) -> Result<Option<&Job>, CliError> {
        let Some(env) = &self.env else { return Ok(None) };
        let options = JobOptions {
            secret: args.group_secret_file.as_deref().map_or(Ok(Secret::none()), secret::read)?,
            comm_timeout: Duration::from_secs(args.comm_timeout),
            startup_timeout: Duration::from_secs(args.startup_timeout.unwrap_or(2 * args.comm_timeout)),
            report: self.report.clone(),
            backend: args.comm_backend,
            ..JobOptions::default()
        };
        let job = Job::join(env, &fingerprint(), &options).map_err(EngineError::from)?;
        Ok(Some(self.job.get_or_init(|| job)))
    }

    /// Lets this process take a moment to end after another rank has ended the job; in a job.
    pub fn hold(&self) -> Option<Hold> {
        self.job.get().map(Job::hold)
    }

    /// Whether this process is the one that prints: rank 0, or on its own.
    pub fn leads(&self) -> bool {
        self.env.as_ref().is_none_or(|env| env.rank == 0)
    }

    /// Tells the other ranks and the launcher how this one ended, and gives the exit status.
    fn leave(self, result: Result<(), CliError>) -> ExitCode {
        let Some(env) = self.env else { return error::ended(result) };
        // Whoever reads our output has seen enough.
        let result = match result {
            Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        };
        let ending = match (self.job.into_inner(), result) {
            (Some(job), result) => job.finish(result.map_err(|error| failure(&error))),
            (None, Ok(())) => None,
            (None, Err(error)) => Some(before_joining(&env, &error, self.report.as_ref())),
        };
        let Some(ending) = ending else { return ExitCode::SUCCESS };
        if let Some(report) = &self.report {
            report.send(&ending);
        }
        if ending.is_printed {
            job::say!("error: {}", one_line(&ending.message));
        }
        ExitCode::from(ending.code)
    }
}

/// Runs a command as whatever this process is part of.
pub fn run(args: &JobArgs, command: impl FnOnce(&Membership) -> Result<(), CliError>) -> ExitCode {
    let membership = match Membership::find(args) {
        Ok(membership) => membership,
        Err(error) => return error.report(),
    };
    let result = command(&membership);
    let status = membership.leave(result);
    wait_for_launcher(&|name| std::env::var(name).ok(), Duration::from_secs(args.comm_timeout));
    status
}

/// A rank's error, without the rank's name, which whoever prints it adds.
fn failure(error: &CliError) -> Failure {
    let code = error.status();
    let message = match error {
        CliError::Engine(EngineError::Rank { source, .. }) => source.to_string(),
        CliError::Engine(EngineError::Panicked { message, .. }) => format!("stopped: {message}"),
        other => other.to_string(),
    };
    match error {
        CliError::Engine(error) if error.is_of_another() => Failure { code, ..Failure::echo(message) },
        _ => Failure::own(message, code),
    }
}

/// The end of a rank that never met the others.
fn before_joining(env: &JobEnv, error: &CliError, report: Option<&Report>) -> Ending {
    match error {
        CliError::Engine(EngineError::Job(error)) => Ending::of_error(env, error, report),
        other => Ending {
            rank: env.rank,
            host: Host::this(env.node).name,
            cause: Cause::Own,
            code: other.status(),
            message: format!("rank {}: {other}", env.rank),
            is_printed: report.is_none(),
        },
    }
}
