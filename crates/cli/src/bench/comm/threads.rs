//! Groups of threads of this process.

use std::net::{Ipv4Addr, TcpListener};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use collective::{
    Collective, CollectiveError, Compressed, Secret, SharedConfig, SharedGroup, TcpConfig, TcpMesh,
};
use cpu::{CpuConfig, CpuDevice};
use engine::cpus;

use super::measure::{Sample, Settings, Timing, sweep};

/// A rank, before it goes to its thread.
pub type Rank = Box<dyn Collective<CpuDevice> + Send>;

/// The ranks of a group over shared memory.
pub fn shared(ranks: usize, settings: &Settings) -> Vec<Rank> {
    let config = SharedConfig { deadline: settings.deadline, ..SharedConfig::default() };
    SharedGroup::new(ranks, config).into_iter().map(|rank| Box::new(rank) as Rank).collect()
}

/// The ranks of a group over loopback connections, each with a mesh of its own, as processes have.
pub fn tcp(ranks: usize, settings: &Settings) -> Result<Vec<Rank>, CollectiveError> {
    let bind = |rank| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let bound = listener.and_then(|l| Ok((l.local_addr()?, l)));
        bound.map_err(|e| CollectiveError::Failed { rank, message: format!("no port of loopback: {e}") })
    };
    let bound = (0..ranks).map(bind).collect::<Result<Vec<_>, _>>()?;
    let (addresses, listeners): (Vec<_>, Vec<_>) = bound.into_iter().unzip();
    let members: Vec<usize> = (0..ranks).collect();
    // Nobody but this process's own threads is to connect.
    let secret = Secret::none();
    let spin = if ranks > cpus::available().len() { Duration::ZERO } else { TcpConfig::default().spin };
    let config = TcpConfig { connect_deadline: settings.deadline, spin };
    let connect = |(me, listener): (usize, TcpListener)| -> Result<Rank, CollectiveError> {
        let peer = |&rank: &usize| (rank != me).then(|| addresses[rank]);
        let peers: Vec<_> = members.iter().map(peer).collect();
        let mesh = TcpMesh::connect(me, listener, &peers, &secret, &config)?;
        Ok(Box::new(mesh.group(0, &members, settings.deadline)?))
    };
    std::thread::scope(|scope| {
        let connect = &connect;
        let spawn = |rank| scope.spawn(move || connect(rank));
        let threads: Vec<_> = listeners.into_iter().enumerate().map(spawn).collect();
        threads.into_iter().enumerate().map(|(rank, thread)| join(rank, thread)).collect()
    })
}

/// What a rank's thread ended with.
fn join<T>(
    rank: usize,
    thread: ScopedJoinHandle<'_, Result<T, CollectiveError>>,
) -> Result<T, CollectiveError> {
    let panicked = |_| CollectiveError::Failed { rank, message: "panicked".into() };
    thread.join().map_err(panicked).and_then(|result| result)
}

/// A rank's device: its share of the cores.
pub fn device(rank: usize, ranks: usize) -> CpuDevice {
    let threads = cpus::default_threads(ranks);
    let cores = cpus::of_rank(rank, ranks, threads, ranks);
    CpuDevice::new(CpuConfig { threads, cores, isa: None, spin: true })
}

/// Measures on all ranks, each on its thread; `on_sample` hears what rank 0 hears.
pub fn run(
    group: Vec<Rank>,
    settings: &Settings,
    on_sample: &mut (dyn FnMut(Sample) + Send),
) -> Result<(), CollectiveError> {
    let ranks = group.len();
    on_threads(group, on_sample, |rank, group: Rank, on_sample| {
        let group = Compressed::new(group, settings.wire);
        sweep(&group, &device(rank, ranks), settings, Timing::Each, on_sample)
    })
}

/// Has each rank work on a thread of its own, rank 0 with the caller's `on_sample`; the first error is that of the lowest rank.
pub fn on_threads<R: Send>(
    group: Vec<R>,
    on_sample: &mut (dyn FnMut(Sample) + Send),
    work: impl Fn(usize, R, &mut dyn FnMut(Sample)) -> Result<(), CollectiveError> + Sync,
) -> Result<(), CollectiveError> {
    std::thread::scope(|scope| {
        let mut told = Some(on_sample);
        let spawn = |(rank, group): (usize, R)| {
            let (told, work) = (told.take(), &work);
            scope.spawn(move || match told {
                Some(on_sample) => work(rank, group, on_sample),
                None => work(rank, group, &mut |_| ()),
            })
        };
        let threads: Vec<_> = group.into_iter().enumerate().map(spawn).collect();
        let ended: Vec<_> = threads.into_iter().enumerate().map(|(rank, t)| join(rank, t)).collect();
        ended.into_iter().collect()
    })
}
