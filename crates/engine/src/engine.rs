//! A model that runs: requests in, tokens out.

use std::time::{Duration, Instant};

use checkpoint::WeightSource;
use cpu::{CpuConfig, CpuDevice};
use model::{Decoder, Layout, Loader, ModelConfig, bytes_per_token, check_tokens};
use scheduler::{Batch, Request, Scheduler, SchedulerConfig};
use tensor::{Cost, DType, KV_BLOCK, OpCost, SequenceSpan, StepMeta, Timed};

use crate::cost::cost_of_step;
use crate::launch::{LaunchOptions, Leader, MakeDevice, launch};
use crate::worker::{Command, RankReport, Reply};
use crate::{EngineError, EngineOptions, SamplingParams, cpus, memory};

/// How long a thread that waits for another spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// Threads of all ranks together: above any machine's cores, below what systems refuse.
const MAX_THREADS: usize = 4096;

/// What someone wants completed.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the completion.
    pub stop_token_ids: Vec<u32>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A token or text that ends it.
    Stop,
    /// `max_tokens`, or the model's longest sequence.
    Length,
}

impl FinishReason {
    /// OpenAI's name of it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// A request's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Token ids; a stop token is the last of them.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// One kind of operation of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpTime {
    /// Its name in [`tensor::Device`].
    pub op: &'static str,
    /// How long all of them took.
    pub time: Duration,
    /// What they had to do.
    pub cost: OpCost,
}

/// Where a call's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Until the first token was chosen.
    pub time_to_first_token: Duration,
    /// Prompt tokens, and seconds of the steps that had any.
    pub prefill: (usize, f64),
    /// Tokens chosen in steps without prompt tokens, and seconds of those steps.
    pub decode: (usize, f64),
}

/// A loaded model and its ranks. Belongs to the thread that made it, which is rank 0's.
pub struct Engine {
    leader: Box<dyn Leader>,
    layout: Layout,
    dtype: DType,
    kv_dtype: DType,
    kv_bytes_per_token: Vec<u64>,
    threads_per_rank: usize,
    max_model_len: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    blocks: usize,
    load: Duration,
    timing: Timing,
    last_step: Option<StepMeta>,
}

struct MakeCpu {
    ranks: usize,
    threads: usize,
    isa: Option<cpu::Isa>,
    spin: bool,
}

impl MakeDevice for MakeCpu {
    type Device = Timed<CpuDevice>;
    fn make(&self, rank: usize) -> Timed<CpuDevice> {
        Timed::new(CpuDevice::new(CpuConfig {
            threads: self.threads,
            cores: cpus::of_rank(rank, self.ranks, self.threads),
            isa: self.isa,
            spin: self.spin,
        }))
    }
}

