use std::collections::{BTreeMap, VecDeque};

use crate::batch::{Batch, BatchItem};
use crate::block_manager::BlockManager;
use crate::context::ContextParallel;
use crate::error::SchedulerError;
use crate::request::Request;
use crate::sequence::Sequence;
use crate::usage::{Counters, Usage};

/// How much there is to share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Positions of a block; at least one.
    pub block_size: usize,
    /// The most sequences that run at once; at least one. No more run than `max_num_batched_tokens` either, so
    /// that a step has room for a token of each.
    pub max_num_seqs: usize,
    /// The most tokens of one step; at least one.
    pub max_num_batched_tokens: usize,
    /// Who holds which blocks.
    pub context: ContextParallel,
    /// Whether contents of blocks are kept for requests that begin with the same tokens.
    pub prefix_caching: bool,
}

/// Decides what each step runs. See the crate's page for the states of a request.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    /// In order of arrival.
    pub(crate) waiting: VecDeque<Request>,
    /// In order of arrival.
    pub(crate) running: Vec<Sequence>,
    pub(crate) blocks: BlockManager,
    /// Whether a batch was handed out that is not completed.
    pub(crate) in_flight: bool,
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Panics
    /// If a number in `config` that must be at least one is zero, or there are more blocks than a `u32` counts.
    pub fn new(config: SchedulerConfig) -> Self {
        assert!(config.max_num_seqs > 0, "max_num_seqs must be at least 1");
        assert!(config.max_num_batched_tokens > 0, "max_num_batched_tokens must be at least 1");
        let blocks = BlockManager::new(config.num_blocks, config.block_size, config.context);
        Scheduler { config, waiting: VecDeque::new(), running: Vec::new(), blocks, in_flight: false }
    }

    /// Puts a request behind those that wait.
    ///
    /// # Errors
    /// It is empty, it does not fit in the whole KV cache, or its id is taken.
    pub fn add(&mut self, request: Request) -> Result<(), SchedulerError> {
        let Request { id, ref prompt, max_tokens, .. } = request;
        if prompt.is_empty() {
            return Err(SchedulerError::EmptyPrompt { id });
        }
        if max_tokens == 0 {
            return Err(SchedulerError::NoTokens { id });
        }
        if self.waiting.iter().any(|r| r.id == id) || self.running.iter().any(|s| s.id == id) {
            return Err(SchedulerError::DuplicateId { id });
        }
        let capacity = self.blocks.capacity();
        if prompt.len().saturating_add(max_tokens) > capacity {
            return Err(SchedulerError::TooLong {
                id,
                prompt_tokens: prompt.len(),
                max_tokens,
                capacity,
                num_blocks: self.blocks.num_blocks(),
                block_size: self.blocks.block_size(),
            });
        }
        self.waiting.push_back(request);
        Ok(())
    }

    /// The next step, or `None` when no request is left.
    ///
    /// Sequences that decode come first, one row each; what is left of `max_num_batched_tokens` goes to the
    /// prompts, in order of arrival. A waiting request is admitted when the blocks of its prompt and its
    /// `max_tokens` are free; behind one that has to wait everyone waits.
    ///
    /// # Panics
    /// If the last batch was not completed.
    pub fn schedule(&mut self, budget: usize) -> Option<Batch> {
        assert!(!self.in_flight, "the last batch must be completed before the next is scheduled");
        let decoding = self.running.iter().filter(|s| s.is_decoding()).count();
        let most = self.config.max_num_batched_tokens;
        let mut budget = budget.clamp(self.running.len().max(1), most);
        let mut items = Vec::new();
        for decoding in [true, false] {
            for sequence in self.running.iter_mut().filter(|s| s.is_decoding() == decoding) {
                items.push(chunk(sequence, &mut self.blocks, &mut budget));
            }
        }
        // Everyone who runs has got a token by now, so what is left is room for one more.
        while budget > 0
            && let Some(mut sequence) = self.admit()
        {
            items.push(chunk(&mut sequence, &mut self.blocks, &mut budget));
            self.running.push(sequence);
        }
        self.in_flight = !items.is_empty();
        self.check();
        let batch = self.in_flight.then_some(Batch {
            items,
            num_decoding: decoding,
            copies: Vec::new(),
            preempted: Vec::new(),
        });
        assert!(batch.is_some() || self.is_idle(), "whoever was added fits when nobody runs");
        batch
    }

    /// Takes the first of those that wait, if it may run.
    fn admit(&mut self) -> Option<Sequence> {
        if self.running.len() == self.config.max_num_seqs {
            return None;
        }
        let next = self.waiting.front()?;
        let table = self.blocks.promise(next.prompt.len() + next.max_tokens)?;
        Some(Sequence::new(self.waiting.pop_front()?, table))
    }

    /// Notes what a step gave: for each item that samples `(id, token, finished)`, in any order. `finished` says
    /// that this token ends the request (a stop token, say); at `max_tokens` it ends by itself. Requests that were
    /// aborted since are passed over.
    ///
    /// Returns the ids of the requests that ended, in order of arrival. Their blocks are free.
    ///
    /// # Panics
    /// If `batch` is not the one that was scheduled last, or the outputs are not exactly those of the items that
    /// sample.
    pub fn complete(&mut self, batch: &Batch, outputs: &[(u64, u32, bool)]) -> Vec<u64> {
        assert!(std::mem::take(&mut self.in_flight), "no batch was scheduled");
        let items: BTreeMap<u64, &BatchItem> = batch.items.iter().map(|item| (item.id, item)).collect();
        let sampled: BTreeMap<u64, (u32, bool)> =
            outputs.iter().map(|&(id, token, end)| (id, (token, end))).collect();
        assert_eq!(sampled.len(), outputs.len(), "two outputs of one request");
        for item in &batch.items {
            assert_eq!(
                sampled.contains_key(&item.id),
                item.samples,
                "request {}: one output if it samples",
                item.id
            );
        }
        assert_eq!(
            sampled.len(),
            batch.items.iter().filter(|i| i.samples).count(),
            "an output that was not asked for"
        );
        let mut ended = Vec::new();
        for sequence in &mut self.running {
            let item = items.get(&sequence.id).expect("every running sequence is in the batch");
            sequence.advance(item);
            if let Some(&(token, stop)) = sampled.get(&sequence.id)
                && (sequence.push(token) | stop)
            {
                ended.push(sequence.id);
            }
        }
        self.end(|sequence| ended.contains(&sequence.id));
        self.check();
        ended
    }

    /// Ends a request now, wherever it is; whether there was one. If it is in the batch that runs, its output is
    /// passed over.
    pub fn abort(&mut self, id: u64) -> bool {
        let before = self.num_waiting() + self.num_running();
        self.waiting.retain(|request| request.id != id);
        // Blocks of a step in flight may be freed: nobody gets them before that step is completed.
        self.end(|sequence| sequence.id == id);
        self.check();
        self.num_waiting() + self.num_running() < before
    }

    fn end(&mut self, ends: impl Fn(&Sequence) -> bool) {
        for sequence in self.running.extract_if(.., |sequence| ends(sequence)) {
            self.blocks.release(sequence.table);
        }
    }

    /// Whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Requests that wait.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that run and whose prompts are computed.
    pub fn num_decoding(&self) -> usize {
        self.running.iter().filter(|sequence| sequence.is_decoding()).count()
    }

    /// Requests that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Tokens that a request with this prompt would find in the prefix cache now.
    pub fn cached_prefix(&self, prompt: &[u32], salt: u64) -> usize {
        let _ = (prompt, salt);
        0
    }

    /// Who has the blocks.
    pub fn usage(&self) -> Usage {
        let blocks = self.blocks.num_blocks();
        Usage { blocks, used: blocks - self.num_free_blocks(), cached: 0 }
    }

    /// Sums since this was made.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Blocks that nobody holds, cached ones among them.
    pub fn num_free_blocks(&self) -> usize {
        self.blocks.free().iter().map(Vec::len).sum()
    }
}

/// As many of a sequence's pending tokens as the budget has room for, and blocks for them.
fn chunk(sequence: &mut Sequence, blocks: &mut BlockManager, budget: &mut usize) -> BatchItem {
    let num_tokens = sequence.num_pending().min(*budget);
    assert!(num_tokens > 0, "a step has room for a token of every running sequence");
    *budget -= num_tokens;
    let end = sequence.num_computed() + num_tokens;
    blocks.grow(&mut sequence.table, end);
    sequence.item(num_tokens)
}
