//! What the workloads met.

/// How often the workloads met what they are for.
#[derive(Debug, Default)]
pub struct Seen {
    pub mixed_steps: u64,
    pub chunked_prompts: u64,
    pub waits_for_blocks: u64,
    pub stops: u64,
    pub lengths: u64,
    pub aborts_in_flight: u64,
    /// Whose segments several owners hold.
    pub spread_sequences: u64,
    /// Steps that were scheduled before the one before them had run.
    pub steps_ahead: u64,
    pub preemptions: u64,
    /// Preempted requests that found some of what they had computed.
    pub resumed_from_cache: u64,
    pub preempted_in_prompt: u64,
    pub hits: u64,
    pub copies: u64,
    /// Blocks that left the cache.
    pub evictions: u64,
    /// Blocks that one item writes and a later one of the same step reads.
    pub shared_in_a_step: u64,
    /// Requests that computed all of a prompt that was cached.
    pub unread_prompts: u64,
    /// Requests too long for the pool.
    pub refused: u64,
}

impl Seen {
    /// Asserts that every case was met often: a simulation that never met them would prove nothing.
    pub fn check(&self) {
        let Seen { mixed_steps, chunked_prompts, waits_for_blocks, stops, lengths, aborts_in_flight, .. } =
            *self;
        let batching = [mixed_steps, chunked_prompts, waits_for_blocks, stops, lengths, aborts_in_flight];
        let Seen {
            spread_sequences, steps_ahead, preemptions, resumed_from_cache, preempted_in_prompt, ..
        } = *self;
        let blocks = [spread_sequences, steps_ahead, preemptions, resumed_from_cache, preempted_in_prompt];
        let Seen { hits, copies, evictions, shared_in_a_step, unread_prompts, refused, .. } = *self;
        let caching = [hits, copies, evictions, shared_in_a_step, unread_prompts, refused];
        let mut cases = batching.iter().chain(&blocks).chain(&caching);
        assert!(cases.all(|&n| n > 500), "{self:?}");
    }
}
