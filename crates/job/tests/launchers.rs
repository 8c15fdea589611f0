//! Jobs under launchers that are not ours, and over hosts: network namespaces with a wire between them.

mod common;

use std::process::Command;
use std::time::Instant;

use common::hosts::{Hosts, secret};
use common::ranks::{PATIENCE, ROLE, Ranks, SLACK, TIMEOUT, binary, only_line};
use common::{free_port, ranks};

/// Without the variables that launchers set this process is on its own. With them it is a rank of a test below.
#[test]
fn a_process_that_no_launcher_started_is_no_job() {
    common::role::be_a_rank_or_alone();
}

/// Whether a command can be run here and says a word.
fn says(word: &str, command: &[&str]) -> bool {
    let output = Command::new(command[0]).args(&command[1..]).output();
    output.is_ok_and(|out| out.status.success() && String::from_utf8_lossy(&out.stdout).contains(word))
}

#[test]
fn what_mpich_starts_is_a_job() {
    if !says("HYDRA", &["mpiexec", "--version"]) {
        eprintln!("skipped: there is no mpiexec of MPICH here");
        return;
    }
    let start = |role: &str| {
        let mut command = Command::new("mpiexec");
        command.args(["-n", "3"]).args(binary()).env(ROLE, role).env("MASTER_PORT", free_port().to_string());
        Ranks::start_commands(vec![command]).end()
    };
    let ended = start("part");
    assert_eq!(ended.codes, [Some(0)], "{:?}", ended.errors);
    let ended = start("fail");
    assert_eq!(ended.codes, [Some(2)], "{:?}", ended.errors);
    let line = only_line(&ended.errors);
    assert!(line.starts_with("error: rank 1 on ") && line.ends_with(": the disk is full"), "{line}");
}

/// A rank of a job of two on one of the hosts. Rank 0 is on the first.
fn rank_on(hosts: &Hosts, rank: usize, role: &str, secret: &str) -> Command {
    let mut command = hosts.on(rank);
    command
        .args(binary())
        .envs([("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 1)].map(|(n, v)| (n, v.to_string())))
        .env("MASTER_ADDR", hosts.address(0))
        .env("MASTER_PORT", "29500")
        .env("ANYSPLIT_GROUP_SECRET_FILE", secret)
        .env(ROLE, role);
    command
}

#[test]
fn ranks_of_two_hosts_conform() {
    let Some(hosts) = Hosts::new(1) else { return };
    let secret = secret();
    let path = secret.path().to_str().expect("text");
    let ranks = (0..2).map(|rank| rank_on(&hosts, rank, "conformance", path)).collect();
    let ended = Ranks::start_commands(ranks).end();
    assert_eq!(ended.codes, [Some(0); 2], "{:?}", ended.errors);
}

#[test]
fn a_wire_that_is_cut_ends_both_sides_within_the_timeout() {
    let Some(hosts) = Hosts::new(2) else { return };
    let secret = secret();
    let path = secret.path().to_str().expect("text");
    let start = |rank| {
        let mut command = rank_on(&hosts, rank, "wait", path);
        command.env(PATIENCE, TIMEOUT.as_secs_f32().to_string());
        command
    };
    let ranks = Ranks::start_commands((0..2).map(start).collect());
    ranks.hear_all("here");
    hosts.cut();
    let began = Instant::now();
    let ended = ranks.end();
    assert!(began.elapsed() < TIMEOUT + SLACK, "{:?}", began.elapsed());
    assert_eq!(ended.codes, [Some(1); 2]);
    for (rank, text) in ended.errors.iter().enumerate() {
        let line = ranks::only_line(std::slice::from_ref(text));
        assert!(line.starts_with(&format!("error: rank {} on ", 1 - rank)), "{line}");
        assert!(line.contains("went silent for 1.5 s ") && line.contains(" number "), "{line}");
    }
}
