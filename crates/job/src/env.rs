//! What the launcher says about this process, read from its environment variables.
//!
//! The innermost launcher counts: `anysplit launch` or torchrun inside a Slurm step is theirs, not Slurm's. One that
//! started a single process made no job.

mod slurm;
mod vars;

use std::ops::RangeInclusive;

use crate::JobError;
use vars::Vars;

/// The port of rank 0 where nobody says another.
pub const DEFAULT_PORT: u16 = 29500;

/// Ranks that a job may have. More is a typing error; it also bounds what rank 0 holds for those who come.
pub const MAX_RANKS: usize = 4096;

/// Ports behind `MASTER_PORT` that both sides try where torchrun itself holds that one.
const WINDOW: u16 = 8;

/// Who started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// `anysplit launch`, torchrun, or anything that sets `RANK` and `WORLD_SIZE`.
    Torchrun,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// MPICH's Hydra, and what else speaks PMI.
    Mpich,
    /// Slurm's `srun`.
    Slurm,
    /// A Kubernetes LeaderWorkerSet.
    LeaderWorkerSet,
    /// A Kubernetes Job with indexed completion.
    IndexedJob,
}

/// This process's place in its job, and where rank 0 is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEnv {
    /// Who started it.
    pub launcher: Launcher,
    /// This process's rank.
    pub rank: usize,
    /// Ranks in the job.
    pub size: usize,
    /// Its number among those on its host, if the launcher says.
    pub local_rank: Option<usize>,
    /// Ranks on its host, if the launcher says.
    pub local_size: Option<usize>,
    /// The number that the launcher gives the host. Two launchers on one machine may play two hosts.
    pub node: Option<usize>,
    /// Rank 0's host name or address.
    pub master: String,
    /// Where rank 0 listens: the first of these ports that is free.
    pub ports: RangeInclusive<u16>,
    /// Tells this job from others that try the same ports.
    pub job_key: String,
}

impl JobEnv {
    /// What the variables say, or `None` where this process is on its own. `lookup` gives a variable's value.
    ///
    /// # Errors
    /// Variables contradict each other, are half set, or no numbers.
    pub fn detect(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<JobEnv>, JobError> {
        let vars = Vars(lookup);
        let detectors = [torchrun, open_mpi, mpich, slurm::detect, leader_worker_set, indexed_job];
        for detect in detectors {
            match detect(&vars)? {
                Found::Nothing => {}
                Found::Alone => return Ok(None),
                Found::Job(env) => return env.checked().map(Some),
            }
        }
        Ok(None)
    }

    /// Whether all ranks are on this host, as far as the launcher says.
    pub fn is_local(&self) -> bool {
        self.local_size == Some(self.size)
    }

    fn checked(self) -> Result<JobEnv, JobError> {
        let JobEnv { rank, size, .. } = self;
        if size > MAX_RANKS {
            return Err(JobError::env(format!("a job of {size} ranks: at most {MAX_RANKS} are possible")));
        }
        if rank >= size {
            return Err(JobError::env(format!(
                "rank {rank} of a job of {size}: ranks are 0 to {}",
                size - 1
            )));
        }
        if let Some(local) = self.local_size.filter(|&local| local > size || local == 0) {
            return Err(JobError::env(format!("{local} ranks on this host, but the job has {size}")));
        }
        if let (Some(at), Some(local)) = (self.local_rank, self.local_size)
            && at >= local
        {
            return Err(JobError::env(format!("local rank {at}, but this host has {local} of the ranks")));
        }
        Ok(self)
    }
}

/// What one launcher's variables say.
enum Found {
    /// Not this launcher.
    Nothing,
    /// This launcher, and it started one process.
    Alone,
    /// A job.
    Job(JobEnv),
}

/// What differs between launchers; the rest is asked of the common variables.
struct Place {
    launcher: Launcher,
    rank: usize,
    size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
    node: Option<usize>,
}

impl Place {
    fn at(launcher: Launcher, rank: usize, size: usize) -> Place {
        Place { launcher, rank, size, local_rank: None, local_size: None, node: None }
    }

