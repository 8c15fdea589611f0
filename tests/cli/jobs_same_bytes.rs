//! Several processes print the bytes of one rank, whoever starts them: `launch` on one node, two `launch` commands that
//! play two nodes, and launchers of others, whose variables are played here.

use std::process::{Child, Stdio};

use crate::checkpoints::{golden, golden_prompt};
use crate::child::{Anysplit, anysplit, free_port};

/// What one rank prints for `score`.
fn want(name: &str) -> String {
    anysplit("score --json --tp 1 --threads-per-rank 1 --prompt-ids")
        .arg(golden_prompt(name))
        .model(golden(name))
        .prints()
}

fn score(command: Anysplit, name: &str, split: &str) -> Anysplit {
    let command = command.args("-- anysplit score --json --threads-per-rank 1 --prompt-ids");
    command.arg(golden_prompt(name)).model(golden(name)).args(split)
}

/// Splits of so many ranks.
const SPLITS: [(usize, &str); 7] = [
    (2, "--tp 2"),
    (3, "--tp 3"),
    (2, "--pp 2"),
    (4, "--tp 2 --pp 2"),
    (2, "--tp 2 --sp"),
    (4, "--tp 2 --pp 2 --sp"),
    (2, "--dp 2"),
];

#[test]
fn processes_of_one_node_print_the_bytes_of_one_rank() {
    for name in ["llama", "qwen3_moe"] {
        let want = want(name);
        for (ranks, split) in SPLITS {
            let launch = anysplit(&format!("launch --nproc-per-node {ranks} --master-port {}", free_port()));
            let (stdout, _) = score(launch, name, split).run().succeeds();
            assert_eq!(stdout, want, "{name} {split}");
        }
    }
}

#[test]
fn a_size_that_nobody_gives_is_what_the_ranks_at_hand_make() {
    let launch = anysplit(&format!("launch --nproc-per-node 2 --master-port {}", free_port()));
    assert_eq!(score(launch, "llama", "").run().succeeds().0, want("llama"));
}

#[test]
fn experts_on_several_processes_print_the_bytes_of_one_rank() {
    for name in ["mixtral", "qwen3_moe"] {
        let want = want(name);
        for split in ["--tp 2 --ep", "--tp 2 --ep --sp", "--tp 2 --ep --expert-placement round-robin"] {
            let launch = anysplit(&format!("launch --nproc-per-node 2 --master-port {}", free_port()));
            let (stdout, _) = score(launch, name, split).run().succeeds();
            assert_eq!(stdout, want, "{name} {split}");
        }
    }
}

/// The second of two nodes, in the background.
fn second_node(arguments: &str, name: &str, split: &str) -> Child {
    let mut command = score(anysplit(arguments), name, split).command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the second node starts")
}

#[test]
fn two_nodes_on_loopback_print_the_bytes_of_one_rank() {
    for name in ["llama", "mixtral"] {
        let want = want(name);
        for (per_node, split) in [
            (1, "--tp 2"),
            (1, "--pp 2"),
            (2, "--tp 2 --pp 2"),
            (2, "--tp 4"),
            (1, "--tp 2 --sp"),
            (1, "--dp 2"),
        ] {
            let node = |rank: usize, port: u16| {
                format!(
                    "launch --nnodes 2 --nproc-per-node {per_node} --node-rank {rank} --master-addr 127.0.0.1 \
                     --master-port {port}"
                )
            };
            let port = free_port();
            let second = second_node(&node(1, port), name, split);
            let (stdout, _) = score(anysplit(&node(0, port)), name, split).run().succeeds();
            assert_eq!(stdout, want, "{name} {split}");
            let second = second.wait_with_output().expect("the second node ends");
            assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
            assert!(second.stdout.is_empty(), "the second node prints nothing");
        }
    }
}

/// Starts both ranks of a job with a launcher's variables and gives what rank 0 printed.
fn played(variables: impl Fn(usize) -> Vec<(&'static str, String)>) -> String {
    let rank = |rank: usize| {
        let command = anysplit("score --json --threads-per-rank 1 --tp 2 --prompt-ids");
        let command = command.arg(golden_prompt("llama")).model(golden("llama"));
        variables(rank).into_iter().fold(command, |command, (name, value)| command.env(name, value))
    };
    let mut second = rank(1).command();
    let second = second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rank 1 starts");
    let (stdout, _) = rank(0).run().succeeds();
    let second = second.wait_with_output().expect("rank 1 ends");
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(second.stdout.is_empty(), "only rank 0 prints");
    stdout
}

#[test]
fn a_plain_command_joins_the_job_of_whoever_started_it() {
    let want = want("llama");
    let number = |n: usize| n.to_string();
    let address = |port: u16| [("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())];

    let port = free_port();
    let torchrun = played(|rank| {
        let mut all = vec![("RANK", number(rank)), ("WORLD_SIZE", number(2)), ("LOCAL_RANK", number(rank))];
        all.push(("LOCAL_WORLD_SIZE", number(2)));
        all.extend(address(port));
        all
    });
    assert_eq!(torchrun, want, "torchrun");

    let port = free_port();
    let open_mpi = played(|rank| {
        let mut all = vec![("OMPI_COMM_WORLD_RANK", number(rank)), ("OMPI_COMM_WORLD_SIZE", number(2))];
        all.extend([("OMPI_COMM_WORLD_LOCAL_RANK", number(rank)), ("OMPI_COMM_WORLD_LOCAL_SIZE", number(2))]);
        all.extend(address(port));
        all
    });
    assert_eq!(open_mpi, want, "Open MPI");

    let port = free_port();
    let slurm = played(|rank| {
        let mut all = vec![("SLURM_PROCID", number(rank)), ("SLURM_NTASKS", number(2))];
        all.extend([
            ("SLURM_LOCALID", number(rank)),
            ("SLURM_NODEID", number(0)),
            ("SLURM_JOB_ID", number(7)),
        ]);
        all.extend([("SLURM_STEP_ID", number(0)), ("SLURM_JOB_NODELIST", "localhost".into())]);
        all.extend(address(port));
        all
    });
    assert_eq!(slurm, want, "Slurm");

    let port = free_port();
    let lws = played(|rank| {
        let mut all = vec![("LWS_WORKER_INDEX", number(rank)), ("LWS_GROUP_SIZE", number(2))];
        all.extend([("LWS_LEADER_ADDRESS", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())]);
        all
    });
    assert_eq!(lws, want, "LeaderWorkerSet");
}
