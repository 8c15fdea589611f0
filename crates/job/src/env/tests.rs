use super::slurm::expand;
use super::*;

fn detect(vars: &str) -> Result<Option<JobEnv>, JobError> {
    let vars: Vec<(&str, &str)> =
        vars.split_whitespace().map(|var| var.split_once('=').expect("NAME=value")).collect();
    JobEnv::detect(&|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn found(vars: &str) -> JobEnv {
    detect(vars).unwrap_or_else(|e| panic!("{vars}: {e}")).unwrap_or_else(|| panic!("{vars}: no job"))
}

/// Each launcher's variables as its own processes have them, and what they mean:
/// rank, size, local rank, local size, node, master, first port (None: made from the job's id).
#[test]
fn each_launcher_is_understood() {
    type Row<'a> =
        (Launcher, usize, usize, Option<usize>, Option<usize>, Option<usize>, &'a str, Option<u16>);
    use Launcher::*;
    #[rustfmt::skip]
    let table: &[(&str, Row<'_>)] = &[
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=1 MASTER_ADDR=a MASTER_PORT=1234",
         (Torchrun, 3, 4, Some(1), Some(2), Some(1), "a", Some(1234))),
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=0 MASTER_ADDR=h MASTER_PORT=29500 \
          TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RUN_ID=none",
         (Torchrun, 1, 2, Some(1), Some(2), Some(0), "127.0.0.1", Some(29501))),
        ("RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2", (Torchrun, 1, 2, None, Some(2), None, "127.0.0.1", Some(29500))),
        ("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
          PMIX_RANK=1 PMIX_NAMESPACE=prterun-h-12@1",
         (OpenMpi, 1, 2, Some(1), Some(2), None, "127.0.0.1", None)),
        ("OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
          MASTER_ADDR=10.0.0.1",
         (OpenMpi, 2, 4, Some(0), Some(2), None, "10.0.0.1", Some(29500))),
        ("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2",
         (Mpich, 1, 2, Some(1), Some(2), None, "127.0.0.1", Some(29500))),
        ("PMIX_RANK=1 WORLD_SIZE=2 MASTER_ADDR=a", (Mpich, 1, 2, None, None, None, "a", Some(29500))),
        ("SLURM_PROCID=5 SLURM_NTASKS=6 SLURM_LOCALID=1 SLURM_NODEID=2 SLURM_JOB_NODELIST=gpu[08-10] \
          SLURM_TASKS_PER_NODE=2(x3) SLURM_JOB_ID=77 SLURM_STEP_ID=0 SLURM_LAUNCH_NODE_IPADDR=10.1.1.1",
         (Slurm, 5, 6, Some(1), Some(2), Some(2), "gpu08", None)),
        ("SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_NODEID=0 SLURM_JOB_NODELIST=one",
         (Slurm, 1, 2, Some(1), Some(2), Some(0), "127.0.0.1", Some(29500))),
        ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NODELIST=a,b MASTER_ADDR=c MASTER_PORT=9",
         (Slurm, 0, 2, None, None, None, "c", Some(9))),
        ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_NODEID=0 SLURM_JOB_NODELIST=a,b PMI_RANK=0 PMI_SIZE=2 PMIX_RANK=0",
         (Slurm, 0, 2, None, None, Some(0), "a", Some(29500))),
        ("LWS_LEADER_ADDRESS=x-0.x.default LWS_GROUP_SIZE=4 LWS_WORKER_INDEX=0",
         (LeaderWorkerSet, 0, 4, Some(0), Some(1), Some(0), "x-0.x.default", Some(29500))),
        ("JOB_COMPLETION_INDEX=2 WORLD_SIZE=3 MASTER_ADDR=job-0.svc",
         (IndexedJob, 2, 3, None, None, Some(2), "job-0.svc", Some(29500))),
    ];
    for (vars, (launcher, rank, size, local_rank, local_size, node, master, port)) in table {
        let env = found(vars);
        assert_eq!(
            (env.launcher, env.rank, env.size, env.local_rank, env.local_size, env.node, env.master.as_str()),
            (*launcher, *rank, *size, *local_rank, *local_size, *node, *master),
            "{vars}"
        );
        match port {
            Some(port) => assert_eq!(env.ports.start(), port, "{vars}"),
            None => assert!((16_384..32_768).contains(env.ports.start()), "{vars}: {:?}", env.ports),
        }
    }
}

