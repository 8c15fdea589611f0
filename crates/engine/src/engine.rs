//! A model that runs: requests in, tokens out.

use std::time::{Duration, Instant};

use checkpoint::WeightSource;
use cuda::Reduction;
use job::Job;
use model::{KeptAs, ModelConfig, bytes_per_token};
use tensor::{DType, KvDType};

use crate::bubble::Bubble;
use crate::cpu_ranks::MakeCpu;
use crate::cuda_ranks::MakeCuda;
use crate::dispatch::Dispatch;
use crate::groups::{self, OfGpus};
use crate::launch;
use crate::leader::Leader;
use crate::peers::Peers;
use crate::places::{Needs, Place};
use crate::prepared::{Machine, Planned, Prepared, Settings};
use crate::replica::Replica;
use crate::savings::Savings;
use crate::serving::Event;
use crate::trace::{RankTrace, Recording};
use crate::worker::Command;
use crate::{DeviceKind, EngineError, EngineOptions, Plan, RankPulse, RankReport, Timing};

/// A loaded model and its ranks. Belongs to the thread that made it, which is rank 0's.
pub struct Engine {
    pub(crate) leader: Box<dyn Leader>,
    pub(crate) plan: Plan,
    kept: KeptAs,
    pub(crate) kv_dtype: KvDType,
    /// Of all ranks of one replica.
    pub(crate) kv_bytes_per_token: u64,
    threads_per_rank: usize,
    /// Ranks on this host.
    pub(crate) ranks_here: usize,
    /// GPUs that they have.
    pub(crate) gpus: usize,
    /// Where they have their memory.
    pub(crate) places: Vec<Place>,
    pub(crate) needs: Needs,
    /// Whether that was measured, and is no estimate any more.
    pub(crate) is_profiled: bool,
    /// Why ranks are the processor's where GPUs were to be used if they can.
    not_on_gpus: Option<String>,
    reduction: Reduction,
    pub(crate) memory_share: Option<f64>,
    pub(crate) max_model_len: usize,
    full_model_len: usize,
    pub(crate) max_num_seqs: usize,
    pub(crate) max_num_batched_tokens: usize,
    /// In every replica's cache.
    pub(crate) blocks: usize,
    /// Of all replicas, since [`Engine::open`].
    pub(crate) kv_cache_tokens: usize,
    pub(crate) kv_cache_warnings: Vec<String>,
    load: Duration,
    pub(crate) replica: Replica,
    pub(crate) dispatch: Dispatch,
    pub(crate) peers: Peers,
    /// What was told while something else was waited for.
    pub(crate) unheard: Vec<Event>,
    pub(crate) timing: Timing,
    pub(crate) bubble: Option<Bubble>,
    /// Requests so far: the next one's id.
    pub(crate) requests: u64,
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
        let on_cpu = |config, source| Engine::load_on::<MakeCpu>(config, source, options, progress);
        match options.device {
            DeviceKind::Cpu => on_cpu(config, source),
            DeviceKind::Cuda => Engine::load_on::<MakeCuda>(config, source, options, progress),
            DeviceKind::Auto if cuda::usable().is_err() => on_cpu(config, source),
            DeviceKind::Auto => {
                let started = Instant::now();
                match Planned::<MakeCuda>::new(config.clone(), &source, options, None) {
                    Ok(planned) => Engine::load_planned(planned, source, options, progress, started),
                    Err(EngineError::NotOnGpus { why, .. }) => {
                        let engine = on_cpu(config, source).map_err(|error| nor_on_cpu(&why, error))?;
                        Ok(Engine { not_on_gpus: Some(why), ..engine })
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// The same, on hardware that is known.
    pub(crate) fn load_on<M: Machine + 'static>(
        config: ModelConfig,
        source: WeightSource,
        options: &EngineOptions,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Engine, EngineError> {
        let started = Instant::now();
        let planned = Planned::<M>::new(config, &source, options, None)?;
        Engine::load_planned(planned, source, options, progress, started)
    }

    fn load_planned<M: Machine + 'static>(
        planned: Planned<M>,
        source: WeightSource,
        options: &EngineOptions,
        progress: &dyn Fn(u64, u64),
        started: Instant,
    ) -> Result<Engine, EngineError> {
        let Prepared::<M> { setup, settings, total } = planned.with(source, options, None);
        let plan = setup.plan();
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
        let on_cpu = |config, source: WeightSource| {
            let planned = Planned::<MakeCpu>::new(config, &source, options, Some(job))?;
            Engine::join_planned(planned, source, options, job, progress, started)
        };
        if options.device == DeviceKind::Cpu {
            return on_cpu(config, source);
        }
        let plan = || Planned::<MakeCuda>::new(config.clone(), &source, options, Some(job));
        if options.device == DeviceKind::Cuda {
            return Engine::join_planned(plan()?, source, options, job, progress, started);
        }
        // What is auto is the same for all: one that has no GPU, or none with room, takes the others along.
        let agreement = groups::Agreement::new(job, options.comm_timeout)?;
        let found = agreement.told(&cuda::usable().ok().map(|_| Ok(())))?;
        if found.iter().all(|(_, of_gpus)| of_gpus.is_none()) {
            return on_cpu(config, source);
        }
        let on_cpu_because = |(rank, of_gpus): (usize, OfGpus), config, source| {
            let why = match of_gpus {
                Some(Err(why)) => format!("rank {rank}: {why}"),
                _ => format!("rank {rank} finds no NVIDIA GPU that it can use"),
            };
            let engine = on_cpu(config, source).map_err(|error| nor_on_cpu(&why, error))?;
            Ok(engine.map(|engine| Engine { not_on_gpus: Some(why), ..engine }))
        };
        let is_refusal = |(_, of_gpus): &(usize, OfGpus)| *of_gpus != Some(Ok(()));
        if let Some(refused) = found.into_iter().find(is_refusal) {
            return on_cpu_because(refused, config, source);
        }
        let planned = match plan() {
            Err(EngineError::NotOnGpus { why, .. }) => Err(why),
            planned => Ok(planned?),
        };
        let own = planned.as_ref().map(drop).map_err(String::clone);
        if let Some(refused) = agreement.told(&Some(own))?.into_iter().find(is_refusal) {
            // A GPU that is not used keeps nothing.
            drop(planned);
            return on_cpu_because(refused, config, source);
        }
        let planned = planned.expect("all ranks have a GPU with room");
        Engine::join_planned(planned, source, options, job, progress, started)
    }

    fn join_planned<M: Machine>(
        planned: Planned<M>,
        source: WeightSource,
        options: &EngineOptions,
        job: &Job,
        progress: &dyn Fn(u64, u64),
        started: Instant,
    ) -> Result<Option<Engine>, EngineError> {
        let Prepared::<M> { setup, settings, total } = planned.with(source, options, Some(job));
        let plan = setup.plan();
        let groups = groups::of_job(setup.grouping, job, options.comm_timeout)?;
        if job.rank() > 0 {
            return launch::live(&setup, groups).map(|()| None);
        }
        let leader = launch::lead(&setup, groups, &|bytes| progress(bytes, total))?;
        let mut engine = Engine::with(Box::new(leader), plan, settings, options, started.elapsed());
        engine.see_other_gpus()?;
        Ok(Some(engine))
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
        let dp = plan.mesh.dp;
        Engine {
            leader,
            kv_bytes_per_token: plan.stages.iter().map(of_stage).sum(),
            plan,
            kept: settings.kept,
            kv_dtype: settings.kv_dtype,
            threads_per_rank: settings.threads,
            ranks_here: settings.ranks_here,
            gpus: settings.gpus,
            // With the weights of all ranks there, and nothing else yet.
            places: settings.places.into_iter().map(Place::measured).collect(),
            needs: settings.needs,
            is_profiled: false,
            not_on_gpus: None,
            reduction: options.reduction,
            memory_share: options.memory_share,
            max_model_len: settings.max_model_len,
            full_model_len: settings.max_model_len,
            max_num_seqs: options.max_num_seqs.max(1),
            max_num_batched_tokens: options.max_num_batched_tokens.max(1),
            blocks: 0,
            kv_cache_tokens: 0,
            kv_cache_warnings: Vec::new(),
            load,
            replica: Replica::new(options.grammars.clone()),
            dispatch: Dispatch::new(dp),
            unheard: Vec::new(),
            peers: Peers::new(dp),
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

    /// Whether ranks are GPUs.
    pub fn is_on_gpus(&self) -> bool {
        self.places.iter().any(Place::is_gpu)
    }

    /// Why ranks are the processor's though there are GPUs, where [`DeviceKind::Auto`] left the choice open.
    pub fn not_on_gpus(&self) -> Option<&str> {
        self.not_on_gpus.as_deref()
    }

    /// In which order sums are made: the processor has one only.
    pub fn reduction(&self) -> Reduction {
        if self.is_on_gpus() { self.reduction } else { Reduction::Canonical }
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

    /// Longest sequence that there would be if the KV cache had room.
    pub fn full_model_len(&self) -> usize {
        self.full_model_len
    }

    /// Sequences that run at a time on each replica.
    pub fn max_num_seqs(&self) -> usize {
        self.max_num_seqs
    }

    /// Tokens that the KV caches of all replicas hold, since [`Engine::open`].
    pub fn kv_cache_tokens(&self) -> usize {
        self.kv_cache_tokens
    }

    /// In what the KV cache is other than one may have wanted, since [`Engine::open`]. One line each.
    pub fn kv_cache_warnings(&self) -> &[String] {
        &self.kv_cache_warnings
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

    pub(crate) fn is_stopped(&self) -> bool {
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
        // Steps may be on their way, whose replies come first.
        self.replica.settle(&mut *self.leader, &mut |event| self.unheard.push(event))?;
        let mut reports = self.leader.reports()?;
        for replica in 1..self.plan.mesh.dp {
            reports.extend(self.reports_of(replica)?.0);
        }
        Ok(reports)
    }

    /// Asks what each rank of all replicas has done since it was loaded. [`Engine::take_pulses`] has it once all have
    /// answered: other replicas do so between two of their steps.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn ask_for_pulses(&mut self) -> Result<(), EngineError> {
        let own = self.leader.pulses()?;
        self.peers.ask_for_pulses(&mut *self.leader, own)
    }

    /// What was asked for, once.
    pub fn take_pulses(&mut self) -> Option<Vec<RankPulse>> {
        self.peers.take_pulses()
    }

    pub(crate) fn reports_of(&mut self, replica: usize) -> Result<(Vec<RankReport>, Timing), EngineError> {
        self.peers.report(&mut *self.leader, replica, &mut |event| self.unheard.push(event))
    }

    /// The tokens of each step of any replica since the last call.
    pub fn take_steps(&mut self) -> Vec<usize> {
        self.peers.take_steps()
    }
}

/// What was in the way on GPUs, and then on the processor.
fn nor_on_cpu(why: &str, error: EngineError) -> EngineError {
    match error {
        EngineError::Request(nor) => EngineError::Request(format!("{why}; nor on the processor: {nor}")),
        other => other,
    }
}
