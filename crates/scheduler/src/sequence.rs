use crate::batch::BatchItem;
use crate::block_manager::BlockTable;
use crate::request::Request;

/// A request that was admitted, and how far it has come.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: u64,
    /// The prompt, then what was sampled.
    tokens: Vec<u32>,
    num_prompt_tokens: usize,
    max_tokens: usize,
    /// Positions whose keys and values are in the cache.
    num_computed: usize,
    pub table: BlockTable,
}

impl Sequence {
    pub fn new(request: Request, table: BlockTable) -> Self {
        let Request { id, prompt, max_tokens, .. } = request;
        Sequence { id, num_prompt_tokens: prompt.len(), tokens: prompt, max_tokens, num_computed: 0, table }
    }

    /// Whether the whole prompt is computed, so that every step gives a token.
    pub fn is_decoding(&self) -> bool {
        self.num_computed >= self.num_prompt_tokens
    }

    /// Tokens that are known and not computed: one when it decodes, the rest of the prompt before that.
    pub fn num_pending(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    pub fn num_computed(&self) -> usize {
        self.num_computed
    }

    /// The next `num_tokens` tokens, for a step. The table must hold their positions.
    pub fn item(&self, num_tokens: usize) -> BatchItem {
        let end = self.num_computed + num_tokens;
        BatchItem {
            id: self.id,
            tokens: self.tokens[self.num_computed..end].to_vec(),
            start: self.num_computed,
            block_table: self.table.blocks.clone(),
            samples: end == self.tokens.len(),
            started: (self.num_computed == 0).then_some(0),
        }
    }

    /// Notes that a step computed `item`.
    pub fn advance(&mut self, item: &BatchItem) {
        assert_eq!(
            item.start, self.num_computed,
            "sequence {}: the batch is not the one that was scheduled",
            self.id
        );
        self.num_computed += item.tokens.len();
    }

    /// Appends a sampled token; whether it was the last one allowed.
    pub fn push(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        self.tokens.len() == self.num_prompt_tokens + self.max_tokens
    }
}
