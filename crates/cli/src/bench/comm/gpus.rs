//! Ranks on GPUs: threads of this process, or the processes of a job.

use std::collections::HashMap;
use std::sync::Arc;

use collective::{Collective, CollectiveError, Group, Members, SharedConfig, SharedGroup};
use cuda::nccl::Nccl;
use cuda::{CubinCache, CudaDevice, CudaGroup, Fault, Gpu, Way};
use tensor::Reference;

use super::measure::{Sample, Settings, Timing, sweep};
use super::threads::on_threads;
use crate::error::CliError;

/// Calls that are handed to a GPU together. A call by itself costs a launch more, which a step of a model doesn't.
const CALLS: usize = 32;

/// Measures ranks whose GPUs reach each other in one way. `name` is the backend's, as in flags.
pub fn on_threads_of_gpus(
    name: &'static str,
    way: Way,
    ranks: usize,
    settings: &Settings,
    on_sample: &mut (dyn FnMut(Sample) + Send),
) -> Result<(), CliError> {
    let gpus = of_ranks(name, way, 0..ranks, ranks)?;
    let config = SharedConfig { deadline: settings.deadline, ..SharedConfig::default() };
    let group = SharedGroup::new(ranks, config).into_iter().zip(gpus).collect();
    let numbers: Vec<usize> = (0..ranks).collect();
    on_threads(group, on_sample, |_, (host, gpu), on_sample| {
        measure(host, &gpu, way, &numbers, settings, on_sample)
    })?;
    Ok(())
}

/// Measures one rank of a group whose hosts exchange by `host`. `numbers[i]` is the job's number of its rank `i`.
pub fn measure<C: Collective<Reference> + Send + 'static>(
    host: C,
    gpu: &Arc<Gpu>,
    way: Way,
    numbers: &[usize],
    settings: &Settings,
    on_sample: &mut dyn FnMut(Sample),
) -> Result<(), CollectiveError> {
    let group = CudaGroup::new(host, settings.wire, settings.deadline).called(numbers).by(way);
    let driver = gpu.driver(false).map_err(|Fault(message)| {
        group.fail(&message);
        CollectiveError::Failed { rank: numbers[group.rank()], message }
    })?;
    let dev = CudaDevice::with(Box::new(driver), settings.reduction);
    if let Some(bytes) = settings.one_shot_bytes {
        // Only once the ranks have met is there anything to set.
        group.prepare(&dev)?;
        group.set_one_shot_bytes(bytes);
    }
    let group: Members<CudaDevice> = Members::new(Box::new(group), numbers);
    group.prepare(&dev)?;
    sweep(&group, &dev, settings, Timing::InBatches(CALLS), on_sample)
}

/// GPUs for some of this host's ranks.
pub fn of_ranks(
    name: &'static str,
    way: Way,
    ranks: impl Iterator<Item = usize>,
    ranks_here: usize,
) -> Result<Vec<Arc<Gpu>>, CliError> {
    found(way, ranks, ranks_here).map_err(|Fault(why)| {
        CliError::Usage(format!("--backend {name} with {ranks_here} ranks on this host: {why}"))
    })
}

fn found(way: Way, ranks: impl Iterator<Item = usize>, ranks_here: usize) -> Result<Vec<Arc<Gpu>>, Fault> {
    let here = cuda::usable()?.gpus;
    if way == Way::Nccl {
        Nccl::find()?;
        if here.len() < ranks_here {
            let told = format!("NCCL wants a GPU for each, and this process may use {}", here.len());
            return Err(Fault(told));
        }
    }
    let cache = CubinCache::of_user();
    let mut open: HashMap<u32, Arc<Gpu>> = HashMap::new();
    let gpu = |rank: usize| -> Result<Arc<Gpu>, Fault> {
        let ordinal = here[rank % here.len()].ordinal;
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = Gpu::open(ordinal, &cache)?;
        open.insert(ordinal, gpu.clone());
        Ok(gpu)
    };
    ranks.map(gpu).collect()
}
