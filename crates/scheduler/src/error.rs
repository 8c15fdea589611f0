/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    /// There is nothing to continue from.
    #[error("request {id}: the prompt has no tokens, it needs at least one")]
    EmptyPrompt {
        /// The request.
        id: u64,
    },
    /// There is nothing to do.
    #[error("request {id}: max_tokens is 0, it must be at least 1")]
    NoTokens {
        /// The request.
        id: u64,
    },
    /// A request of this id waits or runs.
    #[error("request {id}: a request of this id has not finished yet")]
    DuplicateId {
        /// The request.
        id: u64,
    },
    /// It would not fit if it were alone.
    #[error(
        "request {id}: {prompt_tokens} prompt tokens and max_tokens {max_tokens} do not fit in the KV cache, which \
         holds {capacity} tokens of one request ({num_blocks} blocks of {block_size})"
    )]
    TooLong {
        /// The request.
        id: u64,
        /// Tokens of its prompt.
        prompt_tokens: usize,
        /// The most tokens it wants sampled.
        max_tokens: usize,
        /// Tokens of the longest request that fits.
        capacity: usize,
        /// Blocks of the cache.
        num_blocks: usize,
        /// Tokens of a block.
        block_size: usize,
    },
}
