//! The group of processes of one host. Each test executes itself once more for every rank: its own body then runs with
//! the rank in its environment, and opens the memory that the first process made.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use collective::{Collective, CollectiveError, Group, ReducePlan, SharedConfig, SharedGroup, SharedRank};
use collective::{SharedSegment, conformance};
use tensor::{Device, ReductionTree, Reference};

const RANK: &str = "COLLECTIVE_TEST_RANK";
const SEGMENT: &str = "COLLECTIVE_TEST_SEGMENT";

fn config() -> SharedConfig {
    SharedConfig { deadline: Duration::from_secs(60), slot_bytes: 1 << 16, ..SharedConfig::default() }
}

fn path_of(segment: &SharedSegment) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), segment.as_fd().as_raw_fd())
}

fn open(path: &str) -> OwnedFd {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
    file.unwrap_or_else(|e| panic!("{path}: {e}")).into()
}

/// This process's rank, if it is one of a test's.
fn joined(ranks: usize, config: &SharedConfig) -> Option<SharedRank> {
    let rank = std::env::var(RANK).ok()?.parse().expect("a rank");
    let path = std::env::var(SEGMENT).expect("a segment");
    let segment = SharedSegment::open(open(&path), ranks, config).expect("the segment");
    Some(segment.rank(rank, config).expect("a rank that is free"))
}

/// The processes of a test's ranks, killed if the test fails.
struct Ranks {
    children: Vec<Child>,
    says: Vec<Lines<BufReader<ChildStdout>>>,
}

impl Ranks {
    fn start(test: &str, ranks: usize, segment: &SharedSegment) -> Self {
        let start = |rank: usize| {
            Command::new(std::env::current_exe().expect("this test's file"))
                .args(["--exact", test, "--nocapture"])
                .env(RANK, rank.to_string())
                .env(SEGMENT, path_of(segment))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a process")
        };
        let mut children: Vec<_> = (0..ranks).map(start).collect();
        let lines = |child: &mut Child| BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Ranks { says: children.iter_mut().map(lines).collect(), children }
    }

    /// The first line of a rank's own. The test's runner prints, too.
    fn line(&mut self, rank: usize) -> String {
        let mut lines = self.says[rank].by_ref().map(|line| line.expect("text"));
        let own = lines.find_map(|line| line.strip_prefix("own: ").map(String::from));
        own.unwrap_or_else(|| panic!("rank {rank} ended without a word"))
    }

    fn kill(&mut self, rank: usize) {
        self.children[rank].kill().expect("it can be killed");
        self.children[rank].wait().expect("it ends");
    }

    fn end(mut self) {
        for (rank, mut child) in self.children.drain(..).enumerate() {
            assert!(child.wait().expect("it ends").success(), "rank {rank} failed: its output is above");
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }
}

/// Says something to the first process. A line of its own, whatever the test's runner has printed before.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    write!(out, "\nown: {text}\n").and_then(|()| out.flush()).expect("the first process listens");
}

/// A fresh group for each check: rank 0 makes its memory and tells the others over the test's group.
fn next_group(bootstrap: &SharedRank, deadline: Duration) -> SharedRank {
    let (rank, ranks) = (bootstrap.rank(), bootstrap.size());
    let config = SharedConfig { deadline, ..config() };
    let own = (rank == 0).then(|| SharedSegment::create(ranks, &config).expect("memory"));
    let mut path = own.as_ref().map_or(Vec::new(), |segment| path_of(segment).into_bytes());
    bootstrap.broadcast(&mut path, None).expect("broadcast");
    let path = String::from_utf8(path).expect("a path");
    let segment =
        own.unwrap_or_else(|| SharedSegment::open(open(&path), ranks, &config).expect("the segment"));
    let group = segment.rank(rank, &config).expect("a rank that is free");
    bootstrap.barrier().expect("all have opened it");
    group
}

fn conforms(test: &str, ranks: usize) {
    let Some(bootstrap) = joined(ranks, &config()) else {
        let segment = SharedSegment::create(ranks, &config()).expect("memory");
        return Ranks::start(test, ranks, &segment).end();
    };
    let rank = bootstrap.rank();
    let bootstrap = Mutex::new(bootstrap);
    let join = |deadline| next_group(&bootstrap.lock().expect("one thread"), deadline);
    conformance::run_rank(rank, ranks, join, |_| Reference);
}

#[test]
fn two_processes_conform() {
    conforms("two_processes_conform", 2);
}

#[test]
fn three_processes_conform() {
    conforms("three_processes_conform", 3);
}

/// Rows of a matrix of which each rank has the nodes of its leaves.
fn sum(group: &SharedRank) -> Vec<u32> {
    let tree = ReductionTree::over_heads(6, 4);
    let leaves = [0..2, 2..3, 3..6];
    let nodes_of_rank: Vec<usize> = leaves.iter().map(|l| tree.cover(l.clone()).len()).collect();
    let (rank, cols) = (group.rank(), 30_000);
    let first: usize = nodes_of_rank[..rank].iter().sum();
    let rows = nodes_of_rank[rank];
    let x: Vec<f32> = (0..rows * cols).map(|i| 1.0 / (first * cols + i + 3) as f32).collect();
    let plan = ReducePlan { nodes_of_rank, finish: tree.finish(&leaves) };
    let sum = group.all_reduce(&Reference, Reference.upload(&x, rows, cols), 1, &plan).expect("all_reduce");
    Reference.download(&sum).expect("download").iter().map(|x| x.to_bits()).collect()
}

