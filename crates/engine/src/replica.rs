//! One replica at work on many requests: steps are issued as long as the pipeline has room for more, and their tokens
//! collected in order.
//!
//! A replica of one stage has one *lane*: a scheduler with its KV blocks. A pipeline has as many lanes as stages, and
//! requests are spread over them: while one lane's step is in the second stage, the next lane's is in the first. Chunks
//! of a prompt follow each other without waiting, for nothing is sampled from them.

mod flight;
mod masks;
mod running;
mod starting;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::{Batch, CacheUse, Request, Scheduler, SchedulerConfig, StepBudget};
use serde::{Deserialize, Serialize};
use tensor::{KV_BLOCK, Part};

use crate::EngineError;
use crate::bubble::Fill;
use crate::grammar::{Grammars, Start};
use crate::leader::Leader;
use crate::plan::context_parallel;
use crate::request::{GenerateRequest, Timing};
use crate::sampling::Sampled;
use crate::serving::{Event, LoadReport};
use crate::worker::Reply;

use flight::{AskOf, Flight};
use masks::{AfterMasks, Held, Masks};
use running::Running;
use starting::Starting;

/// How long a leader that has nothing else to do waits at a time for what others are doing.
pub(crate) const POLL: Duration = Duration::from_micros(200);

/// How long steps of prompts may take while other replicas' tokens wait for their ends.
const RELAY_S: f64 = 0.1;

/// Rows of a pipeline's step below which more steps would cost more than the stages' waiting.
pub(crate) const MICRO_BATCH_ROWS: usize = 64;

/// What a replica is set up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepare {
    pub lanes: usize,
    pub blocks_per_lane: usize,
    /// Over all lanes.
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    /// Whether steps become smaller than that where they would take long.
    pub follows_time: bool,
    /// Whether requests use keys and values of prompts before them.
    pub prefix_caching: bool,
    /// Stages of the pipeline.
    pub stages: usize,
    /// Ranks that share KV blocks by position.
    pub context: usize,
}

/// The requests that one replica works on.
#[derive(Default)]
pub(crate) struct Replica {
    grammars: Option<Arc<Grammars>>,
    prepared: Prepare,
    lanes: Vec<Lane>,
    flight: VecDeque<Flight>,
    running: BTreeMap<u64, Running>,
    /// Those whose grammars are not ready yet.
    starting: Starting,
    masks: Masks,
    next_lane: usize,
    /// What steps of any lane take.
    budget: StepBudget,
    /// Whether other replicas have streams that run: their tokens are told between steps of this one.
    pub others_decode: bool,
    pub timing: Timing,
    /// Steps since [`Replica::prepare`].
    pub fill: Fill,
    load: LoadReport,
    began: Option<Instant>,
    collected: Option<Instant>,
    /// What the leader had worked then.
    worked: Duration,
}

struct Lane {
    scheduler: Scheduler,
    first_block: u32,
    /// Whether a step of it samples and is not collected yet.
    sampling: bool,
}

impl Replica {
    /// One that can hold completions to grammars, if there are any.
    pub fn new(grammars: Option<Arc<Grammars>>) -> Self {
        Replica { grammars, ..Replica::default() }
    }

    /// Makes the lanes anew. The KV cache must have room for all their blocks.
    pub fn prepare(&mut self, prepare: Prepare) {
        assert!(self.is_idle(), "a replica at work is not set up anew");
        let config = SchedulerConfig {
            context: context_parallel(prepare.context),
            num_blocks: prepare.blocks_per_lane,
            block_size: KV_BLOCK,
            max_num_seqs: prepare.max_num_seqs.div_ceil(prepare.lanes),
            max_num_batched_tokens: prepare.max_num_batched_tokens,
            prefix_caching: prepare.prefix_caching,
        };
        let lane = |i: usize| Lane {
            scheduler: Scheduler::new(config),
            first_block: (i * prepare.blocks_per_lane) as u32,
            sampling: false,
        };
        let lanes = (0..prepare.lanes).map(lane).collect();
        let began = Some(Instant::now());
        let (starting, masks) = (std::mem::take(&mut self.starting), std::mem::take(&mut self.masks));
        let new = Replica::new(self.grammars.take());
        *self = Replica { prepared: prepare, lanes, began, starting, masks, ..new };
    }

