//! Jobs of real processes: this test binary, started once per rank, with what a launcher sets in its environment.

mod common;

use std::io::Write;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use collective::{Group, conformance};
use common::ranks::{ROLE, Ranks, SLACK, TIMEOUT, rank_command};
use job::{Backend, Failure, Job, JobEnv, JobOptions, Report, hold_lifeline};
use rustix::process::Signal;
use tensor::Reference;

fn lookup(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Without the variables that the tests below set this process is on its own. With them it is one of their ranks.
#[test]
fn a_process_that_no_launcher_started_is_no_job() {
    let detected = JobEnv::detect(&lookup).expect("no contradictions");
    match (detected, lookup(ROLE)) {
        (None, None) => {}
        (Some(env), Some(role)) => std::process::exit(be_a_rank(&env, &role)),
        (env, role) => panic!("{env:?} as {role:?}"),
    }
}

/// Returns the exit status.
fn be_a_rank(env: &JobEnv, role: &str) -> i32 {
    let report = Report::open(&lookup).expect("a pipe");
    hold_lifeline(&lookup, TIMEOUT).expect("a pipe");
    match role {
        "launcher" => launch_one(),
        "launched" => rest(),
        _ => {}
    }
    let is_patient = role == "conformance";
    let options = JobOptions {
        comm_timeout: if is_patient { Duration::from_secs(60) } else { TIMEOUT },
        startup_timeout: Duration::from_secs(60),
        backend: lookup("ANYSPLIT_COMM_BACKEND")
            .map_or(Backend::Auto, |text| text.parse().expect("a backend")),
        report,
        ..JobOptions::default()
    };
    let job = Job::join(env, &Vec::new(), &options).expect("joined");
    let result = act(&job, role);
    match job.finish(result) {
        None => 0,
        Some(ending) => {
            if ending.is_printed {
                eprintln!("error: {}", ending.message);
            }
            ending.code.into()
        }
    }
}

fn rest() -> ! {
    loop {
        std::thread::park();
    }
}

/// Something to the test, on a line of its own, whatever the test's runner has printed before.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    write!(out, "\n@{text}\n").and_then(|()| out.flush()).expect("the test reads");
}

/// A launcher: one process, and a pulse of which there is only one beat.
fn launch_one() -> ! {
    let mut child = rank_command(0, 2, 1).env(ROLE, "launched").env("ANYSPLIT_LIFE_FD", "0").spawn();
    let child = child.as_mut().expect("a process");
    child.stdin.as_mut().expect("a pipe").write_all(b".").expect("it listens");
    say("launched");
    rest()
}

fn act(job: &Job, role: &str) -> Result<(), Failure> {
    let all: Vec<usize> = (0..job.size()).collect();
    let failed = |error: collective::CollectiveError| Failure::echo(error.to_string());
    if role == "conformance" {
        let id = AtomicU16::new(0);
        let make = |deadline| {
            let id = id.fetch_add(1, Ordering::Relaxed);
            job.group(id, &all, deadline).expect("a group")
        };
        conformance::run_rank(job.rank(), job.size(), make, |_| Reference);
        return Ok(());
    }
    let group = job.group(1, &all, Duration::from_secs(600)).expect("a group");
    group.barrier().map_err(failed)?;
    let last = job.size() - 1;
    match role {
        // Everyone waits for another one; the test does something to one of them.
        "wait" => {
            say("here");
            let from = if job.rank() == last { 0 } else { last };
            group.recv_bytes(from, None).map(drop).map_err(failed)
        }
        // Nobody ever looks at the group again.
        "busy" => {
            say("here");
            rest()
        }
        "fail" if job.rank() == 1 => Err(Failure::own("the disk is full", 2)),
        "fail" => group.barrier().map_err(failed),
        // The last leaves while the others still work.
        "part" if job.rank() == last => Ok(()),
        "part" => {
            let some: Vec<usize> = (0..last).collect();
            let group = job.group(2, &some, Duration::from_secs(600)).expect("a group");
            (0..1000).try_for_each(|_| group.barrier()).map_err(failed)
        }
        _ => panic!("no role {role}"),
    }
}

/// The line that the user reads: exactly one of all ranks' standard errors.
fn only_line(errors: &[String]) -> String {
    let lines: Vec<&str> = errors.iter().flat_map(|text| text.lines()).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0].to_owned()
}

#[test]
fn processes_that_share_memory_conform() {
    for size in [2, 3] {
        let ended = Ranks::start(size, "conformance", &[]).end();
        assert_eq!(ended.codes, vec![Some(0); size], "{:?}", ended.errors);
    }
}

