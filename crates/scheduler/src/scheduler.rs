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
    /// In order of arrival; all came after those that run.
    pub(crate) waiting: VecDeque<Sequence>,
    /// In order of arrival. Only the last may be in its prompt.
    pub(crate) running: Vec<Sequence>,
    pub(crate) blocks: BlockManager,
    /// Whether a batch was handed out that is not completed.
    pub(crate) in_flight: bool,
    pub(crate) counters: Counters,
    num_arrived: u64,
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Panics
    /// If a number in `config` that must be at least one is zero, or there are more blocks than a `u32` counts.
    pub fn new(config: SchedulerConfig) -> Self {
        assert!(config.max_num_seqs > 0, "max_num_seqs must be at least 1");
        assert!(config.max_num_batched_tokens > 0, "max_num_batched_tokens must be at least 1");
        Scheduler {
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks: BlockManager::new(&config),
            in_flight: false,
            counters: Counters::default(),
            num_arrived: 0,
        }
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
        if self.waiting.iter().chain(&self.running).any(|s| s.id == id) {
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
        self.waiting.push_back(Sequence::new(request, self.num_arrived));
        self.num_arrived += 1;
        Ok(())
    }

    /// Notes what a step gave: for each item that samples `(id, token, finished)`, in any order. `finished` says
    /// that this token ends the request (a stop token, say); at `max_tokens` it ends by itself. Requests that were
    /// aborted since are passed over.
    ///
    /// If nothing samples, this may be called before the step has run, as long as steps run in the order in which they
    /// were scheduled, each with its copies just before it.
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
        let mut next = ended.iter().peekable();
        self.end(|sequence| next.next_if_eq(&&sequence.id).is_some());
        self.check();
        ended
    }

    /// Ends a request now, wherever it is; whether there was one. If it is in the batch that runs, its output is
    /// passed over.
    pub fn abort(&mut self, id: u64) -> bool {
        let before = self.num_waiting() + self.num_running();
        self.waiting.retain(|sequence| sequence.id != id);
        // Blocks of a step in flight may be freed: nobody gets them before that step is completed.
        self.end(|sequence| sequence.id == id);
        self.check();
        self.num_waiting() + self.num_running() < before
    }

    fn end(&mut self, mut ends: impl FnMut(&Sequence) -> bool) {
        for mut sequence in self.running.extract_if(.., |sequence| ends(sequence)) {
            let (table, tokens) = sequence.stop();
            self.blocks.release(table, tokens);
        }
    }

    /// Whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Requests that wait, preempted ones among them.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Requests that decode: each has a row in the next step, for which [`StepBudget`](crate::StepBudget) wants their number.
    pub fn num_decoding(&self) -> usize {
        self.running.iter().filter(|sequence| sequence.is_decoding()).count()
    }

    /// Blocks that nobody holds, cached ones among them.
    pub fn num_free_blocks(&self) -> usize {
        self.blocks.num_available()
    }

    /// Who has the blocks.
    pub fn usage(&self) -> Usage {
        let blocks = self.blocks.num_blocks();
        Usage { blocks, used: blocks - self.blocks.num_available(), cached: self.blocks.pool.num_cached() }
    }

    /// Sums since the scheduler was made.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Tokens that a request with this prompt would find in the prefix cache now.
    pub fn cached_prefix(&self, prompt: &[u32], salt: u64) -> usize {
        let findable = prompt.split_last().map_or(prompt, |(_, before)| before);
        self.blocks.num_found(&self.blocks.find(salt, findable))
    }
}