impl Engine {
    /// Loads a model. `progress` gets (bytes loaded, bytes in all), from rank 0.
    ///
    /// # Errors
    /// A plan or options that can't be, weights that are missing or damaged, a rank that fails.
    pub fn load(
        config: ModelConfig,
        source: WeightSource,
        options: &EngineOptions,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Engine, EngineError> {
        let started = Instant::now();
        let max_positions = config.max_position_embeddings;
        let layout = Layout::new(config, &options.rank_weights, &options.tp_plan)?;
        let ranks = layout.ranks();
        let dtype = options.dtype.unwrap_or_else(|| source.dtype());
        let kv_dtype = options.kv_cache_dtype.unwrap_or(dtype);
        let max_model_len = options.max_model_len.unwrap_or(max_positions);
        if max_model_len == 0 || max_model_len > max_positions {
            return Err(EngineError::Request(format!(
                "max-model-len {max_model_len} must be from 1 to the model's {} positions",
                max_positions
            )));
        }
        if options.threads_per_rank == Some(0) {
            return Err(EngineError::Request("threads-per-rank must be at least 1".into()));
        }
        let total = preflight(&layout, &source, options.dtype)?;
        if let Some(available) = memory::available_bytes().filter(|&available| total > available) {
            return Err(EngineError::Request(format!(
                "the weights need {total} bytes over {ranks} ranks, but only {available} bytes of memory are available; \
                 a smaller --dtype, or a machine with more memory, would work"
            )));
        }
        let threads = options.threads_per_rank.unwrap_or_else(|| cpus::default_threads(ranks));
        if threads.saturating_mul(ranks) > MAX_THREADS {
            return Err(EngineError::Request(format!(
                "threads-per-rank {threads} on {ranks} ranks are more than {MAX_THREADS} threads; this machine has {} cores",
                cpus::available().len()
            )));
        }
        // Spinning only makes sense while everyone who spins has a core.
        let spin = ranks * threads <= cpus::available().len();
        let kv_bytes_per_token = (0..ranks).map(|rank| bytes_per_token(&layout, rank, kv_dtype)).collect();
        let launch_options = LaunchOptions {
            weight_dtype: options.dtype,
            kv_dtype,
            comm_timeout: options.comm_timeout,
            spin: if spin { SPIN } else { Duration::ZERO },
        };
        let make = MakeCpu { ranks, threads, isa: options.isa, spin };
        let leader = launch(layout.clone(), source, launch_options, make, &|bytes| progress(bytes, total))?;
        Ok(Engine {
            leader: Box::new(leader),
            layout,
            dtype,
            kv_dtype,
            kv_bytes_per_token,
            threads_per_rank: threads,
            max_model_len,
            max_num_seqs: options.max_num_seqs.max(1),
            max_num_batched_tokens: options.max_num_batched_tokens.max(1),
            blocks: 0,
            load: started.elapsed(),
            timing: Timing::default(),
            last_step: None,
        })
    }

    /// The model.
    pub fn config(&self) -> &ModelConfig {
        &self.layout.config
    }

    /// What most weights are kept in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// What keys and values are kept in.
    pub fn kv_cache_dtype(&self) -> DType {
        self.kv_dtype
    }

    /// Threads of each rank.
    pub fn threads_per_rank(&self) -> usize {
        self.threads_per_rank
    }

    /// Longest sequence.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load
    }

    /// Where the last call's time went.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// What the last step took on rank 0, by kind of operation, slowest first.
    ///
    /// # Errors
    /// None that a model which was loaded could have.
    pub fn breakdown(&self) -> Result<Vec<OpTime>, EngineError> {
        let Some(meta) = &self.last_step else { return Ok(Vec::new()) };
        let cost = cost_of_step(&self.layout, 0, self.dtype, self.kv_dtype, meta)?;
        let of_op = |(op, time)| OpTime { op, time, cost: cost.ops.get(op).copied().unwrap_or_default() };
        let mut ops: Vec<OpTime> = self.leader.take_op_times().into_iter().map(of_op).collect();
        ops.sort_by_key(|op| std::cmp::Reverse(op.time));
        Ok(ops)
    }

    /// Bytes that one token's keys and values take on each rank.
    pub fn kv_bytes_per_token(&self) -> &[u64] {
        &self.kv_bytes_per_token
    }

