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
    #[error("rank {rank}: {message}")]
    Failed {
        /// The rank that failed.
        rank: usize,
        /// In its own words.
        message: String,
    },
}
