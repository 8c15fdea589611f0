//! Starting the ranks of a group: each a thread with a device of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use checkpoint::WeightSource;
use collective::{Collective, CollectiveError, SharedConfig, SharedGroup, SharedRank, Solo};
use model::{Decoder, Layout, Loader, ModelError};
use tensor::{DType, HostDevice};

use crate::EngineError;
use crate::worker::{Command, Reply, Worker};

/// How long the threads of a group that ends are waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What ranks are started with.
pub(crate) struct LaunchOptions {
    pub weight_dtype: Option<DType>,
    pub kv_dtype: DType,
    pub comm_timeout: Duration,
    pub spin: Duration,
}

/// Makes a rank's device, on the rank's own thread.
pub(crate) trait MakeDevice: Send + Sync {
    type Device: HostDevice;
    fn make(&self, rank: usize) -> Self::Device;
}

/// What a launch shares between its ranks.
struct Shared<M> {
    layout: Layout,
    source: WeightSource,
    options: LaunchOptions,
    make: M,
    loaded_bytes: AtomicU64,
}

/// Rank 0 in the caller's thread, the others in theirs.
pub(crate) struct Ranks<D: HostDevice> {
    leader: Worker<D>,
    others: Vec<JoinHandle<Result<(), EngineError>>>,
}

/// Rank 0's side of a group, whatever its device.
pub(crate) trait Leader {
    /// Has all ranks do something.
    fn lead(&mut self, command: &Command) -> Result<Reply, EngineError>;
    /// How long rank 0 took for each kind of operation since the last call.
    fn take_op_times(&self) -> Vec<(&'static str, Duration)>;
}

/// Loads a model over its ranks. `progress` gets the bytes that all ranks have loaded so far.
///
/// # Errors
/// The first rank that failed ends the others, and its error is returned.
pub(crate) fn launch<M: MakeDevice + 'static>(
    layout: Layout,
    source: WeightSource,
    options: LaunchOptions,
    make: M,
    progress: &dyn Fn(u64),
) -> Result<Ranks<M::Device>, EngineError> {
    let ranks = layout.ranks();
    let config = SharedConfig { deadline: options.comm_timeout, spin: options.spin, ..Default::default() };
    let shared = Arc::new(Shared { layout, source, options, make, loaded_bytes: AtomicU64::new(0) });
    if ranks == 1 {
        let leader = guarded(0, || load(&shared, 0, Box::new(Solo::default()), progress))?;
        return Ok(Ranks { leader, others: Vec::new() });
    }
    let mut handles = SharedGroup::new(ranks, config).into_iter();
    let own = handles.next().expect("there are several ranks");
    let mut others = Vec::new();
    for (handle, rank) in handles.zip(1..) {
        let shared = shared.clone();
        let body = move || follow(&shared, rank, handle);
        let spawned = std::thread::Builder::new().name(format!("rank {rank}")).spawn(body);
        others.push(spawned.map_err(|e| EngineError::Spawn { rank, message: e.to_string() })?);
    }
    match guarded(0, || load(&shared, 0, Box::new(own), progress)) {
        Ok(leader) => Ok(Ranks { leader, others }),
        Err(error) => Err(root_cause(error, others)),
    }
}

/// The life of a rank other than 0.
fn follow<M: MakeDevice>(shared: &Shared<M>, rank: usize, group: SharedRank) -> Result<(), EngineError> {
    guarded(rank, || {
        let mut worker = load(shared, rank, Box::new(group), &|_| {})?;
        let result = worker.follow();
        if let Err(error) = &result {
            worker.group.fail(&error.to_string());
        }
        result
    })
}

/// A rank's error with its name; a panic is an error too.
fn guarded<T>(rank: usize, body: impl FnOnce() -> Result<T, ModelError>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(|source| EngineError::Rank { rank, source: Box::new(source) }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let message = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").into();
            Err(EngineError::Panicked { rank, message })
        }
    }
}

/// Loads a rank's part and waits for the others'. Who fails tells the others, who then stop loading.
fn load<M: MakeDevice>(
    shared: &Shared<M>,
    rank: usize,
    group: Box<dyn Collective<M::Device>>,
    progress: &dyn Fn(u64),
) -> Result<Worker<M::Device>, ModelError> {
    let dev = shared.make.make(rank);
    let (decoder, loaded) = {
        let count = |bytes: u64| {
            progress(shared.loaded_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes);
            group.check().map_err(ModelError::from)
        };
        let loader =
            Loader::new(&dev, &shared.source, &shared.layout, rank, shared.options.weight_dtype, &count);
        let decoder = Decoder::load(&loader).inspect_err(|error| group.fail(&error.to_string()))?;
        (decoder, loader.stats())
    };
    // However long the slowest takes: all go on together, with deadlines from here on.
    group.broadcast(&mut Vec::new(), None)?;
    let LaunchOptions { kv_dtype, comm_timeout, .. } = shared.options;
    let (last, last_forward) = Default::default();
    Ok(Worker { dev, group, decoder, loaded, kv_dtype, comm_timeout, kv: None, last, last_forward })
}

/// Of all ranks' errors the one that isn't about another rank.
fn root_cause(own: EngineError, others: Vec<JoinHandle<Result<(), EngineError>>>) -> EngineError {
    let of_another = |error: &EngineError| match error {
        EngineError::Rank { source, .. } => {
            matches!(**source, ModelError::Collective(CollectiveError::Failed { .. }))
        }
        _ => false,
    };
    let theirs = ended(others).into_iter().filter_map(|thread| thread.join().ok().and_then(Result::err));
    let mut all = std::iter::once(own).chain(theirs).collect::<Vec<_>>();
    let cause = all.iter().position(|e| !of_another(e)).unwrap_or(0);
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

impl<D: HostDevice> Leader for Ranks<D> {
    fn take_op_times(&self) -> Vec<(&'static str, Duration)> {
        self.leader.dev.take_op_times()
    }

    fn lead(&mut self, command: &Command) -> Result<Reply, EngineError> {
        let result = guarded(0, || self.leader.lead(command));
        result.map_err(|error| {
            self.leader.group.fail(&error.to_string());
            root_cause(error, std::mem::take(&mut self.others))
        })
    }
}

impl<D: HostDevice> Drop for Ranks<D> {
    fn drop(&mut self) {
        if !self.others.is_empty() {
            // If this fails they have ended, or will with the group.
            let _ = guarded(0, || self.leader.lead(&Command::Stop));
        }
        for thread in ended(std::mem::take(&mut self.others)) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
