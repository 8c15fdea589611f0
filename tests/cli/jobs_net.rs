//! What networks do to jobs: links that are cut or slow, and strangers who connect and say anything.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use collective::{Role, Secret, authenticate};

use crate::child::{Anysplit, anysplit, free_port};
use crate::hosts::{Hosts, secret};
use crate::job_child::{LIMIT, Running};
use crate::jobs_faults::{Phase, TIMEOUT, printed_no_garbage, reach, work};
use crate::jobs_faults_launcher::plain;

/// A launch for each of two hosts, in front of what it launches.
fn nodes(
    hosts: &Hosts,
    secret: &std::path::Path,
    seconds: u64,
    what: impl Fn(Anysplit) -> Anysplit,
) -> [Running; 2] {
    let node = |rank: usize| {
        let launch = format!("launch --nnodes 2 --node-rank {rank} --comm-timeout {seconds} --master-addr");
        let launch = anysplit(&launch).arg(hosts.address(0)).arg("--group-secret-file").arg(secret);
        Running::start(within(hosts.on(rank), &what(launch.args("-- anysplit")).command()))
    };
    [node(0), node(1)]
}

/// A command as the arguments of another.
fn within(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

#[test]
fn a_link_that_is_cut_ends_both_sides_with_the_cause() {
    std::thread::scope(|scope| {
        for (net, phase, split) in
            [(11, Phase::Load, "--tp 2"), (12, Phase::Prefill, "--pp 2"), (13, Phase::Decode, "--tp 2")]
        {
            scope.spawn(move || {
                let Some(hosts) = Hosts::new(net) else { return };
                let secret = secret();
                let mut both =
                    nodes(&hosts, secret.path(), TIMEOUT.as_secs(), |launch| work(phase, launch, split));
                both[1].pid(1);
                reach(phase, &mut both[0], 0);
                hosts.cut();
                let fault = Instant::now();
                for (node, job) in both.into_iter().enumerate() {
                    let end = job.ends(fault);
                    let line = end.names(1 - node, TIMEOUT);
                    assert!(line.contains("went silent for 2 s"), "{line}");
                    printed_no_garbage(&end);
                    println!("{phase:?} link cut: node {node}: {:.2} s: {line}", end.took.as_secs_f64());
                }
            });
        }
    });
}

#[test]
fn a_slow_link_changes_no_bytes() {
    let what = |command: Anysplit| command.args("score --json --threads-per-rank 1 --prompt-ids 5,6,7,8,9");
    let want = what(anysplit("")).prints();
    for (net, split) in [(14, "--tp 2"), (15, "--pp 2")] {
        let Some(hosts) = Hosts::new(net) else { return };
        if !hosts.slow() {
            eprintln!("skipped: this machine cannot slow a link down");
            return;
        }
        let secret = secret();
        let began = Instant::now();
        let ends =
            nodes(&hosts, secret.path(), 20, |launch| what(launch).args(split)).map(|job| job.ends(began));
        for (end, want) in ends.iter().zip([&*want, ""]) {
            assert_eq!((end.status, &*end.stdout), (Some(0), want), "{:?}", end.stderr);
        }
    }
}

/// TCP ports on which a process listens.
fn listens_on(pid: u32) -> Vec<u16> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let sockets: Vec<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_its =
            *fields.get(3)? == "0A" && sockets.iter().any(|socket| Some(&&**socket) == fields.get(9));
        let (_, port) = fields.get(1)?.split_once(':')?;
        is_its.then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().filter_map(port).collect()
}

/// Comes to a port as all kinds of strangers, and stays as long as the value.
fn strangers(port: u16, seed: u64) -> Vec<TcpStream> {
    let mut random = seed;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    };
    let mut open = Vec::new();
    for n in 0..40_usize {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
        // Some begin as one of us would; some then say a length that no frame has.
        let start: &[u8] = [&b""[..], b"anyspjob\x02\0", b"anysplt\x01", b"GET / HTTP/1.1\r\n"][n % 4];
        let length: &[u8] = [&b""[..], &[255; 4], &[0; 64]][n % 3];
        let rest: Vec<u8> = (0..usize::from(next()) * (n % 5)).map(|_| next()).collect();
        // It may have hung up by now.
        let _ = stream.write_all(&[start, length, &rest].concat());
        if n % 2 == 0 {
            open.push(stream);
        }
    }
    open
}

/// Comes to rank 0 as a process of its job would, as far as anybody can without a secret, and then says nonsense instead of
/// who it is.
fn impostors(port: u16, seed: u64) -> Vec<TcpStream> {
    let lengths = [None, Some(0_u32), Some(5), Some(1 << 20), Some(u32::MAX)];
    let one = |(n, length): (u64, Option<u32>)| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("rank 0 listens");
        // Protocol and job, as rank 0 says them first.
        let mut opening = [0; 18];
        stream.read_exact(&mut opening).expect("an opening");
        stream.write_all(&opening).expect("it waits for ours");
        let until = Instant::now() + LIMIT;
        authenticate(&mut stream, &Secret::none(), Role::Connects, until).expect("there is no secret");
        if let Some(length) = length {
            let nonsense = [&length.to_le_bytes()[..], &(seed + n).to_be_bytes(), &[0xA5; 100]].concat();
            let _ = stream.write_all(&nonsense);
        }
        stream
    };
    (0..).zip(lengths).map(one).collect()
}

#[test]
fn strangers_on_any_port_disturb_no_job() {
    let what = |command: Anysplit| {
        let command = command.args("generate --ignore-eos --max-tokens 400 --threads-per-rank 1");
        command.arg("Once upon a time")
    };
    let want = what(anysplit("")).prints();
    for seed in 0..3 {
        let port = free_port();
        let start = |rank: usize| {
            let rank = plain(rank, 3, port, "")
                .env("ANYSPLIT_COMM_TIMEOUT", "20")
                .env("ANYSPLIT_COMM_BACKEND", "tcp");
            Running::start(what(rank).args("--pp 3").command())
        };
        let began = Instant::now();
        // Two ranks wait for the third, each on a port for data, rank 0 on the job's port too.
        let mut ranks = vec![start(0), start(1)];
        let mut open = Vec::new();
        for (rank, ports) in [(0, 2), (1, 1)] {
            let pid = ranks[rank].waits_for(rank, "listens", |pid| listens_on(pid).len() == ports);
            open.extend(listens_on(pid).into_iter().map(|port| strangers(port, seed)));
        }
        open.push(impostors(port, seed));
        ranks.push(start(2));
        ranks[0].prints();
        // Nobody comes to a job that runs. Ranks other than the first may be a little behind it.
        for job in &mut ranks {
            job.waits_until("listens no more", |pid| listens_on(pid).is_empty());
        }
        for (rank, job) in ranks.into_iter().enumerate() {
            let end = job.ends(began);
            assert_eq!(end.status, Some(0), "seed {seed}: {:?}", end.stderr);
            assert_eq!(end.stdout, if rank == 0 { &want } else { "" }, "seed {seed}");
        }
    }
}