#[test]
fn processes_of_several_hosts_conform() {
    let nodes = |rank: usize| vec![("GROUP_RANK", ["0", "1"][rank % 2]), ("LOCAL_WORLD_SIZE", "2")];
    for size in [2, 3] {
        let ended = Ranks::start_each(size, "conformance", nodes).end();
        assert_eq!(ended.codes, vec![Some(0); size], "{:?}", ended.errors);
    }
    let ended = Ranks::start(2, "conformance", &[("ANYSPLIT_COMM_BACKEND", "tcp")]).end();
    assert_eq!(ended.codes, [Some(0); 2], "{:?}", ended.errors);
}

#[test]
fn a_killed_rank_ends_all_at_once_by_name() {
    let tcp = [("ANYSPLIT_COMM_BACKEND", "tcp")];
    for (killed, more) in [(0, &[][..]), (1, &[]), (3, &[]), (0, &tcp), (2, &tcp)] {
        let mut ranks = Ranks::start(4, "wait", more);
        ranks.hear_all("here");
        let pid = ranks.pid(killed);
        ranks.signal(killed, Signal::KILL);
        let began = Instant::now();
        let ended = ranks.end();
        assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
        for (rank, code) in ended.codes.iter().enumerate() {
            assert_eq!(*code, (rank != killed).then_some(1), "rank {rank}");
        }
        let line = only_line(&ended.errors);
        assert!(line.starts_with(&format!("error: rank {killed} on ")), "{line}");
        assert!(line.contains(&format!("(pid {pid}) died ")) && line.contains(" number "), "{line}");
    }
}

#[test]
fn a_stopped_rank_ends_all_within_the_timeout() {
    let tcp = [("ANYSPLIT_COMM_BACKEND", "tcp")];
    for (stopped, more) in [(0, &[][..]), (2, &[]), (1, &tcp)] {
        let mut ranks = Ranks::start(3, "wait", more);
        ranks.hear_all("here");
        ranks.signal(stopped, Signal::STOP);
        let began = Instant::now();
        let ended = ranks.end_but(stopped);
        assert!(began.elapsed() < TIMEOUT + SLACK, "{:?}", began.elapsed());
        let line = only_line(&ended.errors);
        assert!(line.starts_with(&format!("error: rank {stopped} on ")), "{line}");
        assert!(line.contains("went silent for 1.5 s ") && line.contains(" number "), "{line}");
    }
}

#[test]
fn a_rank_that_never_looks_up_is_ended_too() {
    let mut ranks = Ranks::start(3, "busy", &[]);
    ranks.hear_all("here");
    ranks.signal(2, Signal::KILL);
    let began = Instant::now();
    let ended = ranks.end();
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    assert_eq!(ended.codes, [Some(1), Some(1), None]);
    assert!(only_line(&ended.errors).contains("rank 2 on "));
}

#[test]
fn a_rank_that_fails_says_why_for_all() {
    let ended = Ranks::start(4, "fail", &[]).end();
    assert_eq!(ended.codes, vec![Some(2); 4], "{:?}", ended.errors);
    let line = only_line(&ended.errors);
    assert!(line.starts_with("error: rank 1 on ") && line.ends_with(": the disk is full"), "{line}");
    assert!(!ended.errors[1].is_empty(), "it says so itself");
}

#[test]
fn a_rank_may_leave_before_the_others() {
    let ended = Ranks::start(3, "part", &[]).end();
    assert_eq!(ended.codes, vec![Some(0); 3], "{:?}", ended.errors);
}

#[test]
fn a_launcher_that_listens_gets_every_ranks_report() {
    // The report goes where a rank's errors would.
    let ended = Ranks::start(3, "fail", &[("ANYSPLIT_REPORT_FD", "2")]).end();
    for (rank, text) in ended.errors.iter().enumerate() {
        assert_eq!(text.lines().count(), 1, "{text}");
        let cause = if rank == 1 { "own" } else { "other" };
        assert!(text.contains(&format!(r#""rank":{rank},"host":""#)), "{text}");
        assert!(text.contains(&format!(r#""cause":"{cause}","code":2,"message":"rank 1 on "#)), "{text}");
    }
}

#[test]
fn ranks_end_with_their_launcher() {
    let mut ranks = Ranks::start(2, "busy", &[("ANYSPLIT_LIFE_FD", "0")]);
    ranks.pulse();
    ranks.hear_all("here");
    ranks.stop_the_pulse();
    let began = Instant::now();
    let ended = ranks.end();
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    assert_eq!(ended.codes, [Some(1), Some(1)]);
}

#[test]
fn a_stopped_launcher_is_killed_by_what_it_launched() {
    let mut launcher = Ranks::start(1, "launcher", &[("WORLD_SIZE", "2")]);
    launcher.hear_all("launched");
    launcher.signal(0, Signal::STOP);
    let began = Instant::now();
    // Its standard output, which both have, ends when both have ended.
    let ended = launcher.end();
    assert_eq!(ended.codes, [None], "by a signal");
    assert!(began.elapsed() < TIMEOUT + SLACK, "{:?}", began.elapsed());
}
