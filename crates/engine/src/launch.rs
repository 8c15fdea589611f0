//! Starting ranks: each a thread with a device of its own, or the one rank of this process in a job of several.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use checkpoint::WeightSource;
use collective::{CollectiveError, Group, SharedConfig};
use model::{Decoder, KeptAs, Layout, Loader, ModelError, Stage};
use tensor::{Device, DeviceError, KvDType, Part};

use crate::data_parallel;
use crate::groups::{self, Grouping, RankDevice, RankGroups};
use crate::leader::{Leader, Leading, guarded};
use crate::pulse::RankPulse;
use crate::report::RankReport;
use crate::trace::RankTrace;
use crate::worker::{Command, LateEdits, Reply, Worker};
use crate::{EngineError, Grammars, Plan, cpus};

/// How long the threads of a group that ends are waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What ranks are started with.
pub(crate) struct LaunchOptions {
    pub kept: KeptAs,
    pub kv_dtype: KvDType,
    pub comm_timeout: Duration,
    pub spin: Duration,
    pub host: String,
    pub grammars: Option<Arc<Grammars>>,
}

/// Makes a rank's device, on the rank's own thread.
pub(crate) trait MakeDevice: Send + Sync {
    type Device: RankDevice;
    /// # Errors
    /// There is none for this rank, or it can't be used.
    fn make(&self, rank: usize) -> Result<Self::Device, DeviceError>;
}

/// What ranks are made of.
pub(crate) struct Setup<M> {
    pub grouping: Grouping,
    pub layout: Layout,
    pub stages: Vec<Stage>,
    pub source: WeightSource,
    pub options: LaunchOptions,
    pub make: M,
    pub loaded_bytes: AtomicU64,
    /// What ranks had recorded when they failed, if their leader is a thread of this process too.
    pub left: Option<Left>,
}

impl<M> Setup<M> {
    /// What is where.
    pub fn plan(&self) -> Plan {
        Plan { mesh: self.grouping.mesh, layout: self.layout.clone(), stages: self.stages.clone() }
    }
}

/// Traces that nobody could ask for any more.
pub(crate) type Left = Arc<Mutex<Vec<RankTrace>>>;

/// Rank 0 in the caller's thread, the others in theirs.
pub(crate) struct Ranks<D: RankDevice> {
    leading: Leading<D>,
    others: Vec<JoinHandle<Result<(), EngineError>>>,
    left: Left,
}

/// Loads a model over the threads of this process. `progress` gets the bytes that all ranks have loaded so far.
///
/// # Errors
/// The first rank that failed ends the others, and its error is returned.
pub(crate) fn launch<M: MakeDevice + 'static>(
    setup: Setup<M>,
    progress: &dyn Fn(u64),
) -> Result<Ranks<M::Device>, EngineError> {
    let LaunchOptions { comm_timeout, spin, .. } = setup.options;
    let config = SharedConfig { deadline: comm_timeout, spin, ..Default::default() };
    let setup = Arc::new(setup);
    let (own, others) = cpus::on_all(|| -> Result<_, EngineError> {
        let mut groups = groups::of_threads(setup.grouping, &config).into_iter();
        let own = groups.next().expect("there is a rank");
        let mut others = Vec::new();
        for (groups, rank) in groups.zip(1..) {
            let setup = setup.clone();
            let body = move || live(&setup, groups);
            let spawned = std::thread::Builder::new().name(format!("rank {rank}")).spawn(body);
            others.push(spawned.map_err(|e| EngineError::Spawn { rank, message: e.to_string() })?);
        }
        Ok((own, others))
    })?;
    match guarded(0, || load(&setup, own, progress)) {
        Ok(worker) => {
            Ok(Ranks { leading: Leading::new(worker), others, left: setup.left.clone().unwrap_or_default() })
        }
        Err(error) => Err(root_cause(error, others)),
    }
}

/// Rank 0 of a job whose other ranks are processes of their own.
pub(crate) fn lead<M: MakeDevice>(
    setup: &Setup<M>,
    groups: RankGroups<M::Device>,
    progress: &dyn Fn(u64),
) -> Result<Ranks<M::Device>, EngineError> {
    let worker = guarded(groups.rank, || load(setup, groups, progress))?;
    Ok(Ranks { leading: Leading::new(worker), others: Vec::new(), left: Left::default() })
}

/// The life of a rank other than 0.
pub(crate) fn live<M: MakeDevice>(
    setup: &Setup<M>,
    groups: RankGroups<M::Device>,
) -> Result<(), EngineError> {
    let rank = groups.rank;
    let mut worker = guarded(rank, || load(setup, groups, &|_| {}))?;
    if worker.groups.leads() {
        let mut leading = Leading::new(worker);
        let served = data_parallel::serve(&mut leading, setup.options.grammars.clone())
            .and_then(|()| leading.issue(&Command::Stop));
        return served.inspect_err(|error| leave_trace(setup, &mut leading.worker, error));
    }
    let followed = guarded(rank, || worker.follow().inspect_err(|error| worker.groups.fail(error)));
    followed.inspect_err(|error| leave_trace(setup, &mut worker, error))
}

/// A rank that has failed leaves what it recorded.
fn leave_trace<M: MakeDevice>(setup: &Setup<M>, worker: &mut Worker<M::Device>, error: &EngineError) {
    // Where there is no room for more steps, those before are still there.
    let has_recorded = worker.dev.is_recording() || !worker.spent.recorded.is_empty();
    let Some(left) = setup.left.as_ref().filter(|_| has_recorded) else { return };
    // Nobody should have to wait for it: of a panic the others don't know yet.
    worker.groups.fail_with(&error.to_string());
    if let Ok(trace) = guarded(worker.groups.rank, || worker.take_trace()) {
        left.lock().unwrap_or_else(PoisonError::into_inner).push(trace);
    }
}

