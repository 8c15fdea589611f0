//! A plain command joins the job of whoever started it: launchers of others are played here, with the variables that they set.

use std::net::TcpListener;

use crate::child::{Anysplit, Ended, anysplit, free_port};
use crate::jobs_common::{Work, all_at_once, together};

/// Starts all ranks of a job with a launcher's variables, as `NAME=value` with the rank's number for `@`, and compares what
/// rank 0 prints with one rank.
#[track_caller]
fn joins(ranks: usize, variables: &str, split: &str) {
    let work = Work::score("llama");
    let rank = |rank: usize| {
        let variables = variables.replace('@', &rank.to_string());
        let variables = variables.split_whitespace().map(|v| v.split_once('=').expect("NAME=value"));
        variables.fold(work.as_rank(split), |command, (name, value)| command.env(name, value))
    };
    assert_eq!(together((0..ranks).map(rank).collect()), work.alone(), "{variables} {split}");
}

/// What tells a job from others that run here.
fn job_id() -> u32 {
    100_000 * u32::from(free_port()) + std::process::id() % 100_000
}

#[test]
fn torchruns_own_port_is_left_to_it() {
    // Its agent listens there; the name that it gives is the host's own, which the host need not know.
    let port = free_port();
    let agent = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let variables = format!(
        "RANK=@ WORLD_SIZE=2 LOCAL_RANK=@ LOCAL_WORLD_SIZE=2 GROUP_RANK=0 GROUP_WORLD_SIZE=1 ROLE_RANK=@ ROLE_NAME=default \
         MASTER_ADDR=host-that-nobody-knows.invalid MASTER_PORT={port} TORCHELASTIC_RUN_ID=none \
         TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RESTART_COUNT=0 OMP_NUM_THREADS=1"
    );
    joins(2, &variables, "--tp 2");
    drop(agent);
}

#[test]
fn ranks_of_torchrun_on_two_hosts_meet_where_it_says() {
    // Rank 0 has a host of its own.
    let variables = format!(
        "RANK=@ WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 GROUP_RANK=@ MASTER_ADDR=127.0.0.1 MASTER_PORT={} \
         TORCHELASTIC_RUN_ID=job",
        free_port()
    );
    joins(2, &variables, "--pp 2");
}

#[test]
fn open_mpi_gives_a_job_an_id_from_which_its_port_is_made() {
    let id = job_id();
    let variables = format!(
        "OMPI_COMM_WORLD_RANK=@ OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=@ OMPI_COMM_WORLD_LOCAL_SIZE=2 \
         OMPI_COMM_WORLD_NODE_RANK=@ PMIX_NAMESPACE={id} PMIX_RANK=@ OMPI_MCA_ess_base_jobid={id} OMPI_UNIVERSE_SIZE=2"
    );
    joins(2, &variables, "--tp 2");
}

#[test]
fn mpich_says_it_by_pmi() {
    let variables = format!(
        "PMI_RANK=@ PMI_SIZE=2 PMI_FD=8 MPI_LOCALRANKID=@ MPI_LOCALNRANKS=2 MASTER_PORT={}",
        free_port()
    );
    joins(2, &variables, "--tp 2");
}

#[test]
fn slurm_has_steps_of_one_host_and_of_several() {
    let step = format!("SLURM_JOB_ID={} SLURM_STEP_ID=0 SLURM_PROCID=@ SLURM_NTASKS=2", job_id());
    joins(2, &format!("{step} SLURM_LOCALID=@ SLURM_NODEID=0 SLURM_STEP_NODELIST=gpu07"), "--tp 2");
    let step = format!("SLURM_JOB_ID={} SLURM_STEP_ID=1 SLURM_PROCID=@ SLURM_NTASKS=2", job_id());
    let two =
        "SLURM_LOCALID=0 SLURM_NODEID=@ SLURM_STEP_NODELIST=localhost,gpu08 SLURM_STEP_TASKS_PER_NODE=1(x2)";
    joins(2, &format!("{step} {two}"), "--pp 2");
}

#[test]
fn pods_of_kubernetes_are_hosts() {
    let port = free_port();
    let lws = format!("LWS_WORKER_INDEX=@ LWS_GROUP_SIZE=3 LWS_LEADER_ADDRESS=localhost MASTER_PORT={port}");
    joins(3, &lws, "--tp 3");
    let port = free_port();
    let job = format!("JOB_COMPLETION_INDEX=@ WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT={port}");
    joins(2, &job, "--tp 2 --sp");
}

#[test]
fn launch_inside_a_step_of_slurm_is_launchs_job() {
    let inside = |launch: Anysplit| {
        let launch = launch.env("SLURM_PROCID", "0").env("SLURM_NTASKS", "8").env("SLURM_STEP_ID", "0");
        launch.env("SLURM_NODEID", "0").env("SLURM_STEP_NODELIST", "a,b")
    };
    let work = Work::score("llama");
    let flags = format!("--nproc-per-node 2 --master-port {}", free_port());
    assert_eq!(inside(work.launched(&flags, "--tp 2")).run().succeeds().0, work.alone());
}

#[test]
fn launches_on_the_same_port_do_not_take_each_others_ranks() {
    let work = Work::score("llama");
    let want = work.alone();
    let flags = format!("--nproc-per-node 2 --master-port {}", free_port());
    let launches: Vec<Ended> = all_at_once((0..4).map(|_| work.launched(&flags, "--tp 2")).collect());
    let (well, refused): (Vec<Ended>, Vec<Ended>) = launches.into_iter().partition(Ended::is_well);
    assert!(!well.is_empty(), "whoever has the port goes on");
    assert!(well.into_iter().all(|ended| ended.succeeds().0 == want));
    for ended in refused {
        let line = ended.fails_with(2);
        assert!(line.contains("cannot listen on 127.0.0.1:") && line.contains("--master-port"), "{line}");
    }
}

#[test]
fn a_launcher_that_started_one_process_made_no_job() {
    let work = Work::score("llama");
    let alone = work.as_rank("--tp 2").env("RANK", "0").env("WORLD_SIZE", "1");
    assert_eq!(alone.prints(), work.alone());
}

#[test]
fn variables_that_contradict_each_other_are_refused() {
    let score = || anysplit("score --prompt-ids 1,2");
    score().env("RANK", "0").refused(&["RANK is set but WORLD_SIZE is not"]);
    score()
        .env("RANK", "2")
        .env("WORLD_SIZE", "2")
        .env("MASTER_ADDR", "localhost")
        .refused(&["rank 2 of a job of 2"]);
    let lws = score().env("LWS_WORKER_INDEX", "0").env("LWS_GROUP_SIZE", "2");
    lws.refused(&["LWS_WORKER_INDEX is set but LWS_LEADER_ADDRESS is not"]);
}
