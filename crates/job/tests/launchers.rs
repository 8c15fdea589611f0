//! Jobs under launchers that are not ours, and over hosts: network namespaces with a wire between them.

mod common;

use std::process::Command;
use std::time::Instant;

use common::ranks::{ROLE, Ranks, SLACK, TIMEOUT, binary, only_line};
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

/// Two namespaces, `10.77.N.1` and `10.77.N.2`, with a wire between them. They go with the value.
struct Hosts {
    names: [String; 2],
    net: u8,
}

impl Hosts {
    /// `None` where this process may not make any.
    fn new(net: u8) -> Option<Hosts> {
        let id = std::process::id();
        let hosts = Hosts { names: ["a", "b"].map(|side| format!("anysplit-{id}-{net}-{side}")), net };
        let [a, b] = &hosts.names;
        let wires = [format!("as{id}x{net}a"), format!("as{id}x{net}b")];
        let made = hosts.names.iter().all(|name| ip(&["netns", "add", name]))
            && ip(&[
                "link", "add", &wires[0], "netns", a, "type", "veth", "peer", "name", &wires[1], "netns", b,
            ]);
        let up = |side: usize| {
            let (name, wire) = (&hosts.names[side], &wires[side]);
            let address = format!("10.77.{net}.{}/24", side + 1);
            ip(&["-n", name, "link", "set", wire, "name", "wire"])
                && ip(&["-n", name, "address", "add", &address, "dev", "wire"])
                && ip(&["-n", name, "link", "set", "wire", "up"])
                && ip(&["-n", name, "link", "set", "lo", "up"])
        };
        (made && up(0) && up(1)).then_some(hosts)
    }

    /// A rank of a job of two on one of the hosts. Rank 0 is on the first.
    fn rank(&self, rank: usize, role: &str, secret: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.names[rank]])
            .args(binary())
            .envs(
                [("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 1)].map(|(n, v)| (n, v.to_string())),
            )
            .env("MASTER_ADDR", format!("10.77.{}.1", self.net))
            .env("MASTER_PORT", "29500")
            .env("ANYSPLIT_GROUP_SECRET_FILE", secret)
            .env(ROLE, role);
        command
    }

    fn cut(&self) {
        assert!(ip(&["-n", &self.names[0], "link", "set", "wire", "down"]));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).output().is_ok_and(|out| out.status.success())
}

/// A file with a secret.
fn secret() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "a secret that only a test has").expect("written");
    file
}

#[test]
fn ranks_of_two_hosts_conform() {
    let Some(hosts) = Hosts::new(1) else {
        eprintln!("skipped: this process may not make network namespaces");
        return;
    };
    let secret = secret();
    let path = secret.path().to_str().expect("text");
    let ranks = (0..2).map(|rank| hosts.rank(rank, "conformance", path)).collect();
    let ended = Ranks::start_commands(ranks).end();
    assert_eq!(ended.codes, [Some(0); 2], "{:?}", ended.errors);
}

#[test]
fn a_wire_that_is_cut_ends_both_sides_within_the_timeout() {
    let Some(hosts) = Hosts::new(2) else {
        eprintln!("skipped: this process may not make network namespaces");
        return;
    };
    let secret = secret();
    let path = secret.path().to_str().expect("text");
    let ranks = Ranks::start_commands((0..2).map(|rank| hosts.rank(rank, "wait", path)).collect());
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
