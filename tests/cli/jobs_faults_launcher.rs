//! Launchers that die, stop or are asked to end; nodes of which one has a fault; and ranks that no launcher looks after.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::child::{Anysplit, anysplit, free_port};
use crate::job_child::{End, LONG, Running, is_ignored};
use crate::jobs_faults::{Phase, TIMEOUT, launch_with, printed_no_garbage, reach, work};

const PHASES: [Phase; 4] = [Phase::Start, Phase::Load, Phase::Prefill, Phase::Decode];

/// The same fault of a launcher in every phase at once, with a `--comm-timeout`.
fn to_launchers(signal: Signal, timeout: Duration, check: impl Fn(Phase, &End) + Sync) {
    std::thread::scope(|scope| {
        for phase in PHASES {
            let check = &check;
            scope.spawn(move || {
                let mut job = Running::start(work(phase, launch_with(2, timeout), "--tp 2").command());
                reach(phase, &mut job, 1);
                let fault = job.signal(signal);
                let end = job.ends(fault);
                printed_no_garbage(&end);
                check(phase, &end);
                println!(
                    "{phase:?} launcher {signal:?}: {:.2} s: {:?}",
                    end.took.as_secs_f64(),
                    end.stderr.last()
                );
            });
        }
    });
}

#[test]
fn a_launcher_that_is_killed_takes_its_ranks_with_it() {
    to_launchers(Signal::KILL, LONG, |_, end| {
        assert_eq!(end.status, None);
        // Nobody has to wait for a deadline.
        end.is_in_time(Duration::ZERO);
    });
}

#[test]
fn a_launcher_that_is_stopped_is_ended_by_its_ranks() {
    to_launchers(Signal::STOP, TIMEOUT, |_, end| {
        assert_eq!(end.status, None, "by a signal");
        end.is_in_time(TIMEOUT);
    });
}

#[test]
fn a_launcher_that_is_stopped_does_not_outlast_ranks_that_are_done() {
    let generate = "kill -STOP $PPID; exec \"$0\" generate --max-tokens 9 --threads-per-rank 1 Once";
    let launch = anysplit(&format!("launch --comm-timeout {} -- sh -c", TIMEOUT.as_secs())).arg(generate);
    let job = Running::start(launch.arg(env!("CARGO_BIN_EXE_anysplit")).command());
    let end = job.ends(Instant::now());
    assert_eq!(end.status, None, "by a signal");
    assert!(end.stdout.ends_with('\n'), "the rank was done: {:?}", end.stdout);
    end.is_in_time(TIMEOUT);
}

#[test]
fn ctrl_c_and_requests_to_end_end_all_ranks_cleanly() {
    for (signal, name, status) in [(Signal::INT, "SIGINT", 130), (Signal::TERM, "SIGTERM", 143)] {
        if is_ignored(signal) {
            continue;
        }
        to_launchers(signal, LONG, |phase, end| {
            assert_eq!(end.status, Some(status), "{phase:?}");
            assert_eq!(end.line(), format!("error: ended by {name}"), "{phase:?}");
            end.is_in_time(Duration::ZERO);
        });
    }
}

/// Two launchers that play nodes of so many ranks each, in a phase.
fn nodes(phase: Phase, per_node: usize, split: &str) -> [Running; 2] {
    let port = free_port();
    let node = |rank: usize| {
        let launch = anysplit(&format!(
            "launch --nnodes 2 --nproc-per-node {per_node} --node-rank {rank} --master-port {port} --comm-timeout {} \
             -- anysplit",
            TIMEOUT.as_secs()
        ));
        Running::start(work(phase, launch, split).command())
    };
    let [mut first, mut second] = [node(0), node(1)];
    second.pid(per_node);
    reach(phase, &mut first, 0);
    [first, second]
}