    /// Takes a request. One with a grammar runs as soon as that is ready, for which nobody else waits. `max_tokens` must fit
    /// the model's positions.
    pub fn submit(&mut self, id: u64, request: GenerateRequest) -> Result<(), EngineError> {
        match request.grammar.is_some() {
            true => self.starting.begin(id, request, self.grammars.as_ref()),
            false => self.add(id, request, None),
        }
    }

    /// Puts a request on a lane with a free place: that with the least work, less what of its prompt is in the lane's cache.
    fn add(&mut self, id: u64, request: GenerateRequest, start: Option<Start>) -> Result<(), EngineError> {
        if self.running.is_empty() && self.flight.is_empty() {
            self.collected = None; // until now it waited for work
        }
        let lane = self.lane_for(&request);
        let cache = CacheUse { salt: request.cache_salt, reads: request.prompt_logprobs.is_none() };
        let (prompt, max_tokens) = (request.prompt.clone(), request.max_tokens);
        self.lanes[lane].scheduler.add(Request { id, prompt, max_tokens, cache })?;
        self.running.insert(id, Running::new(request, lane, start.map(Held::new)));
        Ok(())
    }

    /// Adds those whose grammars are ready. If there is nothing else to do it waits for one, for a moment.
    fn add_started(&mut self, on: &mut dyn FnMut(Event)) -> Result<(), EngineError> {
        let mut patience = match self.running.is_empty() && self.flight.is_empty() {
            true => POLL,
            false => Duration::ZERO,
        };
        while let Some((id, request, start)) = self.starting.next_within(patience)? {
            patience = Duration::ZERO;
            if let Err(error) = start.and_then(|start| self.add(id, request, Some(start))) {
                on(Event::Refused { id, message: error.to_string() });
            }
        }
        Ok(())
    }

    fn lane_for(&self, request: &GenerateRequest) -> usize {
        let mut work = vec![0; self.lanes.len()];
        for running in self.running.values() {
            work[running.lane] += running.work();
        }
        let places = self.prepared.max_num_seqs.div_ceil(self.lanes.len());
        let cost = |lane: usize| {
            let scheduler = &self.lanes[lane].scheduler;
            let is_full = scheduler.num_running() + scheduler.num_waiting() >= places;
            let cached = scheduler.cached_prefix(&request.prompt, request.cache_salt);
            (is_full, work[lane].saturating_sub(cached))
        };
        match self.lanes.len() {
            1 => 0,
            lanes => (0..lanes).min_by_key(|&lane| cost(lane)).expect("a replica has a lane"),
        }
    }

    /// Ends a request now, if it still runs.
    pub fn abort(&mut self, id: u64) {
        self.starting.abort(id);
        if let Some(running) = self.running.remove(&id) {
            self.lanes[running.lane].scheduler.abort(id);
        }
    }

