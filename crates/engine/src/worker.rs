//! One rank at work: it holds its part of the model and does what its replica's leader says.
//!
//! A command goes from the leader to the ranks of the first stage, and from each rank to the same place of the next
//! stage, ahead of the activations: so stages work on different commands at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use collective::{Collective, CollectiveStats, Group};
use model::{
    Calls, Decoder, KeptAs, KvCache, LoadStats, ModelError, Pipeline, Rank, bytes_per_token,
    replicated_bytes_per_token,
};
use serde::{Deserialize, Serialize};
use tensor::{Device, Exchanged, KvDType, LogitEdit, OpCost, Part, StepMeta};

use crate::clocks::ClockOffset;
use crate::cost::StepCosts;
use crate::groups::RankGroups;
use crate::memory;
use crate::pulse::RankPulse;
use crate::report::{GpuRoom, RankReport, StepReport, difference};
use crate::sampler::answer;
use crate::sampling::{Ask, Sampled};
use crate::steps::{Asked, StepTime, Steps};

/// What all ranks do next.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Makes a KV cache of this many blocks, in place of the one before.
    AllocateKv { blocks: usize },
    /// Copies KV blocks, from the first of each pair to the second, runs a step and answers what is asked of each of its
    /// logit rows. Rows of `edits` are numbers of asks; `None`: they follow when the forward pass is done.
    Generate { copies: Vec<(u32, u32)>, meta: StepMeta, edits: Option<Vec<LogitEdit>>, asks: Vec<Ask> },
    /// Begins to count the time at work anew.
    Mark,
    /// Measures an all-reduce of one row in each tensor-parallel group.
    TimeAllReduce,
    /// Compares the clocks of all ranks of the replica with the leader's, and begins to record what they do.
    Record,
    /// Tells the leader what was recorded.
    Trace,
    /// Tells the leader what each rank holds and has spent.
    Report,
    /// Tells the leader what each rank has done since it was loaded. Steps may be on their way.
    Pulse,
    /// Ends.
    Stop,
}

impl Command {
    /// Runs a step and takes the log-probability of one id for each of its logit rows.
    pub fn score(meta: StepMeta, targets: &[u32]) -> Self {
        let asks = targets.iter().map(|&target| Ask::Score { target, top: 0 }).collect();
        Command::Generate { copies: Vec::new(), meta, edits: Some(Vec::new()), asks }
    }
}

/// The edits of a step whose command doesn't have them.
pub(crate) trait LateEdits {
    /// Waits until they can be made.
    fn wait(&mut self);
    /// Makes them.
    fn make(&mut self) -> Vec<LogitEdit>;
}

/// None, and so nothing to wait for.
pub(crate) struct NoEdits;

impl LateEdits for NoEdits {
    fn wait(&mut self) {}

    fn make(&mut self) -> Vec<LogitEdit> {
        Vec::new()
    }
}

/// What a rank tells its leader.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// What a step came to, one for each ask in order.
    Tokens(Vec<Sampled>),
    /// What a rank has done.
    Pulse(RankPulse),
}

/// A rank: device, place in the groups, part of the model.
pub(crate) struct Worker<D: Device> {
    pub dev: D,
    pub groups: RankGroups<D>,
    pub decoder: Decoder<D>,
    pub loaded: LoadStats,
    /// What weights are kept in.
    pub kept: KeptAs,
    pub kv_dtype: KvDType,
    pub comm_timeout: Duration,
    pub host: String,
    pub kv: Option<KvCache<D>>,
    pub spent: Spent,
}

/// What a rank has spent.
#[derive(Default)]
pub(crate) struct Spent {
    /// On collectives of the tensor-parallel group, by the last forward pass and its choice.
    last: CollectiveStats,
    /// By the last forward pass alone.
    last_forward: CollectiveStats,
    /// To the next stage, by the last forward pass.
    handed_on: u64,
    /// At work since the last mark.
    busy: Duration,
    /// On the all-reduce of one row, if that was measured.
    row_all_reduce: Option<Duration>,
    /// By the steps since the last mark.
    steps: Steps,
    /// By all steps; the sums of a pulse.
    since_start: RankPulse,
    /// The steps that are recorded.
    pub recorded: Vec<(StepMeta, Asked)>,
    /// How far the clocks of the replica's ranks are from the leader's.
    pub clocks: Vec<ClockOffset>,
}

