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
    /// GPUs can't have the model.
    #[error("{why}; {would_work}")]
    NotOnGpus {
        /// What is in the way.
        why: String,
        /// What to do about it.
        would_work: String,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// One rank's trouble.
    #[error("{}", of_rank(*.rank, .source))]
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
            EngineError::Request(_) | EngineError::NotOnGpus { .. } => true,
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

/// A rank's error with the number of the rank that is the cause, once.
fn of_rank(rank: usize, error: &ModelError) -> String {
    match error {
        ModelError::Collective(error @ CollectiveError::Failed { .. }) => error.to_string(),
        error => format!("rank {rank}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_is_the_cause_is_named_once() {
        let failed = |message: &str| {
            let source = CollectiveError::Failed { rank: 1, message: message.into() };
            EngineError::Rank { rank: 0, source: Box::new(source.into()) }.to_string()
        };
        let told = "rank 1 on vm (pid 7) died in broadcast number 6";
        assert_eq!(failed(told), told);
        assert_eq!(failed("out of memory"), "rank 1: out of memory");
        assert_eq!(failed("rank 12 is not here"), "rank 1: rank 12 is not here");
        let own = ModelError::Device(tensor::DeviceError { device: "cpu".into(), message: "full".into() });
        assert!(EngineError::Rank { rank: 2, source: Box::new(own) }.to_string().starts_with("rank 2: "));
    }
}
