/// One step: what one forward pass works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// One item per sequence: first those that decode, then those in their prompt; each in order of arrival.
    pub items: Vec<BatchItem>,
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
    /// The inputs: consecutive tokens of the sequence, one when it decodes, a chunk of its prompt in prefill.
    pub tokens: Vec<u32>,
    /// Position of the first of them in the sequence.
    pub start: usize,
    /// The sequence's KV blocks up to and including these tokens: position `p` is in
    /// `block_table[p / block_size]`.
    pub block_table: Vec<u32>,
    /// Whether the last row's logits are sampled: the tokens reach the end of what is known of the sequence.
    pub samples: bool,
}
