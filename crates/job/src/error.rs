use std::time::Duration;

use collective::CollectiveError;

use crate::Failure;
use crate::frame::Verdict;

/// Why a process could not join its job, or why the job ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The launcher's variables can't be.
    #[error("{0}")]
    Env(String),
    /// Others could join from other hosts.
    #[error(
        "rank 0 is at {master}, which other hosts reach: the job needs a secret that all ranks have, \
         --group-secret-file FILE"
    )]
    NoSecret {
        /// Rank 0's host.
        master: String,
    },
    /// Nobody knows rank 0's host.
    #[error("cannot find rank 0's host {host:?} (MASTER_ADDR, --master-addr): {message}")]
    Unresolved {
        /// The name.
        host: String,
        /// The system's message.
        message: String,
    },
    /// Rank 0 cannot listen.
    #[error("rank 0 cannot listen on {at}: {message}; choose another port with MASTER_PORT or --master-port")]
    Port {
        /// Address and port, or ports.
        at: String,
        /// The system's message.
        message: String,
    },
    /// Rank 0 was not found in time.
    #[error("rank {rank} did not reach rank 0 at {at} within {} s: {message}", .waited.as_secs_f32())]
    Unreachable {
        /// This rank.
        rank: usize,
        /// Where it looked.
        at: String,
        /// The start-up deadline.
        waited: Duration,
        /// What it heard last.
        message: String,
    },
    /// Two processes have different group secrets.
    #[error("rank {rank} and rank 0 at {at} have different group secrets (--group-secret-file)")]
    WrongSecret {
        /// This rank.
        rank: usize,
        /// Rank 0's address.
        at: String,
    },
    /// The ranks that came are no job. All of them end with this line.
    #[error("{message}")]
    Refused {
        /// What is wrong.
        message: String,
        /// Whether the user's input is the cause.
        is_usage: bool,
        /// Whether this process was told so by rank 0, which says it itself.
        is_echo: bool,
    },
    /// Ranks that were to share memory can't.
    #[error(
        "ranks {} and {} are on different hosts ({} and {}): the backend shared connects none, auto and tcp do \
         (ANYSPLIT_COMM_BACKEND)", .ranks[0], .ranks[1], .hosts[0], .hosts[1]
    )]
    NotShared {
        /// Two ranks of a group.
        ranks: [usize; 2],
        /// Their hosts.
        hosts: [String; 2],
    },
    /// MPI is asked for, and not to be had.
    #[error("the backend mpi: {0}")]
    NoMpi(String),
    /// The job has ended because of a rank.
    #[error("{message}")]
    Lost {
        /// Who and why.
        message: String,
        /// Whether the user's input is the cause.
        is_usage: bool,
    },
    /// The operating system.
    #[error("{what}: {message}")]
    System {
        /// What was tried.
        what: String,
        /// The system's message.
        message: String,
    },
    /// A group could not be made, or failed.
    #[error(transparent)]
    Group(#[from] CollectiveError),
}

impl JobError {
    pub(crate) fn env(text: String) -> JobError {
        JobError::Env(text)
    }

    pub(crate) fn system(what: impl Into<String>, error: impl std::fmt::Display) -> JobError {
        JobError::System { what: what.into(), message: error.to_string() }
    }

    /// Whether the user's input is the cause (exit status 2), rather than a failure at run time (1).
    pub fn is_usage(&self) -> bool {
        match self {
            JobError::Env(_)
            | JobError::NoSecret { .. }
            | JobError::Unresolved { .. }
            | JobError::Port { .. }
            | JobError::WrongSecret { .. }
            | JobError::NoMpi(_)
            | JobError::NotShared { .. } => true,
            JobError::Refused { is_usage, .. } | JobError::Lost { is_usage, .. } => *is_usage,
            JobError::Unreachable { .. } | JobError::System { .. } | JobError::Group(_) => false,
        }
    }

    /// Whether this only repeats what another rank says itself.
    pub fn is_echo(&self) -> bool {
        matches!(self, JobError::Refused { is_echo: true, .. } | JobError::Lost { .. } | JobError::Group(_))
    }
}

/// What a rank that can't go on because of this says to the others.
impl From<&JobError> for Failure {
    fn from(error: &JobError) -> Failure {
        let code = if error.is_usage() { 2 } else { 1 };
        Failure { message: error.to_string(), code, is_echo: error.is_echo() }
    }
}

impl From<Verdict> for JobError {
    fn from(verdict: Verdict) -> JobError {
        JobError::Lost { message: verdict.message, is_usage: verdict.code == 2 }
    }
}
