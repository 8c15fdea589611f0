//! The group over MPI. `tools/mpi/check` runs this under `mpirun`; by itself it is a group of one.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use collective::mpi::{GROUPS_MAX, MpiRank, MpiWorld};
use collective::{Collective, Compressed, Group, ReducePlan, WireDType, conformance};
use rustix::process::{Signal, getpid, kill_process};
use tensor::{Device, ReductionTree, Reference};

/// Waits that only an error of ours brings to their end.
const LONG: Duration = Duration::from_secs(60);
/// A wait for a rank that does not come.
const SHORT: Duration = Duration::from_secs(2);

fn main() {
    let world = MpiWorld::start(LONG).expect("MPI starts");
    match std::env::args().nth(1).as_deref() {
        Some("--stop-rank-1") => {
            return lose(&world, || kill_process(getpid(), Signal::STOP).expect("a signal"));
        }
        Some("--abort-rank-1") => return lose(&world, || std::process::abort()),
        _ => {}
    }
    let groups = AtomicU16::new(0);
    let join = |members: &[usize], deadline| {
        let id = groups.fetch_add(1, Relaxed);
        world.group_with_deadline(id, members, deadline).expect("this process is a member")
    };
    let everybody: Vec<usize> = (0..world.size()).collect();
    conformance::run_rank(world.rank(), world.size(), |deadline| join(&everybody, deadline), |_| Reference);
    what_cannot_be_a_group_is_refused(&world);
    groups_of_some_processes_do_not_mix(&world, &join);
    compressed_sums_are_the_same_everywhere(join(&everybody, LONG));
    if world.rank() == 0 {
        println!("{} ranks over MPI conform", world.size());
    }
}

/// Rank 1 is lost; the others say so in time. Both scripts and people look at what is printed, and the exit status.
fn lose(world: &MpiWorld, end: impl Fn()) {
    let everybody: Vec<usize> = (0..world.size()).collect();
    let group = world.group_with_deadline(0, &everybody, SHORT).expect("a group of all");
    group.barrier().expect("all are here");
    if world.rank() == 1 {
        end();
    }
    let began = Instant::now();
    let error = group.barrier().expect_err("rank 1 is lost");
    let took = began.elapsed();
    assert!(took < 2 * SHORT, "{took:?}");
    eprintln!("error: {error}");
    drop(group);
    // As the command line does; the launcher ends whoever is left.
    std::process::exit(1);
}

fn what_cannot_be_a_group_is_refused(world: &MpiWorld) {
    let refused = |id, members: &[usize]| world.group(id, members).expect_err("no group").to_string();
    assert!(refused(GROUPS_MAX, &[0]).contains("one too many"));
    assert!(refused(0, &[0, world.size()]).contains("there is no process"));
    let without: Vec<usize> = (0..world.size()).filter(|&r| r != world.rank()).collect();
    assert!(refused(0, &without).contains("is no member"));
    let twice = MpiWorld::start(LONG).expect_err("MPI starts once").to_string();
    assert!(twice.contains("only once"), "{twice}");
}

/// A group of all, and one of every second process, in turn: what is sent in one is not received in the other.
fn groups_of_some_processes_do_not_mix(world: &MpiWorld, join: &dyn Fn(&[usize], Duration) -> MpiRank) {
    // Backwards, so that ranks are not the processes' numbers.
    let halves = [0, 1].map(|half| (0..world.size()).filter(|r| r % 2 == half).rev().collect::<Vec<_>>());
    let half = &halves[world.rank() % 2];
    let all = join(&(0..world.size()).collect::<Vec<_>>(), LONG);
    let some = join(half, LONG);
    assert_eq!((some.size(), half[some.rank()]), (half.len(), world.rank()));
    for turn in 0..20 {
        let mine = [world.rank() as f32, turn as f32];
        let found = some.all_gather_host(&mine).expect("all_gather_host");
        assert_eq!(found, half.iter().map(|&r| vec![r as f32, turn as f32]).collect::<Vec<_>>());
        let found = all.all_gather_host(&mine).expect("all_gather_host");
        assert_eq!(found, (0..world.size()).map(|r| vec![r as f32, turn as f32]).collect::<Vec<_>>());
    }
    // Nobody ends while others look.
    all.barrier().expect("barrier");
}

fn compressed_sums_are_the_same_everywhere(group: MpiRank) {
    let (ranks, n) = (group.size(), 5000);
    let tree = ReductionTree::over_ids(ranks);
    let finish = tree.finish(&(0..ranks).map(|r| r..r + 1).collect::<Vec<_>>());
    let plan = ReducePlan { nodes_of_rank: vec![1; ranks], finish };
    let group = Compressed::new(group, WireDType::Bfloat16);
    let own = vec![0.1 + group.rank() as f32; n];
    let sum = group.all_reduce(&Reference, Reference.upload(&own, 1, n), 1, &plan).expect("all_reduce");
    let sum = Reference.download(&sum).expect("download");
    let exact: f32 = (0..ranks).map(|r| 0.1 + r as f32).sum();
    assert!(sum.iter().all(|x| (x - exact).abs() <= exact / 64.0), "{} for {exact}", sum[0]);
    let all = group.all_gather_host(&sum).expect("all_gather_host");
    assert!(all.iter().all(|other| *other == sum));
}