impl<D: Device> Worker<D> {
    /// Does what the leader says until it says stop. Waits for that as long as it takes.
    pub fn follow(&mut self) -> Result<(), ModelError> {
        let mut bytes = Vec::new();
        loop {
            self.dev.flush();
            self.dev.span(Part::Idle, || -> Result<(), ModelError> {
                match self.previous() {
                    None => self.groups.tensor.broadcast(&mut bytes, None)?,
                    Some(previous) => bytes = self.groups.replica().recv_bytes(previous, None)?,
                }
                Ok(())
            })?;
            let command = postcard::from_bytes(&bytes).expect("the leader writes what the others read");
            self.pass_on(&bytes)?;
            if matches!(command, Command::Stop) {
                return Ok(());
            }
            if let Some(reply) = self.run(&command, None)? {
                self.reply(&reply)?;
            }
        }
    }

    /// The leader: has all ranks of the replica do something, and does its own part. A step of a single stage ends
    /// with its reply.
    pub fn lead(&mut self, command: &Command) -> Result<Option<Reply>, ModelError> {
        self.lead_step(command, &mut NoEdits)
    }

    /// The same. `late` makes the step's edits if the command doesn't have them.
    pub fn lead_step(
        &mut self,
        command: &Command,
        late: &mut dyn LateEdits,
    ) -> Result<Option<Reply>, ModelError> {
        if self.groups.mesh.replica_size() > 1 {
            self.say(command, Part::Scheduler)?;
        }
        self.run(command, Some(late))
    }

    /// The leader: tells all ranks of the replica. Writing counts for `part`.
    fn say(&self, message: &impl Serialize, part: Part) -> Result<(), ModelError> {
        let written = || postcard::to_stdvec(message).expect("a message can be written");
        let mut bytes = self.dev.span(part, written);
        self.in_the_stage().broadcast(&mut bytes, Some(self.comm_timeout))?;
        self.pass_on(&bytes)
    }

    /// The edits of a step whose command didn't have them. Those that don't lead wait for them.
    fn late_edits(&self, late: Option<&mut dyn LateEdits>) -> Result<Vec<LogitEdit>, ModelError> {
        // The forward pass begins before anybody waits for them.
        self.dev.flush();
        if let Some(late) = late {
            let edits = self.dev.span(Part::Sampling, || {
                let since = Instant::now();
                late.wait();
                // Another thread works; this rank does nothing.
                let waited = Some((since, since.elapsed()));
                self.dev.exchanged(Exchanged { op: "edits", bytes: 0, waited });
                late.make()
            });
            if self.groups.mesh.replica_size() > 1 {
                self.say(&edits, Part::Sampling)?;
            }
            return Ok(edits);
        }
        let mut bytes = Vec::new();
        match self.previous() {
            None => self.in_the_stage().broadcast(&mut bytes, Some(self.comm_timeout))?,
            Some(previous) => {
                let receive = || self.groups.replica().recv_bytes(previous, Some(self.comm_timeout));
                bytes = self.dev.span(Part::Exchange, receive)?;
            }
        }
        self.pass_on(&bytes)?;
        Ok(postcard::from_bytes(&bytes).expect("the leader writes what the others read"))
    }

    /// The leader of several stages: the reply to the oldest step that has none yet.
    pub fn collect(&self) -> Result<Reply, ModelError> {
        let mesh = self.groups.mesh;
        let last_stage = (mesh.pp - 1) * mesh.tp;
        let bytes = self.dev.span(Part::Idle, || self.groups.replica().recv_bytes(last_stage, None))?;
        Ok(postcard::from_bytes(&bytes).expect("the last stage writes what the leader reads"))
    }

    /// The same place of the stage before, as a rank of the replica.
    fn previous(&self) -> Option<usize> {
        (self.groups.at.pp > 0).then(|| self.groups.in_replica() - self.groups.mesh.tp)
    }

