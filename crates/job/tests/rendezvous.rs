//! How ranks meet, and what they say when they do not. The ranks are threads here; `processes.rs` has processes.

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use collective::Secret;
use collective::conformance::patiently;
use common::{env, free_port, jobs, join_all, options, print, same};
use job::{Cause, Ending, Failure, Job, JobError, JobOptions};

/// Long enough for ranks that come at once, where the machine is not busy.
const SHORT: Duration = Duration::from_millis(700);

fn impatient(startup_timeout: Duration) -> JobOptions {
    JobOptions { startup_timeout, ..options() }
}

/// The line, or for [patiently] the one that was found instead.
fn is_line(found: &impl ToString, expected: &str) -> Result<(), String> {
    let found = found.to_string();
    if found == expected { Ok(()) } else { Err(found) }
}

fn finish_all(jobs: Vec<Job>, result: impl Fn(usize) -> Result<(), Failure>) -> Vec<Option<Ending>> {
    std::thread::scope(|scope| {
        let finish = |job: Job| {
            let result = result(job.rank());
            scope.spawn(move || job.finish(result))
        };
        let ends: Vec<_> = jobs.into_iter().map(finish).collect();
        ends.into_iter().map(|end| end.join().expect("no panic")).collect()
    })
}

fn refused(results: Vec<Result<Job, JobError>>) -> Vec<JobError> {
    results.into_iter().map(|job| job.map(|_| ()).expect_err("refused")).collect()
}

#[test]
fn ranks_meet_know_each_other_and_part() {
    let jobs = jobs(join_all(same(5, free_port(), &[])));
    for (rank, job) in jobs.iter().enumerate() {
        assert_eq!((job.rank(), job.size()), (rank, 5));
        assert_eq!(job.node_of_rank(), [0; 5]);
        assert_eq!(job.order(), [0, 1, 2, 3, 4]);
        assert!(job.hosts().iter().all(|host| !host.is_empty() && *host == job.hosts()[0]));
    }
    assert_eq!(finish_all(jobs, |_| Ok(())), vec![None; 5]);
}

#[test]
fn two_launchers_on_one_machine_are_two_hosts() {
    let port = free_port();
    let more = |rank: usize| [("GROUP_RANK", ["0", "1"][rank % 2]), ("LOCAL_WORLD_SIZE", "2")];
    let rank = |rank| (env(rank, 4, port, &more(rank)), print(&[]), options());
    let jobs = jobs(join_all((0..4).map(rank).collect()));
    for job in &jobs {
        assert_eq!(job.node_of_rank(), [0, 1, 0, 1]);
        assert_eq!(job.order(), [0, 2, 1, 3]);
    }
    finish_all(jobs, |_| Ok(()));
}

#[test]
fn a_rank_that_starts_first_waits_for_rank_0() {
    // Somebody who hangs up at once is where rank 0 will be.
    let port = free_port();
    let other = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    std::thread::scope(|scope| {
        let early = scope.spawn(move || Job::join(&env(1, 2, port, &[]), &print(&[]), &options()));
        drop(other.accept().expect("rank 1"));
        drop(other);
        let first = Job::join(&env(0, 2, port, &[]), &print(&[]), &options());
        finish_all(jobs(vec![first, early.join().expect("no panic")]), |_| Ok(()));
    });
}

#[test]
fn under_torchrun_ranks_meet_on_a_port_behind_its_own() {
    let port = free_port();
    let _agent = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    // Somebody else, who says nothing, has the first port that is tried.
    let _silent = TcpListener::bind(("127.0.0.1", port + 1)).expect("a port");
    let jobs = jobs(join_all(same(3, port, &[("TORCHELASTIC_USE_AGENT_STORE", "True")])));
    finish_all(jobs, |_| Ok(()));
}

#[test]
fn what_differs_ends_all_ranks_with_one_line() {
    let mut ranks = same(3, free_port(), &[]);
    ranks[2].1 = print(&[("version", "2")]);
    let errors = refused(join_all(ranks));
    for error in &errors {
        let text = error.to_string();
        assert_eq!(text, errors[0].to_string());
        assert!(text.starts_with("rank 2 on ") && text.contains("has version \"2\", rank 0 on "), "{text}");
        assert!(text.ends_with("has \"1\"") && error.is_usage(), "{text}");
    }
    assert_eq!(errors.iter().map(JobError::is_echo).collect::<Vec<_>>(), [false, true, true]);
    let endings =
        errors.iter().enumerate().map(|(rank, error)| Ending::of_error(&env(rank, 3, 1, &[]), error, None));
    assert_eq!(endings.filter(|ending| ending.is_printed).count(), 1, "the user reads it once");
}

#[test]
fn a_rank_that_came_twice_ends_all() {
    let mut ranks = same(4, free_port(), &[]);
    ranks[2].0.rank = 1;
    let errors = refused(join_all(ranks));
    assert!(errors.iter().all(|e| e.to_string().starts_with("rank 1 came twice: from ")), "{errors:?}");
    assert!(errors.iter().all(JobError::is_usage));
}

#[test]
fn another_size_ends_all() {
    let mut ranks = same(3, free_port(), &[]);
    ranks[1].0.size = 2;
    let errors = refused(join_all(ranks));
    let expected = "says that the job has 2 ranks, rank 0 says 3";
    assert!(errors.iter().all(|e| e.to_string().ends_with(expected)), "{errors:?}");
}

