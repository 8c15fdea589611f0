/// What someone wants completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request in batches and outputs. No two requests that wait or run share one.
    pub id: u64,
    /// The prompt's token ids; at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to sample; at least one.
    pub max_tokens: usize,
}
