//! One replica at work on many requests: steps are issued as long as the pipeline has room for more, and their tokens
//! collected in order.
//!
//! A replica of one stage has one *lane*: a scheduler with its KV blocks. A pipeline has as many lanes as stages, and
//! requests are spread over them: while one lane's step is in the second stage, the next lane's is in the first. Chunks
//! of a prompt follow each other without waiting, for nothing is sampled from them.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use scheduler::{Batch, Request, Scheduler, SchedulerConfig};
use serde::{Deserialize, Serialize};
use tensor::{KV_BLOCK, Part, SequenceSpan, StepMeta};

use crate::EngineError;
use crate::bubble::Fill;
use crate::leader::Leader;
use crate::plan::context_parallel;
use crate::request::{FinishReason, GenerateRequest, Timing};
use crate::sampling::{Ask, History, Sampled};
use crate::worker::{Command, Reply};

/// What a replica is set up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepare {
    pub lanes: usize,
    pub blocks_per_lane: usize,
    /// Over all lanes.
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    /// Stages of the pipeline.
    pub stages: usize,
    /// Ranks that share KV blocks by position.
    pub context: usize,
}

/// A token that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenEvent {
    pub id: u64,
    pub token: u32,
    /// Why the request ended with it, if it did.
    pub end: Option<FinishReason>,
}

/// The requests that one replica works on.
#[derive(Default)]
pub(crate) struct Replica {
    prepared: Prepare,
    lanes: Vec<Lane>,
    flight: VecDeque<Flight>,
    running: BTreeMap<u64, Running>,
    next_lane: usize,
    pub timing: Timing,
    /// Steps since [`Replica::prepare`].
    pub fill: Fill,
    began: Option<Instant>,
    collected: Option<Instant>,
}

struct Lane {
    scheduler: Scheduler,
    first_block: u32,
    /// Whether a step of it samples and is not collected yet.
    sampling: bool,
}

/// A step that is on its way.
struct Flight {
    lane: usize,
    batch: Batch,
    issued: Instant,
    prompt_tokens: usize,
    samples: bool,
}

struct Running {
    request: GenerateRequest,
    generated: usize,
    history: History,
    lane: usize,
}

impl Running {
    /// Tokens still to be run.
    fn work(&self) -> usize {
        self.request.work() - self.generated.min(self.request.work())
    }
}

impl Replica {
    /// Makes the lanes anew. The KV cache must have room for all their blocks.
    pub fn prepare(&mut self, prepare: Prepare) {
        assert!(self.is_idle(), "a replica at work is not set up anew");
        let config = SchedulerConfig {
            context: context_parallel(prepare.context),
            num_blocks: prepare.blocks_per_lane,
            block_size: KV_BLOCK,
            max_num_seqs: prepare.max_num_seqs.div_ceil(prepare.lanes),
            max_num_batched_tokens: prepare.max_num_batched_tokens,
        };
        let lane = |i: usize| Lane {
            scheduler: Scheduler::new(config),
            first_block: (i * prepare.blocks_per_lane) as u32,
            sampling: false,
        };
        let lanes = (0..prepare.lanes).map(lane).collect();
        *self = Replica { prepared: prepare, lanes, began: Some(Instant::now()), ..Replica::default() };
    }

    /// Puts a request on the lane with the least work. `max_tokens` must fit the model's positions.
    pub fn submit(&mut self, id: u64, request: GenerateRequest) -> Result<(), EngineError> {
        let work = |lane: usize| -> usize {
            self.running.values().filter(|r| r.lane == lane).map(Running::work).sum()
        };
        let lane = (0..self.lanes.len()).min_by_key(|&lane| work(lane)).expect("a replica has a lane");
        let (prompt, max_tokens) = (request.prompt.clone(), request.max_tokens);
        self.lanes[lane].scheduler.add(Request { id, prompt, max_tokens })?;
        let history = History::new(&request);
        self.running.insert(id, Running { request, generated: 0, history, lane });
        Ok(())
    }

    /// Ends a request now, if it still runs.
    pub fn abort(&mut self, id: u64) {
        if let Some(running) = self.running.remove(&id) {
            self.lanes[running.lane].scheduler.abort(id);
        }
    }