#[test]
fn a_missing_rank_is_named_to_all_who_came() {
    patiently(SHORT, |startup| {
        let mut ranks = same(4, free_port(), &[]);
        ranks.remove(2);
        ranks.iter_mut().for_each(|rank| rank.2 = impatient(startup));
        let expected = format!("rank 2 of 4 did not come within {} s", startup.as_secs_f32());
        refused(join_all(ranks)).iter().try_for_each(|error| {
            assert!(!error.is_usage(), "{error}");
            is_line(error, &expected)
        })
    });
}

#[test]
fn without_rank_0_the_others_say_where_they_looked() {
    let port = free_port();
    let error =
        Job::join(&env(1, 2, port, &[]), &print(&[]), &impatient(SHORT)).map(drop).expect_err("nobody");
    let text = error.to_string();
    let expected =
        format!("rank 1 did not reach rank 0 at 127.0.0.1:{port} within 0.7 s: Connection refused");
    assert!(text.starts_with(&expected), "{text}");
    assert!(!error.is_usage());
}

#[test]
fn a_wrong_secret_is_said_on_both_sides() {
    let secret = |byte| Secret::from_bytes([byte; 16]).expect("long enough");
    patiently(SHORT, |startup| {
        let mut ranks = same(2, free_port(), &[]);
        for (byte, rank) in (1..).zip(&mut ranks) {
            rank.2 = JobOptions { secret: secret(byte), ..impatient(startup) };
        }
        let errors = refused(join_all(ranks));
        let JobError::WrongSecret { rank: 1, .. } = errors[1] else { return Err(errors[1].to_string()) };
        assert!(
            errors[1].is_usage() && errors[1].to_string().contains("--group-secret-file"),
            "{}",
            errors[1]
        );
        let waited = startup.as_secs_f32();
        let other = "127.0.0.1 connected, but it has another group secret";
        is_line(&errors[0], &format!("rank 1 of 2 did not come within {waited} s; {other}"))
    });
}

#[test]
fn off_loopback_a_secret_is_asked_for() {
    let two_hosts = [("MASTER_ADDR", "192.0.2.1"), ("LOCAL_WORLD_SIZE", "1")];
    for rank in 0..2 {
        let error = Job::join(&env(rank, 2, free_port(), &two_hosts), &print(&[]), &options());
        let error = error.map(drop).expect_err("no secret");
        assert!(error.is_usage() && error.to_string().contains("--group-secret-file"), "{error}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let error = Job::join(&env(0, 2, port, &[]), &print(&[]), &options()).map(drop).expect_err("taken");
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("MASTER_PORT"), "{text}");
    assert!(error.is_usage());
}

#[test]
fn a_host_that_nobody_knows_is_named() {
    for rank in 0..2 {
        let env = env(rank, 2, 1, &[("MASTER_ADDR", "no-such-host.invalid")]);
        let error = Job::join(&env, &print(&[]), &options()).map(drop).expect_err("unknown");
        assert!(error.to_string().contains("\"no-such-host.invalid\" (MASTER_ADDR"), "{error}");
        assert!(error.is_usage());
    }
}

#[test]
fn strangers_disturb_nobody() {
    let port = free_port();
    std::thread::scope(|scope| {
        let first = scope.spawn(move || Job::join(&env(0, 2, port, &[]), &print(&[]), &options()));
        let until = Instant::now() + Duration::from_secs(20);
        let connect = || loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(e) => assert!(Instant::now() < until, "{e}"),
            }
        };
        let mut strangers = Vec::new();
        let mut random = 1_u64;
        for n in 0..100 {
            let mut stream = connect();
            // A third says nothing; some begin as an anysplit process would.
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 56) as u8
            };
            let mut bytes: Vec<u8> = (0..n % 3 * 40).map(|_| next()).collect();
            if n % 2 == 0 && bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"anyspjob");
            }
            // Rank 0 may have hung up by now.
            let _ = stream.write_all(&bytes);
            strangers.push(stream);
        }
        let second = Job::join(&env(1, 2, port, &[]), &print(&[]), &options());
        let both = jobs(vec![first.join().expect("no panic"), second]);
        assert_eq!(finish_all(both, |_| Ok(())), [None, None]);
    });
}

#[test]
fn one_ranks_trouble_is_everybodys_and_said_once() {
    let jobs = jobs(join_all(same(4, free_port(), &[])));
    let endings = finish_all(jobs, |rank| match rank {
        2 => Err(Failure::own("rank 2: out of memory", 2)),
        0 => Ok(()),
        _ => Err(Failure::echo("rank 2 hung up")),
    });
    for (rank, ending) in endings.iter().enumerate() {
        let ending = ending.as_ref().expect("not well");
        assert!(ending.message.starts_with("rank 2 on ") && ending.message.ends_with(": out of memory"));
        assert_eq!(ending.code, 2);
        let own = rank == 2;
        assert_eq!((ending.cause == Cause::Own, ending.is_printed), (own, own), "rank {rank}");
    }
}

#[test]
fn a_rank_that_drops_its_job_ends_it_for_all() {
    let mut jobs = jobs(join_all(same(3, free_port(), &[])));
    drop(jobs.remove(1));
    for ending in finish_all(jobs, |_| Ok(())) {
        let message = ending.expect("not well").message;
        assert!(message.starts_with("rank 1 on ") && message.ends_with("left without a reason"), "{message}");
    }
}