#[test]
fn a_rank_of_either_node_that_dies_or_stops_ends_both() {
    std::thread::scope(|scope| {
        for (phase, victim, signal) in [
            (Phase::Load, 1, Signal::KILL),
            (Phase::Prefill, 0, Signal::KILL),
            (Phase::Decode, 0, Signal::KILL),
            (Phase::Decode, 1, Signal::KILL),
            (Phase::Prefill, 1, Signal::STOP),
            (Phase::Decode, 0, Signal::STOP),
        ] {
            scope.spawn(move || {
                let mut both = nodes(phase, 1, if victim == 0 { "--tp 2" } else { "--pp 2" });
                let fault = both[victim].signal_rank(victim, signal);
                for (node, job) in both.into_iter().enumerate() {
                    let end = job.ends(fault);
                    let line = end.names(victim, TIMEOUT);
                    println!(
                        "{phase:?} node {victim} {signal:?}: node {node}: {:.2} s: {line}",
                        end.took.as_secs_f64()
                    );
                }
            });
        }
    });
}

#[test]
fn nodes_of_two_ranks_end_together() {
    for victim in [1, 3] {
        let mut both = nodes(Phase::Decode, 2, "--tp 2 --pp 2");
        let fault = both[victim / 2].signal_rank(victim, Signal::KILL);
        for job in both {
            job.ends(fault).names(victim, TIMEOUT);
        }
    }
}

#[test]
fn a_launcher_of_either_node_that_dies_stops_or_is_asked_to_end_ends_the_other_node() {
    let faults = [(Signal::KILL, None), (Signal::STOP, None), (Signal::TERM, Some(143))];
    std::thread::scope(|scope| {
        for (node, (signal, status)) in [0, 1].into_iter().flat_map(|node| faults.map(|fault| (node, fault)))
        {
            scope.spawn(move || {
                let [first, second] = nodes(Phase::Decode, 1, "--tp 2");
                let (faulty, other) = if node == 0 { (first, second) } else { (second, first) };
                let fault = faulty.signal(signal);
                let line = other.ends(fault);
                let line = line.names(node, TIMEOUT);
                let end = faulty.ends(fault);
                assert_eq!(end.status, status);
                end.is_in_time(TIMEOUT);
                println!("node {node}'s launcher {signal:?}: {:.2} s: {line}", end.took.as_secs_f64());
            });
        }
    });
}

/// Ranks as torchrun or mpirun start them: with variables, and no pipes.
pub fn plain(rank: usize, size: usize, port: u16, arguments: &str) -> Anysplit {
    let variables = [("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", size)];
    let command = anysplit(arguments).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    variables.into_iter().fold(command, |c, (name, value)| c.env(name, value.to_string()))
}

#[test]
fn ranks_that_no_launcher_looks_after_end_too() {
    let seconds = TIMEOUT.as_secs().to_string();
    for (victim, signal) in [(0, Signal::KILL), (1, Signal::KILL), (0, Signal::STOP), (2, Signal::STOP)] {
        let port = free_port();
        let start = |rank: usize| {
            let command = plain(rank, 3, port, "").env("ANYSPLIT_COMM_TIMEOUT", &seconds);
            Running::start(work(Phase::Decode, command, "--tp 3").command())
        };
        let mut ranks: Vec<Running> = (0..3).map(start).collect();
        reach(Phase::Decode, &mut ranks[0], 0);
        let faulty = ranks.remove(victim);
        let fault = faulty.signal(signal);
        let mut lines = Vec::new();
        for rank in ranks {
            let end = rank.ends(fault);
            assert_eq!(end.status, Some(1), "{:?}", end.stderr);
            end.is_in_time(TIMEOUT);
            lines.extend(end.stderr.into_iter().filter(|line| line.contains("error:")));
        }
        let [line] = &lines[..] else { panic!("one line of all ranks: {lines:?}") };
        assert!(
            line.starts_with(&format!("error: rank {victim} on ")) && line.contains(" number "),
            "{line}"
        );
        if signal == Signal::STOP {
            faulty.signal(Signal::KILL);
        }
        assert_eq!(faulty.ends(Instant::now()).status, None);
    }
}
