use std::path::PathBuf;

use collective::CollectiveError;
use job::JobError;
use model::ModelError;
use scheduler::SchedulerError;

/// Why a model can't be run, or stopped running.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A request or an option can't be.
    #[error("{0}")]
    Request(String),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// One rank's trouble.
    #[error("rank {rank}: {source}")]
    Rank {
        /// The rank.
        rank: usize,
        /// What happened to it.
        source: Box<ModelError>,
    },
    /// The job that this process is in.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A rank's thread panicked.
    #[error("rank {rank} stopped: {message}")]
    Panicked {
        /// The rank.
        rank: usize,
        /// The panic's message.
        message: String,
    },
    /// A file can't be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Whoever runs it asked it to stop: see [`crate::Engine::stop_when`].
    #[error("interrupted")]
    Interrupted,
    /// The operating system gave no thread.
    #[error("cannot start rank {rank}: {message}")]
    Spawn {
        /// The rank.
        rank: usize,
        /// The system's message.
        message: String,
    },
}

impl EngineError {
    /// Whether the user's input is the cause (exit status 2), rather than a failure at run time (1).
    pub fn is_usage(&self) -> bool {
        match self {
            EngineError::Request(_) => true,
            EngineError::Model(e) => e.is_usage(),
            EngineError::Job(e) => e.is_usage(),
            EngineError::Rank { source, .. } => source.is_usage(),
            EngineError::Panicked { .. }
            | EngineError::Spawn { .. }
            | EngineError::Write { .. }
            | EngineError::Interrupted => false,
        }
    }
}

impl EngineError {
    /// Whether it only says that another rank has failed, or did not come: that one knows more, if it can say anything.
    pub fn is_of_another(&self) -> bool {
        match self {
            EngineError::Rank { rank, source } => match &**source {
                ModelError::Collective(CollectiveError::Failed { rank: culprit, .. }) => culprit != rank,
                ModelError::Collective(CollectiveError::Missing { .. }) => true,
                _ => false,
            },
            EngineError::Job(error) => error.is_echo(),
            _ => false,
        }
    }
}

impl From<SchedulerError> for EngineError {
    fn from(error: SchedulerError) -> Self {
        EngineError::Request(error.to_string())
    }
}