/// Loads a rank's part and waits for the others'. Who fails tells the others, who then stop loading.
fn load<M: MakeDevice>(
    setup: &Setup<M>,
    groups: RankGroups<M::Device>,
    progress: &dyn Fn(u64),
) -> Result<Worker<M::Device>, ModelError> {
    if groups.leads() {
        warm_up(setup.options.grammars.as_ref());
    }
    let dev =
        setup.make.make(groups.rank).map_err(ModelError::from).inspect_err(|error| groups.fail(error))?;
    let (decoder, loaded) = {
        let count = |bytes: u64| {
            progress(setup.loaded_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes);
            groups.check().map_err(ModelError::from)
        };
        let loader =
            Loader::new(&dev, &setup.source, &setup.layout, groups.at.tp, setup.options.kept, &count);
        let decoder = Decoder::load(&loader, &setup.stages[groups.at.pp]);
        let decoder = decoder.and_then(|decoder| {
            // What a device met while it loaded, too little memory, say, shows where something is read.
            dev.download(&dev.alloc(1, 1))?;
            Ok(decoder)
        });
        (decoder.inspect_err(|error| groups.fail(error))?, loader.stats())
    };
    let long_ways = groups.prepare(&dev).map_err(ModelError::from).inspect_err(|error| groups.fail(error))?;
    let LaunchOptions { kept, kv_dtype, comm_timeout, ref host, .. } = setup.options;
    let kept = KeptAs { dtype: kept.dtype.or(Some(setup.source.dtype())), ..kept };
    let slowed =
        dev.slowed_by(kept.of_layers(&setup.layout, setup.source.dtype())).filter(|_| groups.rank == 0);
    long_ways.iter().chain(&slowed).for_each(|line| job::say!("warning: {line}"));
    let host = host.clone();
    Ok(Worker {
        dev,
        groups,
        decoder,
        loaded,
        kept,
        kv_dtype,
        comm_timeout,
        host,
        kv: None,
        spent: Default::default(),
    })
}

/// Sorts the vocabulary while the weights load, so that the first request with a grammar needn't wait for it.
fn warm_up(grammars: Option<&Arc<Grammars>>) {
    if let Some(grammars) = grammars.cloned() {
        let work = move || grammars.warm_up();
        // Without the thread that request waits.
        drop(cpus::on_all(|| std::thread::Builder::new().name("vocabulary".into()).spawn(work)));
    }
}

/// Of all ranks' errors the one that isn't about another rank.
fn root_cause(own: EngineError, others: Vec<JoinHandle<Result<(), EngineError>>>) -> EngineError {
    let theirs = ended(others).into_iter().filter_map(|thread| thread.join().ok().and_then(Result::err));
    let mut all = std::iter::once(own).chain(theirs).collect::<Vec<_>>();
    let cause = all.iter().position(|e| !e.is_of_another()).unwrap_or(0);
    all.swap_remove(cause)
}

/// The threads that end within [`PATIENCE`], which those of a failed group do unless they are stuck. The others are
/// left to themselves: nobody can end a thread, but nobody has to wait for it either.
fn ended<T>(mut threads: Vec<JoinHandle<T>>) -> Vec<JoinHandle<T>> {
    let deadline = Instant::now() + PATIENCE;
    while threads.iter().any(|t| !t.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    threads.retain(JoinHandle::is_finished);
    threads
}

impl<D: RankDevice> Ranks<D> {
    /// Replaces a consequence by its cause.
    fn explained<T>(&mut self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        result.map_err(|error| root_cause(error, std::mem::take(&mut self.others)))
    }
}

impl<D: RankDevice> Leader for Ranks<D> {
    fn issue_step(&mut self, command: &Command, late: &mut dyn LateEdits) -> Result<(), EngineError> {
        let result = self.leading.issue_step(command, late);
        self.explained(result)
    }

    fn collect(&mut self) -> Result<Reply, EngineError> {
        let result = self.leading.collect();
        self.explained(result)
    }

    fn reports(&mut self) -> Result<Vec<RankReport>, EngineError> {
        let result = self.leading.reports();
        self.explained(result)
    }

    fn pulses(&mut self) -> Result<Vec<RankPulse>, EngineError> {
        let result = self.leading.pulses();
        self.explained(result)
    }

    fn traces(&mut self, traces: &mut Vec<RankTrace>, deadline: Option<Duration>) -> Result<(), EngineError> {
        let result = self.leading.traces(traces, deadline);
        let result = self.explained(result);
        traces.append(&mut self.left.lock().unwrap_or_else(PoisonError::into_inner));
        result
    }

    fn worked(&self) -> Duration {
        self.leading.worked()
    }

    fn enter(&self, part: Part) {
        self.leading.enter(part);
    }

    fn leave(&self) {
        self.leading.leave();
    }

    fn between_replicas(
        &mut self,
        work: &mut dyn FnMut(&dyn Group) -> Result<(), CollectiveError>,
    ) -> Result<(), EngineError> {
        let result = self.leading.between_replicas(work);
        self.explained(result)
    }
}

impl<D: RankDevice> Drop for Ranks<D> {
    fn drop(&mut self) {
        // If these fail the others have ended, or will with the group.
        for replica in 1..self.leading.worker.groups.mesh.dp {
            let _ = data_parallel::send(&mut self.leading, replica, &data_parallel::ToReplica::Stop);
        }
        if self.leading.worker.groups.mesh.replica_size() > 1 {
            let _ = self.leading.issue(&Command::Stop);
        }
        for thread in ended(std::mem::take(&mut self.others)) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
