/// What someone wants completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request in batches and outputs. No two requests that wait or run share one.
    pub id: u64,
    /// The prompt's token ids; at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to sample; at least one.
    pub max_tokens: usize,
    /// What it may find in the prefix cache.
    pub cache: CacheUse,
}

/// What a request has to do with the prefix cache, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheUse {
    /// Keys and values are shared only among requests of the same salt.
    pub salt: u64,
    /// Whether what is cached need not be computed. Not so if something is wanted of each of the prompt's tokens; then
    /// only positions that the request computed itself, before it was preempted, are read.
    pub reads: bool,
}

impl Default for CacheUse {
    fn default() -> Self {
        CacheUse { salt: 0, reads: true }
    }
}
