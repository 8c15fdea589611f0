/// Who has the KV cache's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All blocks.
    pub blocks: usize,
    /// Held by running sequences.
    pub used: usize,
    /// Held by nobody, with contents that can be used again. They are given away like free ones, least recently used
    /// first.
    pub cached: usize,
}

/// Sums since the scheduler was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Prompt tokens that were looked up in the prefix cache, each request's once.
    pub prefix_queries: u64,
    /// Those that were found.
    pub prefix_hits: u64,
    /// How often a running request lost its blocks.
    pub preemptions: u64,
}
