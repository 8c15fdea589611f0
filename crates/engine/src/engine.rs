//! A model that runs: requests in, tokens out.

use std::time::{Duration, Instant};

use checkpoint::WeightSource;
use job::Job;
use model::{KeptAs, ModelConfig, bytes_per_token, check_tokens};
use tensor::{DType, KV_BLOCK, KvDType, Part, SequenceSpan, StepMeta};

use crate::bubble::{Bubble, Fill};
use crate::call::Call;
use crate::data_parallel::{FromReplica, ToReplica, receive, send};
use crate::leader::Leader;
use crate::prepared::{Prepared, Settings};
use crate::pulse::RankPulse;
use crate::replica::{Prepare, Replica};
use crate::savings::Savings;
use crate::trace::{RankTrace, Recording};
use crate::worker::{Command, Reply};
use crate::{Completion, EngineError, EngineOptions, GenerateRequest, Plan, RankReport, Timing, memory};
use crate::{groups, launch, sampling};

/// Rows of a pipeline's step below which more steps would cost more than the stages' waiting.
const MICRO_BATCH_ROWS: usize = 64;

/// A loaded model and its ranks. Belongs to the thread that made it, which is rank 0's.
pub struct Engine {
    leader: Box<dyn Leader>,
    plan: Plan,
    kept: KeptAs,
    kv_dtype: KvDType,
    /// Of all ranks of one replica.
    kv_bytes_per_token: u64,
    threads_per_rank: usize,
    /// Ranks on this host.
    ranks_here: usize,
    max_model_len: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    /// In every replica's cache.
    blocks: usize,
    load: Duration,
    replica: Replica,
    timing: Timing,
    bubble: Option<Bubble>,
    /// Requests so far: the next one's id.
    requests: u64,
    recording: Recording,
    /// Says whether no further step is wanted.
    stop: Option<Box<dyn Fn() -> bool>>,
}

