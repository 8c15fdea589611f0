//! What a process does that a test has started as a rank.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use collective::{Group, Secret, conformance};
use job::{Backend, Failure, Job, JobEnv, JobOptions, Report, hold_lifeline};
use tensor::Reference;

use super::ranks::{PATIENCE, ROLE, rank_command};

/// Seconds of silence after which a rank counts as dead where no test says otherwise: more than any test waits.
const PATIENT: f32 = 60.0;

/// Ends the process if it is a rank of some test. What started it as one has set variables; without them it is on its
/// own.
pub fn be_a_rank_or_alone() {
    let detected = JobEnv::detect(&lookup).expect("no contradictions");
    match (detected, lookup(ROLE)) {
        (None, None) => {}
        (Some(env), Some(role)) => std::process::exit(be_a_rank(&env, &role)),
        (env, role) => panic!("{env:?} as {role:?}"),
    }
}

fn lookup(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns the exit status.
fn be_a_rank(env: &JobEnv, role: &str) -> i32 {
    let report = Report::open(&lookup).expect("a pipe");
    // Where nobody is to fall silent a rank that a busy machine holds up is not to be taken for one that does.
    let comm_timeout = lookup(PATIENCE).map_or(PATIENT, |text| text.parse().expect("seconds"));
    let comm_timeout = Duration::from_secs_f32(comm_timeout);
    hold_lifeline(&lookup, comm_timeout).expect("a pipe");
    match role {
        "launcher" => launch_one(),
        "launched" => rest(),
        _ => {}
    }
    let secret = lookup("ANYSPLIT_GROUP_SECRET_FILE").map(|file| Secret::from_file(Path::new(&file)));
    let options = JobOptions {
        secret: secret.map_or(Secret::none(), |secret| secret.expect("a secret")),
        comm_timeout,
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

/// A launcher: one process, and a pulse for it, as fast as it listens, until one of the two is stopped or ends.
fn launch_one() -> ! {
    let mut child = rank_command(0, 2, 1).env(ROLE, "launched").env("ANYSPLIT_LIFE_FD", "0").spawn();
    let child = child.as_mut().expect("a process");
    let mut pulse = child.stdin.take().expect("a pipe");
    say("launched");
    while pulse.write_all(b".").is_ok() {
        std::thread::yield_now();
    }
    std::process::exit(1)
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
    let group = job.group(1, &all, Duration::from_secs(600)).map_err(|e| Failure::from(&e))?;
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