#[test]
fn the_innermost_launcher_counts() {
    let slurm = "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_JOB_NODELIST=a,b SLURM_NODEID=0";
    let torchrun = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=a";
    assert_eq!(found(&format!("{slurm} {torchrun}")).launcher, Launcher::Torchrun);
    let hydra = "PMI_RANK=2 PMI_SIZE=4 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=2 MASTER_ADDR=a";
    assert_eq!(found(&format!("{slurm} {hydra}")).launcher, Launcher::Mpich);
    let lws = "LWS_LEADER_ADDRESS=x LWS_GROUP_SIZE=4 LWS_WORKER_INDEX=0";
    assert_eq!(found(&format!("{lws} {torchrun}")).launcher, Launcher::Torchrun);
    let inside_mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_SIZE=1";
    assert_eq!(found(&format!("{inside_mpi} {torchrun}")).rank, 3, "torchrun inside of mpirun");
}

#[test]
fn launches_of_one_host_have_keys_of_their_own() {
    let launch =
        |id: &str| found(&format!("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_PORT=1234 {id}")).job_key;
    assert_eq!(launch("ANYSPLIT_JOB_ID=7-1"), launch("ANYSPLIT_JOB_ID=7-1"));
    assert_ne!(launch("ANYSPLIT_JOB_ID=7-1"), launch("ANYSPLIT_JOB_ID=7-2"));
    let torchrun = "TORCHELASTIC_RUN_ID=x";
    assert_eq!(
        launch(torchrun),
        launch(&format!("{torchrun} ANYSPLIT_JOB_ID=7-1")),
        "the innermost launcher counts"
    );
}

#[test]
fn a_process_on_its_own_is_no_job() {
    let alone = [
        "",
        "RANK=0 WORLD_SIZE=1 MASTER_ADDR=a",
        "RANK=0 WORLD_SIZE=1 SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_STEP_ID=0 SLURM_JOB_NODELIST=a,b",
        "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_LOCAL_SIZE=1",
        "PMI_RANK=0 PMI_SIZE=1",
        "SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_STEP_ID=0",
        "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_NODELIST=a,b ENVIRONMENT=BATCH",
        "SLURM_NTASKS=8 SLURM_JOB_NODELIST=a,b",
        "LWS_LEADER_ADDRESS=x LWS_GROUP_SIZE=1 LWS_WORKER_INDEX=0",
        "JOB_COMPLETION_INDEX=3",
        "LOCAL_RANK=0",
        "RANK= WORLD_SIZE=",
        "MASTER_ADDR=a MASTER_PORT=1",
    ];
    for vars in alone {
        assert_eq!(detect(vars), Ok(None), "{vars}");
    }
}