    /// `master` is where rank 0 is without `MASTER_ADDR`; `job_id` is what makes the job's port its own.
    fn job(
        self,
        vars: &Vars<'_>,
        master: Option<String>,
        job_id: Option<String>,
        advice: &str,
    ) -> Result<Found, JobError> {
        if self.size == 1 {
            return Ok(Found::Alone);
        }
        let is_local = self.local_size == Some(self.size);
        let loopback = || is_local.then(|| "127.0.0.1".into());
        // torchrun sets the host's own name, which the host may not know.
        let master = match vars.text("MASTER_ADDR") {
            Some(_) if is_local && vars.has("TORCHELASTIC_RUN_ID") => loopback(),
            given => given.or(master).or_else(loopback),
        };
        let master = master.ok_or_else(|| {
            JobError::env(format!("MASTER_ADDR is not set: no rank knows where rank 0 is ({advice})"))
        })?;
        let port = match (vars.port("MASTER_PORT")?, &job_id) {
            (Some(port), _) => port,
            (None, Some(id)) => port_of(id),
            (None, None) => DEFAULT_PORT,
        };
        // torchrun's own store may have that port; it says so, but not in all versions.
        let agent_has_port = vars.text("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
        let ports = if agent_has_port {
            let first = port.checked_add(1).ok_or_else(|| vars.bad("MASTER_PORT", "a port below 65535"))?;
            first..=port.saturating_add(WINDOW)
        } else if vars.has("TORCHELASTIC_RUN_ID") {
            port..=port.saturating_add(WINDOW)
        } else {
            port..=port
        };
        let Place { launcher, rank, size, local_rank, local_size, node } = self;
        let run = vars.text("TORCHELASTIC_RUN_ID").or(job_id).unwrap_or_default();
        let job_key = format!("{run} {port}");
        Ok(Found::Job(JobEnv { launcher, rank, size, local_rank, local_size, node, master, ports, job_key }))
    }
}

/// A port for a job, below those that systems give to outgoing connections.
fn port_of(job_id: &str) -> u16 {
    let hash = hash(job_id);
    16_384 + ((hash ^ hash >> 32) % 16_384) as u16
}

/// FNV-1a: the same on every host, for things that are no secret.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

fn torchrun(vars: &Vars<'_>) -> Result<Found, JobError> {
    // Kubernetes and PMIx say the rank by another name, and leave the size to the user.
    let named_elsewhere = ["JOB_COMPLETION_INDEX", "PMIX_RANK"].iter().any(|name| vars.has(name));
    let Some(rank) = vars.number("RANK")? else {
        if vars.has("WORLD_SIZE") && !named_elsewhere {
            return Err(vars.half("WORLD_SIZE", "RANK"));
        }
        return Ok(Found::Nothing);
    };
    let size = vars.size("WORLD_SIZE", "RANK")?;
    let local_rank = vars.number("LOCAL_RANK")?;
    for (mpi_rank, mpi_size) in [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")] {
        // torchrun inside of MPI sets LOCAL_RANK too; without it somebody exported one RANK to all.
        let same_size = vars.number(mpi_size).ok().flatten() == Some(size);
        if let Some(other) = vars.number(mpi_rank).ok().flatten()
            && same_size
            && other != rank
            && local_rank.is_none()
        {
            let text = format!("RANK is {rank}, but {mpi_rank} is {other}: unset RANK and WORLD_SIZE");
            return Err(JobError::env(text));
        }
    }
    let place = Place {
        local_rank,
        local_size: vars.number("LOCAL_WORLD_SIZE")?,
        node: vars.number("GROUP_RANK")?,
        ..Place::at(Launcher::Torchrun, rank, size)
    };
    // `anysplit launch` on one host has no run id that would be the same on others.
    place.job(vars, None, vars.text("ANYSPLIT_JOB_ID"), "torchrun and anysplit launch set it")
}

fn open_mpi(vars: &Vars<'_>) -> Result<Found, JobError> {
    let Some(rank) = vars.number("OMPI_COMM_WORLD_RANK")? else { return Ok(Found::Nothing) };
    let place = Place {
        local_rank: vars.number("OMPI_COMM_WORLD_LOCAL_RANK")?,
        local_size: vars.number("OMPI_COMM_WORLD_LOCAL_SIZE")?,
        ..Place::at(Launcher::OpenMpi, rank, vars.size("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")?)
    };
    let id = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"];
    let id = id.iter().find_map(|name| vars.text(name));
    place.job(vars, None, id, "mpirun -x MASTER_ADDR=HOST_OF_RANK_0 …")
}

fn mpich(vars: &Vars<'_>) -> Result<Found, JobError> {
    let (rank_name, rank) = match vars.number("PMI_RANK")? {
        Some(rank) => ("PMI_RANK", rank),
        None => match vars.number("PMIX_RANK")? {
            Some(rank) => ("PMIX_RANK", rank),
            None => return Ok(Found::Nothing),
        },
    };
    // srun speaks PMI as well, and says more in its own variables.
    if vars.number("SLURM_PROCID")? == Some(rank) && !vars.has("MPI_LOCALRANKID") {
        return Ok(Found::Nothing);
    }
    let size_name = if vars.has("PMI_SIZE") || rank_name == "PMI_RANK" { "PMI_SIZE" } else { "WORLD_SIZE" };
    let place = Place {
        local_rank: vars.number("MPI_LOCALRANKID")?,
        local_size: vars.number("MPI_LOCALNRANKS")?,
        ..Place::at(Launcher::Mpich, rank, vars.size(size_name, rank_name)?)
    };
    let id = ["PMIX_NAMESPACE", "PMI_JOBID"].iter().find_map(|name| vars.text(name));
    place.job(vars, None, id, "mpiexec -genv MASTER_ADDR HOST_OF_RANK_0 …")
}

fn leader_worker_set(vars: &Vars<'_>) -> Result<Found, JobError> {
    const NAMES: [&str; 3] = ["LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS"];
    let Some(set) = NAMES.into_iter().find(|name| vars.has(name)) else { return Ok(Found::Nothing) };
    if let Some(missing) = NAMES.into_iter().find(|name| !vars.has(name)) {
        return Err(vars.half(set, missing));
    }
    let index = vars.required("LWS_WORKER_INDEX", set)?;
    let place = Place {
        local_rank: Some(0),
        local_size: Some(1),
        node: Some(index),
        ..Place::at(Launcher::LeaderWorkerSet, index, vars.size("LWS_GROUP_SIZE", set)?)
    };
    place.job(vars, vars.text("LWS_LEADER_ADDRESS"), None, "LWS_LEADER_ADDRESS has it")
}

fn indexed_job(vars: &Vars<'_>) -> Result<Found, JobError> {
    let Some(rank) = vars.number("JOB_COMPLETION_INDEX")? else { return Ok(Found::Nothing) };
    // Completions without a world are independent of each other.
    let Some(size) = vars.number("WORLD_SIZE")? else { return Ok(Found::Nothing) };
    let place = Place { node: Some(rank), ..Place::at(Launcher::IndexedJob, rank, size.max(1)) };
    place.job(vars, None, None, "the host name of the pod with index 0")
}

#[cfg(test)]
mod tests;