    /// Whether nothing runs or begins, and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.starting.is_empty() && self.flight.is_empty()
    }

    /// Sequences that decode.
    pub fn num_decoding(&self) -> usize {
        self.lanes.iter().map(|lane| lane.scheduler.num_decoding()).sum()
    }

    /// How busy it is.
    pub fn load(&self) -> LoadReport {
        let mut load = self.load;
        load.waiting += self.starting.len();
        for Lane { scheduler, .. } in &self.lanes {
            let (usage, counters) = (scheduler.usage(), scheduler.counters());
            load.running += scheduler.num_running();
            load.waiting += scheduler.num_waiting();
            load.kv_blocks += usage.blocks;
            load.kv_blocks_used += usage.used;
            load.kv_blocks_cached += usage.cached;
            load.prefix_queries += counters.prefix_queries;
            load.prefix_hits += counters.prefix_hits;
            load.preemptions += counters.preemptions;
        }
        load
    }

    /// Issues the steps that there is room for, and collects the oldest. `on` hears of everything as it happens.
    ///
    /// # Errors
    /// A rank fails.
    pub fn pump(&mut self, leader: &mut dyn Leader, on: &mut dyn FnMut(Event)) -> Result<(), EngineError> {
        self.add_started(on)?;
        // Enough that no stage runs dry while a reply travels; a single stage does one step at a time.
        let room = if self.prepared.stages == 1 { 1 } else { 2 * self.prepared.stages };
        while self.flight.len() < room && self.issue_next(leader, on)? {}
        match self.flight.pop_front() {
            Some(flight) => self.collect(flight, leader, on),
            None => Ok(()),
        }
    }

    /// Collects all steps that are on their way, and issues no more.
    ///
    /// # Errors
    /// A rank fails.
    pub fn settle(&mut self, leader: &mut dyn Leader, on: &mut dyn FnMut(Event)) -> Result<(), EngineError> {
        while let Some(flight) = self.flight.pop_front() {
            self.collect(flight, leader, on)?;
        }
        Ok(())
    }

    /// Issues a step of the next lane that has one; whether there was any.
    fn issue_next(
        &mut self,
        leader: &mut dyn Leader,
        on: &mut dyn FnMut(Event),
    ) -> Result<bool, EngineError> {
        for _ in 0..self.lanes.len() {
            let lane = self.next_lane;
            self.next_lane = (lane + 1) % self.lanes.len();
            if self.lanes[lane].sampling || self.must_wait(lane) {
                continue;
            }
            leader.enter(Part::Scheduler);
            let budget = self.step_tokens(lane);
            match self.lanes[lane].scheduler.schedule(budget) {
                Some(batch) => return self.issue(lane, batch, leader, on).map(|()| true),
                None => leader.leave(),
            }
        }
        Ok(false)
    }

    /// The most tokens of a lane's next step.
    fn step_tokens(&self, lane: usize) -> usize {
        let Prepare { max_num_batched_tokens: max, stages, follows_time, .. } = self.prepared;
        let (own, all) = (self.lanes[lane].scheduler.num_decoding(), self.num_decoding());
        match (follows_time, all) {
            (false, _) => max,
            (true, 0) => {
                let rows = match self.others_decode {
                    true => self.budget.rows_within(RELAY_S, max),
                    false => self.budget.rows(0, max),
                };
                // A pipeline takes prompts in smaller steps, so that no stage waits long.
                if stages == 1 { rows } else { (rows / (2 * stages)).max(MICRO_BATCH_ROWS).min(max) }
            }
            // Streams of other lanes wait for the prompts of this one, too: for one step per stage at most.
            (true, all) => own + (self.budget.rows(all, max) - all.min(max)).div_ceil(stages),
        }
    }

    /// Whether a lane's next step would have streams of others wait for one prompt too many.
    fn must_wait(&self, lane: usize) -> bool {
        let decodes_elsewhere = self.num_decoding() > self.lanes[lane].scheduler.num_decoding();
        let prompts = self.flight.iter().filter(|flight| flight.prompt_rows > 0).count();
        decodes_elsewhere && prompts >= self.prepared.stages
    }

    /// Ends the leader's part with the step's command.
    fn issue(
        &mut self,
        lane: usize,
        batch: Batch,
        leader: &mut dyn Leader,
        on: &mut dyn FnMut(Event),
    ) -> Result<(), EngineError> {
        for &id in &batch.preempted {
            on(Event::Preempted { id });
        }
        for item in &batch.items {
            if let Some(cached_tokens) = item.started {
                on(Event::Started { id: item.id, cached_tokens });
                self.begin_prompt(item.id, on);
            }
        }
        let (flight, command) = self.flight_of(lane, batch);
        let now = Instant::now();
        leader.leave();
        let mut late =
            AfterMasks { masks: &self.masks, running: &mut self.running, flight: &flight, joined: Ok(()) };
        leader.issue_step(&command, &mut late)?;
        late.joined?;
        self.fill.issued(flight.prompt_rows > 0);
        let lane_of = &mut self.lanes[lane];
        match flight.samples() {
            true => lane_of.sampling = true,
            // Nothing comes of it that the next chunk would need to know.
            false => drop(lane_of.scheduler.complete(&flight.batch, &[])),
        }
        self.flight.push_back(Flight { issued: now, ..flight });
        Ok(())
    }

    /// The first token of a prompt follows nothing, and so has no probability.
    fn begin_prompt(&mut self, id: u64, on: &mut dyn FnMut(Event)) {
        let running = self.running.get_mut(&id).expect("who is scheduled has not ended");
        if running.request.prompt_logprobs.is_some() && !std::mem::replace(&mut running.is_told_of, true) {
            on(Event::Prompt { id, logprobs: vec![None] });
        }
    }

    fn collect(
        &mut self,
        flight: Flight,
        leader: &mut dyn Leader,
        on: &mut dyn FnMut(Event),
    ) -> Result<(), EngineError> {
        let Reply::Tokens(sampled) = leader.collect()? else { unreachable!("tokens were asked for") };
        leader.enter(Part::Scheduler);
        self.fill.collected();
        self.count(&flight, leader.worked());
        self.take(flight, sampled, on)?;
        leader.leave();
        Ok(())
    }

    /// What came of a step's rows of logits means this for its requests.
    fn take(
        &mut self,
        flight: Flight,
        sampled: Vec<Sampled>,
        on: &mut dyn FnMut(Event),
    ) -> Result<(), EngineError> {
        let mut outputs = Vec::with_capacity(sampled.len());
        let mut asked = flight.asks.iter().zip(sampled).peekable();
        while let Some((ask, sampled)) = asked.next() {
            let AskOf { id, is_of_prompt } = *ask;
            let running = self.running.get_mut(&id);
            if is_of_prompt {
                let mut logprobs = Vec::from([sampled.logprobs]);
                while let Some((_, more)) = asked.next_if(|(next, _)| *next == ask) {
                    logprobs.push(more.logprobs);
                }
                if running.is_some() {
                    on(Event::Prompt { id, logprobs });
                }
                continue;
            }
            let token = sampled.token;
            let Some(running) = running else {
                outputs.push((id, token, true)); // it was aborted on the way
                continue;
            };
            // Without a mask anything was chosen.
            let taken = match running.failure() {
                Some(why) => Err(why.clone()),
                None => running.take(token),
            };
            let is_last = !matches!(taken, Ok(None));
            outputs.push((id, token, is_last));
            match taken {
                Ok(end) => {
                    self.load.generation_tokens += 1;
                    on(Event::Token { id, token, logprobs: sampled.logprobs, end });
                }
                Err(why) => {
                    let message = format!("the completion can't be held to its grammar: {why}");
                    on(Event::Refused { id, message });
                }
            }
            match is_last {
                true => drop(self.running.remove(&id)),
                false => self.masks.begin(id, running)?,
            }
        }
        if flight.samples() {
            let lane = &mut self.lanes[flight.lane];
            lane.sampling = false;
            lane.scheduler.complete(&flight.batch, &outputs);
        }
        Ok(())
    }

    /// A step's time is that since the one before was collected: what overlaps counts once.
    fn count(&mut self, flight: &Flight, worked: Duration) {
        let now = Instant::now();
        if let Some(before) = self.collected.filter(|_| self.prepared.stages == 1) {
            let between = (now - before).saturating_sub(worked.saturating_sub(self.worked));
            self.load.between_steps_s += between.as_secs_f64();
        }
        self.worked = worked;
        let since = self.collected.map_or(flight.issued, |before| before.max(flight.issued));
        self.collected = Some(now);
        let (seconds, decoded) = ((now - since).as_secs_f64(), flight.sampled());
        if decoded > 0 && self.timing.time_to_first_token.is_zero() {
            self.timing.time_to_first_token = self.began.map_or(Duration::ZERO, |began| now - began);
        }
        let (count, sum) = match flight.prompt_rows {
            0 => (decoded, &mut self.timing.decode),
            n => (n, &mut self.timing.prefill),
        };
        *sum = (sum.0 + count, sum.1 + seconds);
        let rows = flight.batch.num_tokens();
        self.budget.observe(flight.batch.num_decoding, flight.prompt_rows, seconds);
        self.load.steps += 1;
        self.load.last_step_tokens = rows;
        self.load.last_step_s = seconds;
        self.load.prompt_tokens += flight.prompt_rows as u64;
    }
}
