/// Why a collective did not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// Ranks did not come in time.
    #[error("{op} number {sequence} on rank {rank}: rank {missing:?} did not arrive within {waited_s} s")]
    Missing {
        /// The operation.
        op: &'static str,
        /// Its number since the group began.
        sequence: u64,
        /// The rank that reports.
        rank: usize,
        /// The ranks that are missing.
        missing: Vec<usize>,
        /// Seconds waited.
        waited_s: u64,
    },
    /// A rank said that it failed.
    #[error("{}", of_rank(*.rank, .message))]
    Failed {
        /// The rank that failed.
        rank: usize,
        /// In its own words.
        message: String,
    },
    /// Connections did not come about in time.
    #[error("rank {rank}: no connection with rank {missing:?} within {waited_s} s ({why})")]
    Unconnected {
        /// The rank that reports.
        rank: usize,
        /// The ranks that are missing.
        missing: Vec<usize>,
        /// Seconds waited.
        waited_s: u64,
        /// What happened last, or what would work.
        why: String,
    },
    /// Whoever is on the other side of a connection is not of this group.
    #[error("the other side is refused: {0}")]
    Refused(String),
    /// A group secret that cannot be used.
    #[error("group secret: {0}")]
    Secret(String),
    /// MPI.
    #[error("MPI: {0}")]
    Mpi(String),
    /// Nodes of which no group can be made.
    #[error("nodes of a group: {0}")]
    Nodes(String),
}

/// A rank's message, which may name the rank already.
fn of_rank(rank: usize, message: &str) -> String {
    let name = format!("rank {rank}");
    match message.strip_prefix(&name) {
        Some(rest) if rest.starts_with([' ', ':']) => message.into(),
        _ => format!("{name}: {message}"),
    }
}
