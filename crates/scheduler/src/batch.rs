/// One step: what one forward pass works on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// One item per running sequence: first those that decode, then those in their prompt; each in order of arrival.
    pub items: Vec<BatchItem>,
    /// So many of the first items decode: one row each, of which a token is sampled.
    pub num_decoding: usize,
    /// KV blocks to copy before the step, from and to. No block is twice among those that are copied to, none is copied
    /// both from and to, and none that is copied from is written by the step; the
    /// two have the same owner.
    pub copies: Vec<(u32, u32)>,
    /// Requests that ran and wait again, because those before them needed their blocks; the latest arrival first. They
    /// have no item.
    pub preempted: Vec<u64>,
}

impl Batch {
    /// Rows of the forward pass.
    pub fn num_tokens(&self) -> usize {
        self.items.iter().map(|item| item.tokens.len()).sum()
    }
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchItem {
    /// The request.
    pub id: u64,
    /// The inputs: consecutive tokens of the sequence, one when it decodes, a chunk of its prompt in prefill. After a
    /// preemption what it generated before is computed again like a prompt.
    pub tokens: Vec<u32>,
    /// Position of the first of them in the sequence.
    pub start: usize,
    /// The sequence's KV blocks up to and including these tokens: position `p` is in
    /// `block_table[p / block_size]`.
    pub block_table: Vec<u32>,
    /// Whether the last row's logits are sampled: the tokens reach the end of what is known of the sequence.
    pub samples: bool,
    /// In its first step since it began to run, or to run again: so many of its first tokens were in the prefix cache.
    pub started: Option<usize>,
}