    fn next(&self) -> Option<usize> {
        let mesh = self.groups.mesh;
        (self.groups.at.pp + 1 < mesh.pp).then(|| self.groups.in_replica() + mesh.tp)
    }

    fn pass_on(&self, command: &[u8]) -> Result<(), ModelError> {
        match self.next() {
            Some(next) => Ok(self.in_the_replica().send_bytes(command, next)?),
            None => Ok(()),
        }
    }

    fn in_the_stage(&self) -> Calls<'_, D> {
        Calls { dev: &self.dev, group: &self.groups.tensor, part: Part::Exchange }
    }

    fn in_the_replica(&self) -> Calls<'_, D> {
        Calls { dev: &self.dev, group: self.groups.replica(), part: Part::Exchange }
    }

    /// One rank of the last stage answers for all.
    fn reply(&self, reply: &Reply) -> Result<(), ModelError> {
        if self.groups.at.tp > 0 || self.groups.at.pp == 0 {
            return Ok(());
        }
        let bytes = postcard::to_stdvec(reply).expect("a reply can be written");
        Ok(self.in_the_replica().send_bytes(&bytes, 0)?)
    }

    fn run(
        &mut self,
        command: &Command,
        late: Option<&mut dyn LateEdits>,
    ) -> Result<Option<Reply>, ModelError> {
        self.carry_out(command, late).map_err(|error| match error {
            // Where devices exchange by themselves, a rank that is lost shows in what is read.
            ModelError::Device(_) => self.groups.check().err().map_or(error, ModelError::from),
            _ => error,
        })
    }

    fn carry_out(
        &mut self,
        command: &Command,
        late: Option<&mut dyn LateEdits>,
    ) -> Result<Option<Reply>, ModelError> {
        match command {
            Command::AllocateKv { blocks } => {
                self.kv = None;
                let (layout, stage) = (self.decoder.layout(), self.decoder.stage());
                self.kv =
                    Some(KvCache::new(&self.dev, layout, stage, self.groups.at.tp, *blocks, self.kv_dtype));
                // If there was no room for it, that shows where something is read.
                self.dev.download(&self.dev.alloc(1, 1))?;
            }
            Command::Generate { copies, meta, edits, asks } => {
                return self.step(meta, Asked::of(asks), |worker| {
                    let before = worker.groups.tensor.stats();
                    let hidden = worker.forward(copies, meta)?;
                    let followed = match edits {
                        Some(_) => Vec::new(),
                        None => worker.late_edits(late)?,
                    };
                    let edits = edits.as_ref().unwrap_or(&followed);
                    hidden.map(|hidden| worker.answer(&hidden, edits, asks, before)).transpose()
                });
            }
            Command::Mark => {
                self.spent.busy = Duration::ZERO;
                self.spent.steps = Steps::default();
                // What was between the last step and now.
                self.spent.since_start.count(&self.dev.take_part_times());
            }
            Command::Record => self.begin_trace()?,
            Command::Trace => self.send_trace()?,
            Command::TimeAllReduce => self.spent.row_all_reduce = Some(self.time_all_reduce()?),
            Command::Report if self.groups.leads() => {}
            Command::Report => {
                let bytes = postcard::to_stdvec(&self.report()?).expect("a report can be written");
                self.groups.replica().send_bytes(&bytes, 0)?;
            }
            Command::Pulse if self.groups.leads() => {}
            Command::Pulse => {
                let bytes = postcard::to_stdvec(&Reply::Pulse(self.pulse())).expect("a pulse can be written");
                self.groups.replica().send_bytes(&bytes, 0)?;
            }
            Command::Stop => {}
        }
        Ok(None)
    }

    /// The median time of an all-reduce as a step of one token makes them.
    fn time_all_reduce(&self) -> Result<Duration, ModelError> {
        const TIMES: usize = 21;
        let layout = self.decoder.layout();
        let plan = layout.split.heads.reduce_plan();
        let nodes = plan.nodes_of_rank[self.groups.at.tp];
        let mut times = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let zeros = vec![0.0; nodes * layout.config.hidden_size];
            let partial = self.dev.upload(&zeros, nodes, layout.config.hidden_size);
            let began = Instant::now();
            let sum = self.groups.tensor.all_reduce(&self.dev, partial, 1, &plan)?;
            // A device that only collects work has done it by then.
            self.dev.download(&sum)?;
            times.push(began.elapsed());
        }
        times.sort();
        Ok(times[TIMES / 2])
    }

    /// The leader: what all ranks of its replica hold and have spent.
    pub fn reports(&mut self) -> Result<Vec<RankReport>, ModelError> {
        self.lead(&Command::Report)?;
        let of_rank = |rank: usize| -> Result<RankReport, ModelError> {
            let bytes = self.groups.replica().recv_bytes(rank, None)?;
            Ok(postcard::from_bytes(&bytes).expect("a rank writes what the leader reads"))
        };
        let others = (1..self.groups.mesh.replica_size()).map(of_rank);
        std::iter::once(self.report()).chain(others).collect()
    }

    /// The leader: what each rank of its replica has done. Replies to steps that come before go to `replies`.
    pub fn pulses(&mut self, replies: &mut VecDeque<Reply>) -> Result<Vec<RankPulse>, ModelError> {
        self.lead(&Command::Pulse)?;
        let mut pulses = vec![self.pulse()];
        while pulses.len() < self.groups.mesh.replica_size() {
            let bytes = self.groups.replica().recv_bytes(pulses.len(), None)?;
            match postcard::from_bytes(&bytes).expect("a rank writes what the leader reads") {
                Reply::Pulse(pulse) => pulses.push(pulse),
                reply => replies.push_back(reply),
            }
        }
        Ok(pulses)
    }

    /// Hidden states of the rows whose logits are wanted, on the last stage.
    fn forward(&mut self, copies: &[(u32, u32)], meta: &StepMeta) -> Result<Option<D::Tensor>, ModelError> {
        let (before, sent) = (self.groups.tensor.stats(), self.groups.replica().stats().sent_bytes);
        let rank = Rank::new(&self.dev, &self.groups.tensor);
        let rank = match &self.groups.context {
            Some(context) => rank.in_context(context),
            None => rank,
        };
        let pipeline = Pipeline::new(self.groups.replica(), self.previous(), self.next());
        let kv = self.kv.as_mut().expect("a cache is made before the first step");
        let began = Instant::now();
        kv.copy_blocks(&self.dev, copies);
        let hidden = self.decoder.forward_stage(rank, &pipeline, meta, kv)?;
        self.spent.busy += began.elapsed() - pipeline.waited.get();
        self.spent.last_forward = difference(self.groups.tensor.stats(), before);
        self.spent.handed_on = self.groups.replica().stats().sent_bytes - sent;
        Ok(hidden)
    }

    /// A step, and what its parts took.
    fn step(
        &mut self,
        meta: &StepMeta,
        asked: Asked,
        work: impl FnOnce(&mut Self) -> Result<Option<Reply>, ModelError>,
    ) -> Result<Option<Reply>, ModelError> {
        self.dev.enter(Part::Step);
        if self.dev.is_recording() {
            self.spent.recorded.push((meta.clone(), asked));
        }
        let reply = work(self);
        // What other ranks read may wait for this rank's part, which may not have begun if this rank reads nothing.
        self.dev.flush();
        self.dev.leave();
        let parts = self.dev.take_part_times();
        // What it takes to note that counts for the next step.
        self.dev.enter(Part::Scheduler);
        self.spent.since_start.step(&parts);
        self.spent.steps.note(meta, asked, parts);
        self.dev.leave();
        reply
    }

    /// What comes of a step's logits. `before` is what the step began with.
    fn answer(
        &mut self,
        hidden: &D::Tensor,
        edits: &[LogitEdit],
        asks: &[Ask],
        before: CollectiveStats,
    ) -> Result<Reply, ModelError> {
        let began = Instant::now();
        let rank = Rank::new(&self.dev, &self.groups.tensor);
        let tokens = answer(rank, &self.decoder, hidden, edits, asks)?;
        self.spent.last = difference(self.groups.tensor.stats(), before);
        self.spent.busy += began.elapsed();
        Ok(Reply::Tokens(tokens))
    }

    fn report(&self) -> Result<RankReport, ModelError> {
        let memory = self.dev.memory();
        let Steps { prefill, decodes, decode_time, all_reduce, .. } = &self.spent.steps;
        let (layout, stage, at) = (self.decoder.layout(), self.decoder.stage(), self.groups.at);
        let attention = layout.attention(stage.layers.start, at.tp);
        Ok(RankReport {
            rank: self.groups.rank,
            place: (at.dp, at.pp, at.tp),
            host: self.host.clone(),
            device: self.dev.name(),
            layers: (stage.layers.start, stage.layers.end),
            query_heads: attention.num_heads,
            kv_heads: attention.num_kv_heads,
            weight_bytes: self.loaded.weight_bytes,
            packed_bytes: self.loaded.packed_bytes,
            kv_cache_bytes: self.kv.as_ref().map_or(0, KvCache::bytes),
            kv_bytes_per_token: bytes_per_token(layout, stage, at.tp, self.kv_dtype),
            kv_replicated_bytes_per_token: replicated_bytes_per_token(layout, stage, at.tp, self.kv_dtype),
            all_reduce_calls: self.spent.last_forward.all_reduce_calls,
            all_reduce_bytes: self.spent.last_forward.all_reduce_bytes,
            // Those of a GPU are under way when the host goes on: only their own clocks know.
            all_reduce_s: match memory.total {
                Some(_) => all_reduce.as_secs_f64(),
                None => self.groups.tensor.stats().all_reduce_s,
            },
            vocab_collective_calls: self.spent.last.other_calls,
            sent_bytes: self.spent.handed_on + self.spent.last_forward.sent_bytes,
            experts: self.decoder.take_expert_counts(&self.dev)?,
            busy_s: self.spent.busy.as_secs_f64(),
            row_all_reduce_s: self.spent.row_all_reduce.map(|time| time.as_secs_f64()),
            activation_bytes: memory.activations,
            scratch_bytes: memory.scratch,
            gpu: GpuRoom::of(&memory),
            peak_rss_bytes: memory::peak_rss_bytes(),
            prefill: prefill.as_ref().map(|step| self.breakdown(step)).transpose()?,
            decode: self.spent.steps.median_decode().map(|step| self.breakdown(step)).transpose()?,
            decode_steps: *decodes,
            decode_s: decode_time.as_secs_f64(),
        })
    }

    fn pulse(&self) -> RankPulse {
        let (memory, at) = (self.dev.memory(), self.groups.at);
        RankPulse {
            rank: self.groups.rank,
            place: (at.dp, at.pp, at.tp),
            host: self.host.clone(),
            weight_bytes: self.loaded.weight_bytes,
            kv_cache_bytes: self.kv.as_ref().map_or(0, KvCache::bytes),
            activation_bytes: memory.activations,
            scratch_bytes: memory.scratch,
            peak_rss_bytes: memory::peak_rss_bytes(),
            free_bytes: memory.free.or_else(memory::available_bytes),
            ..self.spent.since_start.clone()
        }
    }

    /// What the parts of a step took and cost.
    fn breakdown(&self, step: &StepTime) -> Result<StepReport, ModelError> {
        let mut costs = BTreeMap::<Part, OpCost>::new();
        self.costs().of(std::iter::once((&step.meta, step.asked)), |parts| {
            parts.iter().for_each(|part| *costs.entry(part.part).or_default() += part.cost);
        })?;
        Ok(StepReport::new(&step.parts, &costs, step.meta.num_rows()))
    }

    /// How long it was at forward passes and choices since the last mark.
    pub fn worked(&self) -> Duration {
        self.spent.busy
    }

    /// What steps cost this rank.
    pub fn costs(&self) -> StepCosts<'_> {
        StepCosts::new(
            self.decoder.layout(),
            self.decoder.stage(),
            self.groups.at.tp,
            self.kept,
            self.kv_dtype,
        )
    }
}

#[cfg(test)]
mod tests;
