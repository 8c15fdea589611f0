use crate::batch::BatchItem;
use crate::block_manager::BlockTable;
use crate::request::{CacheUse, Request};

/// A request, and how far it has come. While it waits it has no blocks.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: u64,
    /// Requests that came before have smaller ones.
    pub arrival: u64,
    pub cache: CacheUse,
    /// The prompt, then what was sampled.
    pub tokens: Vec<u32>,
    num_prompt_tokens: usize,
    max_tokens: usize,
    /// Positions whose keys and values are in the cache.
    num_computed: usize,
    /// Positions that are computed like a prompt: the tokens that were known when it was admitted last.
    num_prefill: usize,
    /// The most positions that it has had computed; `None` before it first ran.
    reached: Option<usize>,
    /// What its next item says of a start.
    started: Option<usize>,
    pub table: BlockTable,
}

impl Sequence {
    pub fn new(request: Request, arrival: u64) -> Self {
        let Request { id, prompt, max_tokens, cache } = request;
        Sequence {
            id,
            arrival,
            cache,
            num_prompt_tokens: prompt.len(),
            num_prefill: prompt.len(),
            tokens: prompt,
            max_tokens,
            num_computed: 0,
            reached: None,
            started: None,
            table: BlockTable::default(),
        }
    }

    /// Positions that it comes to at most.
    pub fn longest(&self) -> usize {
        self.num_prompt_tokens + self.max_tokens
    }

    /// The first tokens that it may find in the cache: not the last, for its logits are needed.
    pub fn findable(&self) -> &[u32] {
        let most = self.tokens.len() - 1;
        &self.tokens[..if self.cache.reads { most } else { most.min(self.reached.unwrap_or(0)) }]
    }

    /// Whether it has never run.
    pub fn is_new(&self) -> bool {
        self.reached.is_none()
    }

    /// Notes that it runs from now on, with so many positions computed.
    pub fn begin(&mut self, table: BlockTable, num_cached: usize) {
        self.table = table;
        self.num_computed = num_cached;
        self.num_prefill = self.tokens.len();
        self.reached = self.reached.max(Some(num_cached));
        self.started = Some(num_cached);
    }

    /// Notes that it waits again. Its blocks, and the tokens in them.
    pub fn stop(&mut self) -> (BlockTable, &[u32]) {
        self.reached = self.reached.max(Some(self.num_computed));
        let num_computed = std::mem::take(&mut self.num_computed);
        (std::mem::take(&mut self.table), &self.tokens[..num_computed])
    }

    /// Whether all that was known when it was admitted is computed, so that every step gives a token.
    pub fn is_decoding(&self) -> bool {
        self.num_computed >= self.num_prefill
    }

    /// Tokens that are known and not computed: one when it decodes, the rest of the prompt before that.
    pub fn num_pending(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    pub fn num_computed(&self) -> usize {
        self.num_computed
    }

    /// The next `num_tokens` tokens, for a step. The table must hold their positions.
    pub fn item(&mut self, num_tokens: usize) -> BatchItem {
        let end = self.num_computed + num_tokens;
        BatchItem {
            id: self.id,
            tokens: self.tokens[self.num_computed..end].to_vec(),
            start: self.num_computed,
            block_table: self.table.blocks.clone(),
            samples: end == self.tokens.len(),
            started: self.started.take(),
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
        self.tokens.len() == self.longest()
    }
}