    /// What each rank holds and has spent.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn reports(&mut self) -> Result<Vec<RankReport>, EngineError> {
        match self.leader.lead(&Command::Report)? {
            Reply::Reports(reports) => Ok(reports),
            other => unreachable!("a report was asked for, not {other:?}"),
        }
    }

    /// Runs requests as one batch. `on_token(request, token)` is called for each token as it is chosen; `true`
    /// ends that request there.
    ///
    /// # Errors
    /// A request that can't be, which is found before anything runs; a rank that fails.
    pub fn generate(
        &mut self,
        requests: &[GenerateRequest],
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Completion>, EngineError> {
        let limits: Vec<usize> = requests.iter().map(|r| self.check(r)).collect::<Result<_, _>>()?;
        let blocks: Vec<usize> =
            requests.iter().zip(&limits).map(|(r, max)| (r.prompt.len() + max).div_ceil(KV_BLOCK)).collect();
        // Enough for as many of the largest as may run at a time, and no more than all need or memory has.
        let largest = blocks.iter().max().copied().unwrap_or(0);
        let wanted = blocks.iter().sum::<usize>().min(largest.saturating_mul(self.max_num_seqs));
        self.allocate(wanted.min(self.affordable_blocks()).max(largest))?;
        let mut scheduler = self.scheduler();
        for (id, (request, &max_tokens)) in requests.iter().zip(&limits).enumerate() {
            scheduler.add(Request { id: id as u64, prompt: request.prompt.clone(), max_tokens })?;
        }
        let mut completions =
            vec![Completion { token_ids: Vec::new(), finish_reason: FinishReason::Length }; requests.len()];
        self.timing = Timing::default();
        let started = Instant::now();
        while let Some(batch) = scheduler.schedule() {
            let tokens = self.step(&batch, requests, &completions)?;
            if self.timing.time_to_first_token.is_zero() && !tokens.is_empty() {
                self.timing.time_to_first_token = started.elapsed();
            }
            let sampling = batch.items.iter().filter(|item| item.samples);
            let outputs: Vec<_> = sampling
                .zip(tokens)
                .map(|(item, token)| {
                    let index = item.id as usize;
                    let completion = &mut completions[index];
                    completion.token_ids.push(token);
                    // The caller hears of every token, also of one that ends the completion.
                    let stop = on_token(index, token) | requests[index].stop_token_ids.contains(&token);
                    if stop {
                        completion.finish_reason = FinishReason::Stop;
                    }
                    (item.id, token, stop)
                })
                .collect();
            scheduler.complete(&batch, &outputs);
        }
        Ok(completions)
    }

    /// The natural logarithm of each token's probability given those before it; `None` for the first.
    ///
    /// # Errors
    /// Token ids that can't be, a rank that fails.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<Option<f32>>, EngineError> {
        self.check_prompt(tokens, 0)?;
        let blocks = tokens.len().div_ceil(KV_BLOCK);
        self.allocate(blocks)?;
        let block_table: Vec<u32> = (0..blocks as u32).collect();
        let mut logprobs = vec![None];
        let started = Instant::now();
        // The last token's successor isn't asked for, so it needn't run.
        for start in (0..tokens.len() - 1).step_by(self.max_num_batched_tokens) {
            let end = (start + self.max_num_batched_tokens).min(tokens.len() - 1);
            let rows = end - start;
            let block_table = block_table[..end.div_ceil(KV_BLOCK)].to_vec();
            let meta = StepMeta {
                tokens: tokens[start..end].to_vec(),
                sequences: vec![SequenceSpan { rows: 0..rows, start, block_table }],
                logit_rows: (0..rows as u32).collect(),
            };
            let targets = tokens[start + 1..=end].to_vec();
            match self.leader.lead(&Command::Score { meta, targets })? {
                Reply::Logprobs(found) => logprobs.extend(found.into_iter().map(Some)),
                other => unreachable!("log-probabilities were asked for, not {other:?}"),
            }
        }
        self.timing =
            Timing { prefill: (tokens.len(), started.elapsed().as_secs_f64()), ..Timing::default() };
        Ok(logprobs)
    }

    /// The most tokens that a request can get.
    fn check(&self, request: &GenerateRequest) -> Result<usize, EngineError> {
        request.sampling.check()?;
        if request.max_tokens == 0 {
            return Err(EngineError::Request("max-tokens must be at least 1".into()));
        }
        self.check_prompt(&request.prompt, 1)?;
        Ok(request.max_tokens.min(self.max_model_len - request.prompt.len()))
    }

    fn check_prompt(&self, prompt: &[u32], to_come: usize) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::Request("the prompt is empty; give at least one token".into()));
        }
        check_tokens(&self.layout.config, prompt)?;
        if prompt.len() + to_come > self.max_model_len {
            return Err(EngineError::Request(format!(
                "the prompt has {} tokens, which leaves no room in the model's {} positions",
                prompt.len(),
                self.max_model_len
            )));
        }
        Ok(())
    }

    /// KV blocks that take half of the memory that is left, over all ranks.
    fn affordable_blocks(&self) -> usize {
        let block = self.kv_bytes_per_token.iter().sum::<u64>() * KV_BLOCK as u64;
        memory::available_bytes().map_or(usize::MAX, |bytes| (bytes / 2 / block.max(1)) as usize)
    }

    fn allocate(&mut self, blocks: usize) -> Result<(), EngineError> {
        if blocks > self.blocks {
            let bytes = (blocks * KV_BLOCK) as u64 * self.kv_bytes_per_token.iter().sum::<u64>();
            if memory::available_bytes().is_some_and(|available| bytes > available) {
                return Err(EngineError::Request(format!(
                    "keys and values of {} tokens need {bytes} bytes, more than the memory that is left; shorten the \
                     prompt or --max-tokens, or use --kv-cache-dtype bfloat16",
                    blocks * KV_BLOCK
                )));
            }
            self.leader.lead(&Command::AllocateKv { blocks })?;
            self.blocks = blocks;
        }
        Ok(())
    }

    fn scheduler(&self) -> Scheduler {
        Scheduler::new(SchedulerConfig {
            num_blocks: self.blocks,
            block_size: KV_BLOCK,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
        })
    }

    /// Runs a batch; returns the tokens of the items that sample, in their order.
    fn step(
        &mut self,
        batch: &Batch,
        requests: &[GenerateRequest],
        completions: &[Completion],
    ) -> Result<Vec<u32>, EngineError> {
        let mut meta = StepMeta::default();
        let (mut edits, mut choices) = (Vec::new(), Vec::new());
        let mut prompt_tokens = 0;
        for item in &batch.items {
            let first = meta.tokens.len();
            meta.tokens.extend_from_slice(&item.tokens);
            let rows = first..meta.tokens.len();
            let (request, completion) = (&requests[item.id as usize], &completions[item.id as usize]);
            if item.start < request.prompt.len() {
                prompt_tokens += rows.len();
            }
            if item.samples {
                meta.logit_rows.push(rows.end as u32 - 1);
                let position = item.start + rows.len();
                let row = choices.len();
                edits.extend(request.sampling.edits(row, &request.prompt, &completion.token_ids));
                choices.push(request.sampling.choice(position));
            }
            let block_table = item.block_table.clone();
            meta.sequences.push(SequenceSpan { rows, start: item.start, block_table });
        }
        let edits = edits.into_iter().map(Into::into).collect();
        self.last_step = Some(meta.clone());
        self.leader.take_op_times();
        let started = Instant::now();
        let Reply::Tokens(tokens) = self.leader.lead(&Command::Generate { meta, edits, choices })? else {
            unreachable!("tokens were asked for")
        };
        let seconds = started.elapsed().as_secs_f64();
        let (count, sum) = match prompt_tokens {
            0 => (tokens.len(), &mut self.timing.decode),
            n => (n, &mut self.timing.prefill),
        };
        *sum = (sum.0 + count, sum.1 + seconds);
        Ok(tokens)
    }
}

/// Finds what is missing or misshapen in a checkpoint before any rank starts, and how much there is to load.
fn preflight(layout: &Layout, source: &WeightSource, dtype: Option<DType>) -> Result<u64, EngineError> {
    let mut total = 0;
    // Random weights lack nothing, and needn't be made to be counted.
    let meta = WeightSource::Meta { dtype: source.dtype() };
    let source = if matches!(source, WeightSource::Random { .. }) { &meta } else { source };
    for rank in 0..layout.ranks() {
        let dev = Cost::new();
        let loader = Loader::new(&dev, source, layout, rank, dtype, &|_| Ok(()));
        Decoder::load(&loader)?;
        total += loader.stats().weight_bytes;
    }
    Ok(total)
}
