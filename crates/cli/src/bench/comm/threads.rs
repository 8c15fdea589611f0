//! Groups of threads of this process.

use collective::{Collective, CollectiveError, SharedConfig, SharedGroup};
use cpu::{CpuConfig, CpuDevice};
use engine::cpus;

use super::measure::{Sample, Settings, sweep};

/// A rank, before it goes to its thread.
pub type Rank = Box<dyn Collective<CpuDevice> + Send>;

/// The ranks of a group over shared memory.
pub fn shared(ranks: usize, settings: &Settings) -> Vec<Rank> {
    let config = SharedConfig { deadline: settings.deadline, ..SharedConfig::default() };
    SharedGroup::new(ranks, config).into_iter().map(|rank| Box::new(rank) as Rank).collect()
}

/// A rank's device: its share of the cores.
pub fn device(rank: usize, ranks: usize) -> CpuDevice {
    let threads = cpus::default_threads(ranks);
    let cores = cpus::of_rank(rank, ranks, threads);
    CpuDevice::new(CpuConfig { threads, cores, isa: None, spin: true })
}

/// Measures on all ranks, each on its thread; `on_sample` hears what rank 0 hears.
pub fn run(
    group: Vec<Rank>,
    settings: &Settings,
    on_sample: &mut (dyn FnMut(Sample) + Send),
) -> Result<(), CollectiveError> {
    let ranks = group.len();
    std::thread::scope(|scope| {
        let mut told = Some(on_sample);
        let spawn = |(rank, group): (usize, Rank)| {
            let told = told.take();
            scope.spawn(move || {
                let dev = device(rank, ranks);
                match told {
                    Some(on_sample) => sweep(&*group, &dev, settings, on_sample),
                    None => sweep(&*group, &dev, settings, &mut |_| ()),
                }
            })
        };
        let threads: Vec<_> = group.into_iter().enumerate().map(spawn).collect();
        let ended = threads.into_iter().enumerate().map(|(rank, thread)| {
            let panicked = |_| CollectiveError::Failed { rank, message: "panicked".into() };
            thread.join().map_err(panicked).and_then(|result| result)
        });
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}