    /// Whether nothing runs and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.flight.is_empty()
    }

    /// Issues the steps that there is room for, and collects the oldest.
    ///
    /// # Errors
    /// A rank fails.
    pub fn pump(&mut self, leader: &mut dyn Leader) -> Result<Vec<TokenEvent>, EngineError> {
        // Enough that no stage runs dry while a reply travels; a single stage does one step at a time.
        let room = if self.prepared.stages == 1 { 1 } else { 2 * self.prepared.stages };
        while self.flight.len() < room && self.issue_next(leader)? {}
        match self.flight.pop_front() {
            Some(flight) => self.collect(flight, leader),
            None => Ok(Vec::new()),
        }
    }

    /// Collects all steps that are on their way, and issues no more.
    ///
    /// # Errors
    /// A rank fails.
    pub fn settle(&mut self, leader: &mut dyn Leader) -> Result<Vec<TokenEvent>, EngineError> {
        let mut events = Vec::new();
        while let Some(flight) = self.flight.pop_front() {
            events.extend(self.collect(flight, leader)?);
        }
        Ok(events)
    }

    /// Issues a step of the next lane that has one; whether there was any.
    fn issue_next(&mut self, leader: &mut dyn Leader) -> Result<bool, EngineError> {
        for _ in 0..self.lanes.len() {
            let lane = self.next_lane;
            self.next_lane = (lane + 1) % self.lanes.len();
            if self.lanes[lane].sampling {
                continue;
            }
            leader.enter(Part::Scheduler);
            match self.lanes[lane].scheduler.schedule() {
                Some(batch) => return self.issue(lane, batch, leader).map(|()| true),
                None => leader.leave(),
            }
        }
        Ok(false)
    }

    /// Ends the leader's part with the step's command.
    fn issue(&mut self, lane: usize, batch: Batch, leader: &mut dyn Leader) -> Result<(), EngineError> {
        let mut meta = StepMeta::default();
        let (mut edits, mut asks) = (Vec::new(), Vec::new());
        let mut prompt_tokens = 0;
        for item in &batch.items {
            let first = meta.tokens.len();
            meta.tokens.extend_from_slice(&item.tokens);
            let rows = first..meta.tokens.len();
            let Running { request, history, .. } = &self.running[&item.id];
            if item.start < request.prompt.len() {
                prompt_tokens += rows.len();
            }
            if item.samples {
                meta.logit_rows.push(rows.end as u32 - 1);
                let position = item.start + rows.len();
                edits.extend(history.edits(request, asks.len(), None));
                let choice = request.sampling.choice(position);
                asks.push(Ask::Sample { choice, logprobs: request.logprobs });
            }
            let first_block = self.lanes[lane].first_block;
            let block_table = item.block_table.iter().map(|block| block + first_block).collect();
            meta.sequences.push(SequenceSpan { rows, start: item.start, block_table });
        }
        let samples = !asks.is_empty();
        leader.leave();
        let issued = Instant::now();
        leader.issue(&Command::Generate { copies: Vec::new(), meta, edits, asks })?;
        self.fill.issued(prompt_tokens > 0);
        let lane_of = &mut self.lanes[lane];
        match samples {
            true => lane_of.sampling = true,
            // Nothing comes of it that the next chunk would need to know.
            false => drop(lane_of.scheduler.complete(&batch, &[])),
        }
        self.flight.push_back(Flight { lane, batch, issued, prompt_tokens, samples });
        Ok(())
    }

    fn collect(&mut self, flight: Flight, leader: &mut dyn Leader) -> Result<Vec<TokenEvent>, EngineError> {
        let Reply::Tokens(sampled) = leader.collect()? else { unreachable!("tokens were asked for") };
        self.fill.collected();
        self.count(&flight, sampled.len());
        leader.enter(Part::Scheduler);
        let events = self.take(flight, sampled);
        leader.leave();
        Ok(events)
    }

    /// What tokens mean for their requests.
    fn take(&mut self, flight: Flight, sampled: Vec<Sampled>) -> Vec<TokenEvent> {
        if !flight.samples {
            return Vec::new();
        }
        let sampling = flight.batch.items.iter().filter(|item| item.samples);
        let mut events = Vec::with_capacity(sampled.len());
        let mut outputs = Vec::with_capacity(sampled.len());
        for (item, Sampled { token, .. }) in sampling.zip(sampled) {
            let id = item.id;
            let Some(running) = self.running.get_mut(&id) else {
                outputs.push((id, token, true)); // it was aborted on the way
                continue;
            };
            running.generated += 1;
            running.history.add(&running.request, token);
            let stop = running.request.stop_token_ids.contains(&token);
            let end = match stop {
                true => Some(FinishReason::Stop),
                false => (running.generated == running.request.max_tokens).then_some(FinishReason::Length),
            };
            outputs.push((id, token, stop));
            events.push(TokenEvent { id, token, end });
        }
        self.lanes[flight.lane].sampling = false;
        self.lanes[flight.lane].scheduler.complete(&flight.batch, &outputs);
        for event in events.iter().filter(|event| event.end.is_some()) {
            self.running.remove(&event.id);
        }
        events
    }

    /// A step's time is that since the one before was collected: what overlaps counts once.
    fn count(&mut self, flight: &Flight, tokens: usize) {
        let now = Instant::now();
        let since = self.collected.map_or(flight.issued, |before| before.max(flight.issued));
        self.collected = Some(now);
        if tokens > 0 && self.timing.time_to_first_token.is_zero() {
            self.timing.time_to_first_token = self.began.map_or(Duration::ZERO, |began| now - began);
        }
        let (count, sum) = match flight.prompt_tokens {
            0 => (tokens, &mut self.timing.decode),
            n => (n, &mut self.timing.prefill),
        };
        *sum = (sum.0 + count, sum.1 + (now - since).as_secs_f64());
    }
}
