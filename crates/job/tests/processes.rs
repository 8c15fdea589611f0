//! Jobs of real processes: this test binary, started once per rank, with what a launcher sets in its environment.

mod common;

use std::time::Instant;

use collective::conformance::patiently;
use common::ranks::{PATIENCE, Ranks, SLACK, TIMEOUT, only_line};
use rustix::process::Signal;

/// Without the variables that the tests below set this process is on its own. With them it is one of their ranks.
#[test]
fn a_process_that_no_launcher_started_is_no_job() {
    common::role::be_a_rank_or_alone();
}

#[test]
fn processes_that_share_memory_conform() {
    for size in [2, 3] {
        let ended = Ranks::start(size, "conformance", &[]).end();
        assert_eq!(ended.codes, vec![Some(0); size], "{:?}", ended.errors);
    }
}

/// Launchers on one machine that play hosts.
fn hosts(host_of_rank: &'static [&'static str]) -> impl Fn(usize) -> Vec<(&'static str, &'static str)> {
    |rank| vec![("GROUP_RANK", host_of_rank[rank]), ("LOCAL_WORLD_SIZE", "1")]
}

#[test]
fn processes_of_several_hosts_conform() {
    // One rank on each; two and one; scattered.
    let worlds: [&[&str]; 3] = [&["0", "1"], &["0", "0", "1"], &["0", "1", "0"]];
    for host_of_rank in worlds {
        let ended = Ranks::start_each(host_of_rank.len(), "conformance", hosts(host_of_rank)).end();
        assert_eq!(ended.codes, vec![Some(0); host_of_rank.len()], "{host_of_rank:?}: {:?}", ended.errors);
    }
}

#[test]
fn the_backend_can_be_chosen() {
    let ended = Ranks::start(2, "part", &[("ANYSPLIT_COMM_BACKEND", "tcp")]).end();
    assert_eq!(ended.codes, [Some(0); 2], "{:?}", ended.errors);
    let more = |rank: usize| {
        let mut more = hosts(&["0", "1"])(rank);
        more.push(("ANYSPLIT_COMM_BACKEND", "shared"));
        more
    };
    let ended = Ranks::start_each(2, "part", more).end();
    // Both find it; who is first says so.
    let text = ended.errors.concat();
    assert!(
        text.contains("ranks 0 and 1 are on different hosts (") && text.contains("auto and tcp do"),
        "{text}"
    );
}

#[test]
fn a_killed_rank_ends_all_at_once_by_name() {
    let tcp = |_| vec![("ANYSPLIT_COMM_BACKEND", "tcp")];
    let two_hosts = hosts(&["0", "0", "1", "1"]);
    for (killed, more) in [
        (0, &(|_| vec![]) as &dyn Fn(usize) -> Vec<(&'static str, &'static str)>),
        (1, &|_| vec![]),
        (3, &|_| vec![]),
        (0, &tcp),
        (2, &tcp),
        (0, &two_hosts),
        (3, &two_hosts),
    ] {
        let mut ranks = Ranks::start_each(4, "wait", more);
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
        // Another one may be silent for as long, if it is held up.
        patiently(TIMEOUT, |timeout| {
            let seconds = timeout.as_secs_f32().to_string();
            let mut ranks = Ranks::start(3, "wait", &[more, &[(PATIENCE, &seconds)]].concat());
            if !ranks.have_all_said("here") {
                return Err("they end before anybody is stopped".into());
            }
            ranks.signal(stopped, Signal::STOP);
            let began = Instant::now();
            let ended = ranks.end_but(stopped);
            assert!(began.elapsed() < timeout + SLACK, "{:?}", began.elapsed());
            let line = only_line(&ended.errors);
            assert!(
                line.contains(&format!("went silent for {seconds} s ")) && line.contains(" number "),
                "{line}"
            );
            if line.starts_with(&format!("error: rank {stopped} on ")) { Ok(()) } else { Err(line) }
        });
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
        // The lines before it are notes.
        let (notes, text): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with("{\"place\":"));
        assert_eq!((notes[0], text.len()), ("{\"place\":null}", 1), "{text:?}");
        let text = text[0];
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
    // It is silent too where it is held up for as long.
    patiently(TIMEOUT, |timeout| {
        let seconds = timeout.as_secs_f32().to_string();
        let mut launcher = Ranks::start(1, "launcher", &[("WORLD_SIZE", "2"), (PATIENCE, &seconds)]);
        launcher.hear_all("launched");
        launcher.signal(0, Signal::STOP);
        let began = Instant::now();
        // Its standard output, which both have, ends when both have ended.
        let ended = launcher.end();
        assert!(began.elapsed() < timeout + SLACK, "{:?}", began.elapsed());
        if ended.codes == [None] { Ok(()) } else { Err(format!("{:?}, and not by a signal", ended.codes)) }
    });
}
