//! Ranks on GPUs, threads of this process.

use std::collections::HashMap;
use std::sync::Arc;

use collective::{Collective, CollectiveError, SharedConfig, SharedGroup, WireDType};
use cuda::nccl::Nccl;
use cuda::{CubinCache, CudaDevice, CudaGroup, Fault, Gpu, Way};

use super::measure::{Sample, Settings, Timing, sweep};
use super::threads::on_threads;
use crate::error::CliError;

/// Calls that are handed to a GPU together. A call by itself costs a launch more, which a step of a model doesn't.
pub const CALLS: usize = 32;

/// Measures ranks whose GPUs reach each other in one way. `name` is the backend's, as in flags.
pub fn run(
    name: &'static str,
    way: Way,
    ranks: usize,
    settings: &Settings,
    on_sample: &mut (dyn FnMut(Sample) + Send),
) -> Result<(), CliError> {
    let gpus = gpus(way, ranks)
        .map_err(|Fault(why)| CliError::Usage(format!("--backend {name} with {ranks} ranks: {why}")))?;
    let config = SharedConfig { deadline: settings.deadline, ..SharedConfig::default() };
    let group = SharedGroup::new(ranks, config).into_iter().zip(gpus).collect();
    on_threads(group, on_sample, |rank, (host, gpu), on_sample| {
        let group = CudaGroup::new(host, WireDType::Float32, settings.deadline).by(way);
        let failed = |Fault(message)| {
            collective::Group::fail(&group, &message);
            CollectiveError::Failed { rank, message }
        };
        let dev = CudaDevice::new(Box::new(gpu.driver(false).map_err(failed)?));
        group.prepare(&dev)?;
        sweep(&group, &dev, settings, Timing::InBatches(CALLS), on_sample)
    })?;
    Ok(())
}

/// A GPU for each rank.
fn gpus(way: Way, ranks: usize) -> Result<Vec<Arc<Gpu>>, Fault> {
    let here = cuda::probe()?;
    if way == Way::Nccl {
        Nccl::find()?;
        if here.len() < ranks {
            let told = format!("NCCL wants a GPU for each rank, and this process may use {}", here.len());
            return Err(Fault(told));
        }
    }
    let cache = CubinCache::of_user();
    let mut open = HashMap::new();
    let ordinals: Vec<u32> = (0..ranks).map(|rank| here[rank % here.len()].ordinal).collect();
    for &ordinal in &ordinals {
        if !open.contains_key(&ordinal) {
            open.insert(ordinal, Gpu::open(ordinal, &cache)?);
        }
    }
    Ok(ordinals.iter().map(|ordinal| open[ordinal].clone()).collect())
}