#[test]
fn processes_get_the_bits_of_threads() {
    let Some(group) = joined(3, &config()) else {
        let segment = SharedSegment::create(3, &config()).expect("memory");
        return Ranks::start("processes_get_the_bits_of_threads", 3, &segment).end();
    };
    let here = sum(&group);
    let threads = std::thread::scope(|scope| {
        let run = |group: SharedRank| scope.spawn(move || sum(&group));
        let threads: Vec<_> = SharedGroup::new(3, config()).into_iter().map(run).collect();
        threads.into_iter().map(|t| t.join().expect("a rank's thread")).collect::<Vec<_>>()
    });
    assert!(threads.iter().all(|bits| *bits == here));
}

/// Starts three ranks that say what they do and wait for rank 2, which is killed.
fn one_is_killed(test: &str, tell: impl FnOnce(&mut Ranks, &SharedSegment)) {
    let segment = SharedSegment::create(3, &config()).expect("memory");
    let mut ranks = Ranks::start(test, 3, &segment);
    (0..3).for_each(|rank| assert_eq!(ranks.line(rank), "here"));
    ranks.kill(2);
    tell(&mut ranks, &segment);
    for rank in 0..2 {
        assert_eq!(ranks.line(rank), "rank 2: killed by signal 9");
    }
    ranks.children.truncate(2);
    ranks.end();
}

/// What the ranks of that group do. `watch` gets what it needs before the rank waits.
fn wait_for_the_killed(group: SharedRank, watch: impl FnOnce(&SharedRank)) {
    group.barrier().expect("barrier");
    watch(&group);
    say("here");
    let error = match group.rank() {
        0 => group.recv_bytes(2, None).map(drop),
        1 => group.broadcast(&mut vec![1], None),
        // Until it is killed.
        _ => group.recv_bytes(0, None).map(drop),
    };
    let error = error.expect_err("a rank was killed");
    assert!(matches!(error, CollectiveError::Failed { rank: 2, .. }), "{error}");
    say(&error.to_string());
}

#[test]
fn who_watches_a_rank_ends_its_wait_for_a_killed_one() {
    let Some(group) = joined(3, &config()) else {
        return one_is_killed("who_watches_a_rank_ends_its_wait_for_a_killed_one", |ranks, _| {
            // One watcher is enough: the other rank hears of it in the memory.
            let watcher = ranks.children[0].stdin.as_mut().expect("a pipe");
            writeln!(watcher, "killed by signal 9").expect("it listens");
        });
    };
    wait_for_the_killed(group, |group| {
        let watched = group.watched();
        std::thread::spawn(move || {
            let mut news = String::new();
            std::io::stdin().read_line(&mut news).expect("text");
            watched.abort(2, news.trim());
        });
    });
}

#[test]
fn who_made_the_memory_ends_all_waits_for_a_killed_one() {
    let Some(group) = joined(3, &config()) else {
        return one_is_killed("who_made_the_memory_ends_all_waits_for_a_killed_one", |_, segment| {
            segment.abort(2, "killed by signal 9");
        });
    };
    wait_for_the_killed(group, |_| {});
}

#[test]
fn a_segment_of_another_group_is_refused_in_a_sentence() {
    let segment = SharedSegment::create(2, &config()).expect("memory");
    let reopen = |ranks, config: &SharedConfig| {
        let fd = segment.as_fd().try_clone_to_owned().expect("a descriptor");
        SharedSegment::open(fd, ranks, config).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(reopen(2, &config()), Ok(()));
    assert_eq!(reopen(3, &config()), Err("the shared segment has size of the group 2, here it is 3".into()));
    let other = SharedConfig { slot_bytes: 1 << 20, ..config() };
    let expected = "the shared segment has bytes of a slot 65536, here it is 1048576";
    assert_eq!(reopen(2, &other), Err(expected.into()));

    let file = std::fs::File::open("/proc/self/exe").expect("this test's file");
    let error = SharedSegment::open(file.into(), 2, &config()).expect_err("no segment").to_string();
    assert_eq!(error, "this is no shared segment: its size is not sealed");
}

#[test]
fn two_processes_cannot_be_the_same_rank() {
    let segment = SharedSegment::create(2, &config()).expect("memory");
    let fd = segment.as_fd().try_clone_to_owned().expect("a descriptor");
    let again = SharedSegment::open(fd, 2, &config()).expect("the segment");
    let _first = segment.rank(1, &config()).expect("a rank that is free");
    let error = again.rank(1, &config()).expect_err("taken").to_string();
    assert_eq!(error, "rank 1 of the shared segment is taken: two processes have the same rank");
    again.rank(0, &config()).expect("the other is free");
}

#[test]
fn a_segment_is_in_no_file_system_and_cannot_be_cut_short() {
    let segment = SharedSegment::create(2, &config()).expect("memory");
    let path = std::fs::read_link(path_of(&segment)).expect("a link");
    assert!(path.to_string_lossy().starts_with("/memfd:"), "{path:?}");
    let file: std::fs::File = open(&path_of(&segment)).into();
    assert!(file.set_len(0).is_err() && file.set_len(1 << 40).is_err(), "its size is sealed");
}