impl Engine {
    /// Loads a model over the threads of this process. `progress` gets (bytes loaded, bytes in all), from rank 0.
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
        let prepared = Prepared::new(config, source, options, None)?;
        let Prepared { setup, settings, total } = prepared;
        let plan =
            Plan { mesh: setup.grouping.mesh, layout: setup.layout.clone(), stages: setup.stages.clone() };
        let leader = launch::launch(setup, &|bytes| progress(bytes, total))?;
        Ok(Engine::with(Box::new(leader), plan, settings, options, started.elapsed()))
    }

    /// Does this process's part of a job of several, one rank each. Rank 0 gets the engine; every other rank works
    /// until that is dropped, and gets nothing.
    ///
    /// # Errors
    /// Those of [`Engine::load`]; a rank of the job is lost.
    pub fn join(
        config: ModelConfig,
        source: WeightSource,
        options: &EngineOptions,
        job: &Job,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Option<Engine>, EngineError> {
        let started = Instant::now();
        let Prepared { setup, settings, total } = Prepared::new(config, source, options, Some(job))?;
        let plan =
            Plan { mesh: setup.grouping.mesh, layout: setup.layout.clone(), stages: setup.stages.clone() };
        let groups = groups::of_job(setup.grouping, job, options.comm_timeout)?;
        if job.rank() > 0 {
            return launch::live(&setup, groups).map(|()| None);
        }
        let leader = launch::lead(&setup, groups, &|bytes| progress(bytes, total))?;
        Ok(Some(Engine::with(Box::new(leader), plan, settings, options, started.elapsed())))
    }

    fn with(
        leader: Box<dyn Leader>,
        plan: Plan,
        settings: Settings,
        options: &EngineOptions,
        load: Duration,
    ) -> Engine {
        let of_stage = |stage| -> u64 {
            (0..plan.mesh.tp).map(|rank| bytes_per_token(&plan.layout, stage, rank, settings.kv_dtype)).sum()
        };
        Engine {
            leader,
            kv_bytes_per_token: plan.stages.iter().map(of_stage).sum(),
            plan,
            kept: settings.kept,
            kv_dtype: settings.kv_dtype,
            threads_per_rank: settings.threads,
            ranks_here: settings.ranks_here,
            max_model_len: settings.max_model_len,
            max_num_seqs: options.max_num_seqs.max(1),
            max_num_batched_tokens: options.max_num_batched_tokens.max(1),
            blocks: 0,
            load,
            replica: Replica::default(),
            timing: Timing::default(),
            bubble: None,
            requests: 0,
            recording: Recording::new(options.comm_timeout),
            stop: None,
        }
    }

    /// The model.
    pub fn config(&self) -> &ModelConfig {
        &self.plan.layout.config
    }

    /// What is where.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What most of the weights that are not quantised are kept in.
    pub fn dtype(&self) -> DType {
        self.kept.dtype.expect("an engine knows its type")
    }

    /// What weights are kept in.
    pub fn kept_as(&self) -> KeptAs {
        self.kept
    }

    /// What keys and values are kept in.
    pub fn kv_cache_dtype(&self) -> KvDType {
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

    /// How the last call filled the pipeline; nothing of a single stage.
    pub fn bubble(&self) -> Option<Bubble> {
        self.bubble
    }

    /// Begins to record what the threads of all ranks do.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn begin_trace(&mut self) -> Result<(), EngineError> {
        self.recording.begin(&mut *self.leader, self.plan.mesh.dp)
    }

    /// What was recorded since [`Engine::begin_trace`]. Ends it.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn take_trace(&mut self) -> Result<Vec<RankTrace>, EngineError> {
        self.recording.take(&mut *self.leader)
    }

    /// What was recorded until now by this rank, and by the others as far as they can still be asked: for a run that was
    /// interrupted or has failed.
    pub fn take_trace_so_far(&mut self) -> Vec<RankTrace> {
        self.recording.take_so_far(&mut *self.leader)
    }

    /// Lets every call end before its next step with [`EngineError::Interrupted`] while `stop` says so. Ranks are as ready
    /// for another call as ever.
    pub fn stop_when(&mut self, stop: impl Fn() -> bool + 'static) {
        self.stop = Some(Box::new(stop));
    }

    fn is_stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop())
    }

    /// Measures what the ranks of this replica's first stage pay for the all-reduces of one token, in seconds.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn all_reduces_per_token_s(&mut self) -> Result<f64, EngineError> {
        self.leader.issue(&Command::TimeAllReduce)?;
        let reports = self.leader.reports()?;
        let of_stage = |pp: usize| {
            let of = reports.iter().filter(move |r| r.place.1 == pp).filter_map(|r| r.row_all_reduce_s);
            2.0 * self.plan.stages[pp].layers.len() as f64 * of.fold(0.0, f64::max)
        };
        Ok((0..self.plan.mesh.pp).map(of_stage).sum())
    }

    /// What sequence parallelism saves rank 0 in a step of `tokens` tokens: the cost of norms and residual adds without
    /// it and with it, and the bytes of the residual stream.
    ///
    /// # Errors
    /// None that a model which was loaded could have.
    pub fn sequence_savings(&self, tokens: usize) -> Result<Option<Savings>, EngineError> {
        Savings::of_step(&self.plan, self.kept, self.kv_dtype, tokens)
    }

    /// What each rank of all replicas holds and has spent.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn reports(&mut self) -> Result<Vec<RankReport>, EngineError> {
        let mut reports = self.leader.reports()?;
        for replica in 1..self.plan.mesh.dp {
            reports.extend(self.reports_of(replica)?.0);
        }
        Ok(reports)
    }

    /// What each rank of the first replica has done since it was loaded.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn pulses(&mut self) -> Result<Vec<RankPulse>, EngineError> {
        self.leader.pulses()
    }

    fn reports_of(&mut self, replica: usize) -> Result<(Vec<RankReport>, Timing), EngineError> {
        send(&mut *self.leader, replica, &ToReplica::Report)?;
        loop {
            match receive(&mut *self.leader, replica, true)? {
                Some(FromReplica::Reports(reports, timing)) => return Ok((reports, timing)),
                // Of a request that was aborted.
                _ => continue,
            }
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
        let requests: Vec<GenerateRequest> = requests
            .iter()
            .zip(limits)
            .map(|(r, max_tokens)| GenerateRequest { max_tokens, ..r.clone() })
            .collect();
        self.prepare(&requests)?;
        let started = Instant::now();
        let mut call = Call::new(self.requests, &requests, self.plan.mesh.dp, on_token);
        self.requests += requests.len() as u64;
        while !call.is_done() {
            if self.is_stopped() {
                call.running().into_iter().try_for_each(|(replica, id)| self.abort(replica, id))?;
                self.replica.settle(&mut *self.leader)?;
                return Err(EngineError::Interrupted);
            }
            for (replica, index) in call.assign(self.max_num_seqs) {
                let (id, request) = (call.first + index as u64, requests[index].clone());
                match replica {
                    0 => self.replica.submit(id, request)?,
                    _ => send(&mut *self.leader, replica, &ToReplica::Submit { id, request })?,
                }
            }
            let mut events = self.replica.pump(&mut *self.leader)?;
            let idle = self.replica.is_idle();
            for replica in 1..self.plan.mesh.dp {
                let wait = idle && events.is_empty() && call.router.outstanding(replica) > 0;
                if let Some(FromReplica::Tokens(more)) = receive(&mut *self.leader, replica, wait)? {
                    events.extend(more);
                }
            }
            for event in events {
                self.leader.enter(Part::Text);
                let aborted = call.take(event);
                self.leader.leave();
                if let Some((replica, id)) = aborted {
                    self.abort(replica, id)?;
                }
            }
        }
        let completions = call.completions;
        self.finish(started)?;
        Ok(completions)
    }

    fn abort(&mut self, replica: usize, id: u64) -> Result<(), EngineError> {
        match replica {
            0 => {
                self.replica.abort(id);
                Ok(())
            }
            _ => send(&mut *self.leader, replica, &ToReplica::Abort { id }),
        }
    }

    /// What the call came to.
    fn finish(&mut self, started: Instant) -> Result<(), EngineError> {
        self.replica.settle(&mut *self.leader)?;
        self.timing = self.replica.timing;
        let fill = self.replica.fill;
        self.note_bubble(started, &fill);
        for replica in 1..self.plan.mesh.dp {
            let (_, timing) = self.reports_of(replica)?;
            self.timing = self.timing.beside(timing);
        }
        Ok(())
    }

    fn note_bubble(&mut self, started: Instant, fill: &Fill) {
        let (wall_s, stages) = (started.elapsed().as_secs_f64(), self.plan.mesh.pp);
        self.bubble = (stages > 1).then(|| fill.bubble(wall_s, stages));
    }

    /// Sets the replicas up for a call.
    fn prepare(&mut self, requests: &[GenerateRequest]) -> Result<(), EngineError> {
        let mesh = self.plan.mesh;
        let context = self.plan.context();
        let needed = |r: &GenerateRequest| context.blocks_that_fit(r.work().div_ceil(KV_BLOCK));
        let blocks: Vec<usize> = requests.iter().map(needed).collect();
        // Enough for as many of the largest as may run at a time, and no more than all need or memory has.
        let largest = blocks.iter().max().copied().unwrap_or(0);
        let wanted = blocks.iter().sum::<usize>().min(largest.saturating_mul(self.max_num_seqs));
        let wanted = wanted.min(self.affordable_blocks()).max(largest);
        let lanes = mesh.pp.min(requests.len()).max(1);
        // Every lane begins with a block of the context group's first rank.
        let blocks_per_lane = wanted.div_ceil(lanes).max(largest).next_multiple_of(context.ranks);
        let prompt_tokens = requests.iter().map(|r| r.prompt.len()).sum();
        let prepare = Prepare {
            lanes,
            blocks_per_lane,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.step_tokens(prompt_tokens),
            stages: mesh.pp,
            context: context.ranks,
        };
        let blocks = self.allocate(lanes * blocks_per_lane)?;
        for replica in 1..mesh.dp {
            send(&mut *self.leader, replica, &ToReplica::Prepare { prepare, blocks })?;
        }
        self.replica.prepare(prepare);
        Ok(())
    }

    /// The most tokens of a step. A pipeline takes prompts in more and smaller steps, so that no stage waits long.
    fn step_tokens(&self, prompt_tokens: usize) -> usize {
        match self.plan.mesh.pp {
            1 => self.max_num_batched_tokens,
            pp => {
                let rows = prompt_tokens.div_ceil(4 * pp).max(MICRO_BATCH_ROWS);
                rows.min(self.max_num_batched_tokens)
            }
        }
    }

    /// The natural logarithm of each token's probability given those before it; `None` for the first.
    ///
    /// # Errors
    /// Token ids that can't be, a rank that fails.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<Option<f32>>, EngineError> {
        self.check_prompt(tokens, 0)?;
        let (context, blocks) = (self.plan.context(), tokens.len().div_ceil(KV_BLOCK));
        self.allocate(context.blocks_that_fit(blocks))?;
        let block_table = context.table_alone(blocks);
        let mut logprobs = vec![None];
        let started = Instant::now();
        let step_tokens = self.step_tokens(tokens.len());
        let most = if self.plan.mesh.pp == 1 { 1 } else { 2 * self.plan.mesh.pp };
        let (mut on_their_way, mut fill) = (0, Fill::default());
        let mut collect = |leader: &mut dyn Leader| -> Result<(), EngineError> {
            let Reply::Tokens(found) = leader.collect()? else { unreachable!("tokens were scored") };
            logprobs.extend(found.into_iter().map(|token| token.logprobs.map(|of| of.logprob)));
            Ok(())
        };
        // The last token's successor isn't asked for, so it needn't run.
        for start in (0..tokens.len() - 1).step_by(step_tokens) {
            if self.is_stopped() {
                break;
            }
            let end = (start + step_tokens).min(tokens.len() - 1);
            let rows = end - start;
            let block_table = block_table[..end.div_ceil(KV_BLOCK)].to_vec();
            let meta = StepMeta {
                tokens: tokens[start..end].to_vec(),
                sequences: vec![SequenceSpan { rows: 0..rows, start, block_table }],
                logit_rows: (0..rows as u32).collect(),
            };
            self.leader.issue(&Command::score(meta, &tokens[start + 1..=end]))?;
            on_their_way += 1;
            fill.issued(true);
            if on_their_way == most {
                collect(&mut *self.leader)?;
                on_their_way -= 1;
                fill.collected();
            }
        }
        for _ in 0..on_their_way {
            collect(&mut *self.leader)?;
            fill.collected();
        }
        if logprobs.len() < tokens.len() {
            return Err(EngineError::Interrupted);
        }
        self.note_bubble(started, &fill);
        self.timing =
            Timing { prefill: (tokens.len(), started.elapsed().as_secs_f64()), ..Timing::default() };
        Ok(logprobs)
    }

    /// The most tokens that a request can get.
    fn check(&self, request: &GenerateRequest) -> Result<usize, EngineError> {
        sampling::check(request, self.config().vocab_size)?;
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
        check_tokens(self.config(), prompt)?;
        if prompt.len() + to_come > self.max_model_len {
            return Err(EngineError::Request(format!(
                "the prompt has {} tokens, which leaves no room in the model's {} positions",
                prompt.len(),
                self.max_model_len
            )));
        }
        Ok(())
    }

    /// Bytes that one token takes in the caches of this host's ranks, if they are like the others.
    fn kv_bytes(&self) -> u64 {
        let of_all = self.kv_bytes_per_token * self.plan.mesh.dp as u64;
        (of_all * self.ranks_here as u64).div_ceil(self.plan.mesh.size() as u64)
    }

    /// KV blocks of each replica that take half of the memory that is left.
    fn affordable_blocks(&self) -> usize {
        let block = self.kv_bytes() * KV_BLOCK as u64;
        memory::available_bytes().map_or(usize::MAX, |bytes| (bytes / 2 / block.max(1)) as usize)
    }

    /// Sees to it that the caches have room, and begins to count the time at work. The size of a new cache, if one had
    /// to be made.
    fn allocate(&mut self, blocks: usize) -> Result<Option<usize>, EngineError> {
        let more = blocks > self.blocks;
        if more {
            let bytes = (blocks * KV_BLOCK) as u64 * self.kv_bytes();
            if memory::available_bytes().is_some_and(|available| bytes > available) {
                return Err(EngineError::Request(format!(
                    "keys and values of {} tokens need {bytes} bytes, more than the memory that is left; shorten the \
                     prompt or --max-tokens, or use --kv-cache-dtype bfloat16 or fp8",
                    blocks * KV_BLOCK
                )));
            }
            self.leader.issue(&Command::AllocateKv { blocks })?;
            self.blocks = blocks;
        }
        self.leader.issue(&Command::Mark)?;
        Ok(more.then_some(blocks))
    }
}