#[test]
fn a_bad_variable_is_named() {
    let table = [
        ("RANK=0", "RANK is set but WORLD_SIZE is not"),
        ("WORLD_SIZE=2 MASTER_ADDR=a", "WORLD_SIZE is set but RANK is not"),
        ("RANK=x WORLD_SIZE=2", "RANK is \"x\""),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE is \"0\""),
        ("RANK=0 WORLD_SIZE=-2", "WORLD_SIZE is \"-2\""),
        ("RANK=2 WORLD_SIZE=2 MASTER_ADDR=a", "rank 2 of a job of 2: ranks are 0 to 1"),
        ("RANK=0 WORLD_SIZE=5000 MASTER_ADDR=a", "5000 ranks: at most 4096"),
        ("RANK=0 WORLD_SIZE=2", "MASTER_ADDR is not set"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=0", "MASTER_PORT is \"0\""),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=70000", "MASTER_PORT is \"70000\""),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a LOCAL_WORLD_SIZE=3", "3 ranks on this host, but the job has 2"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "local rank 2"),
        (
            "RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=65535 TORCHELASTIC_USE_AGENT_STORE=True",
            "MASTER_PORT is \"65535\"",
        ),
        ("RANK=0 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK is 1"),
        ("OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE is not"),
        (
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_SIZE=2",
            "mpirun -x MASTER_ADDR=",
        ),
        ("PMI_RANK=0 PMI_SIZE=4 MPI_LOCALNRANKS=2", "mpiexec -genv MASTER_ADDR"),
        ("PMI_RANK=0", "PMI_SIZE is not"),
        ("PMIX_RANK=0", "WORLD_SIZE is not"),
        ("SLURM_PROCID=0 SLURM_STEP_ID=0", "SLURM_NTASKS is not"),
        ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NODELIST=a[1-", "SLURM_JOB_NODELIST is \"a[1-\""),
        (
            "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_TASKS_PER_NODE=x SLURM_JOB_NODELIST=a",
            "SLURM_TASKS_PER_NODE is \"x\"",
        ),
        ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=0", "MASTER_ADDR is not set"),
        ("LWS_GROUP_SIZE=2 LWS_WORKER_INDEX=0", "LWS_LEADER_ADDRESS is not"),
        ("LWS_GROUP_SIZE=2 LWS_LEADER_ADDRESS=a", "LWS_WORKER_INDEX is not"),
        ("JOB_COMPLETION_INDEX=0 WORLD_SIZE=2", "MASTER_ADDR is not set"),
    ];
    for (vars, expected) in table {
        let error = detect(vars).expect_err(vars);
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains('\n'), "{vars}: {text}");
        assert!(error.is_usage(), "{text}");
    }
}

#[test]
fn jobs_of_one_scheduler_have_ports_of_their_own() {
    let port = |job: usize| {
        let vars = format!("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NODELIST=a SLURM_JOB_ID={job}");
        *found(&vars).ports.start()
    };
    let mut ports: Vec<u16> = (1000..1100).map(port).collect();
    assert_eq!(ports, (1000..1100).map(port).collect::<Vec<_>>(), "all ranks find the same");
    ports.sort_unstable();
    ports.dedup();
    assert!(ports.len() > 95, "{} of 100", ports.len());
}

#[test]
fn torchruns_own_port_is_left_to_it() {
    let env = found("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=400 TORCHELASTIC_USE_AGENT_STORE=True");
    assert_eq!(env.ports, 401..=408);
    let env = found(
        "RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=400 TORCHELASTIC_USE_AGENT_STORE=False TORCHELASTIC_RUN_ID=x",
    );
    assert_eq!(env.ports, 400..=408, "if it is free");
    assert_eq!(found("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=400").ports, 400..=400);
}

#[test]
fn slurms_lists_of_hosts_are_expanded() {
    let table: &[(&str, &[&str])] = &[
        ("a", &["a"]),
        ("a,b-1", &["a", "b-1"]),
        ("n[1-3]", &["n1", "n2", "n3"]),
        ("n[08-10,2],x", &["n08", "n09", "n10", "n2", "x"]),
        ("r[1-2]n[1-2]", &["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("n[1-2].local", &["n1.local", "n2.local"]),
    ];
    for (list, hosts) in table {
        assert_eq!(expand(list).expect(list), *hosts, "{list}");
    }
    for bad in ["", "a[", "a]", "a[1-2", "a[2-1]", "a[x]", "a[1-99999]", "a[[1]]", "a,,b", "n[-1]x[1-"] {
        assert_eq!(expand(bad), None, "{bad}");
    }
}
