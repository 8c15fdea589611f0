//! Groups of processes that a launcher started together; rank 0 reports.

use collective::{Compressed, Members};
use cpu::{CpuConfig, CpuDevice};
use cuda::Way;
use engine::{EngineError, cpus};
use model::ModelError;

use super::measure::{Settings, Timing, sweep};
use super::report::{Context, Report};
use super::{CommArgs, gpus, pair};
use crate::error::CliError;
use crate::membership::Membership;

/// Measures the ranks of this process's job; on GPUs each has one of its own, and NVIDIA's library between them.
pub fn of_job(
    args: &CommArgs,
    membership: &Membership,
    ranks: usize,
    settings: &Settings,
    uses: Vec<(usize, &'static str)>,
    is_on_gpus: bool,
    report: &mut Report,
) -> Result<(), CliError> {
    check(args, ranks)?;
    let fingerprint = vec![
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("measurement".to_owned(), format!("{settings:?}")),
        ("backend".to_owned(), if is_on_gpus { "nccl" } else { "host" }.to_owned()),
        ("comm-backend".to_owned(), args.job.comm_backend.name().to_owned()),
    ];
    let job = membership.join(|| fingerprint, &args.job)?.expect("a job has ranks");
    let members: Vec<usize> = job.order();
    let gpu = match is_on_gpus {
        true => {
            let here = job.ranks_here();
            let index = here.iter().position(|&rank| rank == job.rank()).expect("it is on its own host");
            gpus::of_ranks("nccl", Way::Nccl, index..index + 1, here.len())?.pop()
        }
        false => None,
    };
    let group = job.group(1, &members, settings.deadline).map_err(EngineError::from)?;
    let backend = if is_on_gpus { "nccl" } else { group.transport() };
    let sharing = job.ranks_on_my_cores();
    // The others wait meanwhile, so that nothing else runs on the two cores.
    let is_near = job.rank() == 0 && backend == "shared" && sharing.len() == ranks;
    let pair = is_near.then(|| pair(ranks)).flatten();
    let context = Context { backend, ranks, pair, uses };
    if job.rank() != 0 {
        report.stay_silent();
    }
    report.begin();
    let mut on_sample = |sample| report.sample(&context, &sample);
    let swept = match gpu {
        Some(gpu) => gpus::measure(group, &gpu, Way::Nccl, &members, settings, &mut on_sample),
        None => {
            let place = sharing.iter().position(|&rank| rank == job.rank()).expect("its cores are its own");
            let cores = cpus::of_rank(place, sharing.len(), 1, sharing.len());
            let dev = CpuDevice::new(CpuConfig { threads: 1, cores, isa: None, spin: true });
            let group = Members::new(Box::new(Compressed::new(group, settings.wire)), &members);
            sweep(&group, &dev, settings, Timing::Each, &mut on_sample)
        }
    };
    swept.map_err(|error| {
        let source = Box::new(ModelError::from(error));
        EngineError::Rank { rank: job.rank(), source }.into()
    })
}

/// All processes are measured, unless other numbers were asked for.
fn check(args: &CommArgs, ranks: usize) -> Result<(), CliError> {
    match args.tensor_parallel_size {
        _ if ranks < 2 => {
            Err(CliError::Usage("one process has nobody to exchange with; start at least 2".into()))
        }
        Some(n) if n as usize != ranks => Err(CliError::Usage(format!(
            "--tp {n}, but the launcher started {ranks} processes; leave it out, or start {n}"
        ))),
        _ => Ok(()),
    }
}
