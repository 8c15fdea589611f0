//! Time of an all-reduce over two threads and over two processes, each on a core of its own, beside what the cores can
//! do: `cargo run --release -p collective --example latency`.

use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use collective::{Collective, ReducePlan, SharedConfig, SharedGroup, SharedRank, SharedSegment};
use rustix::thread::{CpuSet, sched_setaffinity};
use tensor::{Device, ReductionTree, Reference};

const SEGMENT: &str = "LATENCY_SEGMENT";
/// Bytes, and calls in a round.
const SIZES: [(usize, usize); 8] = [
    (4, 4000),
    (1 << 10, 4000),
    (8 << 10, 4000),
    (64 << 10, 1000),
    (256 << 10, 300),
    (1 << 20, 100),
    (2 << 20, 60),
    (4 << 20, 30),
];
/// Threads and processes take turns, so that a disturbance does not hit one alone.
const ROUNDS: usize = 5;
/// Calls that are not counted: each group's memory has to come back into the caches.
const WARM_UP: usize = 10;

/// Microseconds of each call of one round, sorted in by the caller.
fn round(group: &SharedRank, (bytes, calls): (usize, usize), times: &mut Vec<f64>) {
    let tree = ReductionTree::over_heads(2, 64);
    let plan = ReducePlan { nodes_of_rank: vec![1, 1], finish: tree.finish(&[0..1, 1..2]) };
    let mut x = Reference.upload(&vec![0.0; bytes / 4], 1, bytes / 4);
    for call in 0..calls + WARM_UP {
        let began = Instant::now();
        x = group.all_reduce(&Reference, x, 1, &plan).expect("both ranks are here");
        if call >= WARM_UP {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
}

/// What rank 1 does.
fn follow(group: &SharedRank) {
    pin(1);
    for size in SIZES {
        (0..ROUNDS).for_each(|_| round(group, size, &mut Vec::new()));
    }
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(e) = sched_setaffinity(None, &set) {
        eprintln!("cannot pin to core {core}: {e}");
    }
}

/// A part of the way from the least to the most.
fn quantile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * part) as usize]
}

fn start_process(segment: &SharedSegment) -> Child {
    let path = format!("/proc/{}/fd/{}", std::process::id(), segment.as_fd().as_raw_fd());
    let exe = std::env::current_exe().expect("this file");
    Command::new(exe).env(SEGMENT, path).stdin(Stdio::null()).spawn().expect("a second process")
}

/// Microseconds from flag to flag and back, and GB/s at which one core reads what the other has just written.
fn limits() -> (f64, f64) {
    const LINES: usize = (128 << 10) / 64;
    const REPEATS: usize = 101;
    const TRIPS: usize = 100;
    let turn = AtomicU32::new(0);
    let data: Vec<AtomicU64> = (0..LINES * 8).map(|_| AtomicU64::new(0)).collect();
    let play = |player: u32, turns: usize, work: &mut dyn FnMut()| {
        for _ in 0..turns {
            while turn.load(Acquire) != player {
                std::hint::spin_loop();
            }
            work();
            turn.store(1 - player, Release);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            for _ in 0..REPEATS {
                play(1, TRIPS, &mut || ());
                play(1, 1, &mut || data.iter().for_each(|x| x.store(1, Relaxed)));
            }
        });
        let (mut trips, mut reads, mut sum) = (Vec::new(), Vec::new(), 0);
        for _ in 0..REPEATS {
            let began = Instant::now();
            play(0, TRIPS, &mut || ());
            trips.push(began.elapsed().as_secs_f64() * 1e6 / TRIPS as f64);
            // The other core writes, then this one reads.
            play(0, 1, &mut || ());
            while turn.load(Acquire) != 0 {
                std::hint::spin_loop();
            }
            let began = Instant::now();
            sum += data.iter().map(|x| x.load(Relaxed)).sum::<u64>();
            reads.push(began.elapsed().as_secs_f64());
        }
        std::hint::black_box(sum);
        let rate = (LINES * 64) as f64 / 1e9 / quantile(&mut reads, 0.5);
        (quantile(&mut trips, 0.5), rate)
    })
}

fn main() {
    let config = SharedConfig { deadline: Duration::from_secs(60), ..SharedConfig::default() };
    if let Ok(path) = std::env::var(SEGMENT) {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the segment");
        let segment = SharedSegment::open(file.into(), 2, &config).expect("the segment");
        return follow(&segment.rank(1, &config).expect("nobody else is rank 1"));
    }
    // Before this process is down to one core: a group of threads that outnumber the cores would not poll.
    let mut threads = SharedGroup::new(2, config.clone());
    pin(0);
    let (round_trip, rate) = limits();
    println!("flag round trip {round_trip:.2} µs, reading what another core wrote {rate:.2} GB/s; µs:");
    println!("   bytes    bound | threads p50      p90  p50/bound | processes p50      p90  p50/threads");
    let segment = SharedSegment::create(2, &config).expect("memory");
    let mut child = start_process(&segment);
    let (second, first) = (threads.pop().expect("rank 1"), threads.pop().expect("rank 0"));
    let processes = segment.rank(0, &config).expect("nobody else is rank 0");
    std::thread::scope(|scope| {
        scope.spawn(move || follow(&second));
        for size in SIZES {
            let (mut of_threads, mut of_processes) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                round(&first, size, &mut of_threads);
                round(&processes, size, &mut of_processes);
            }
            let bound = round_trip + size.0 as f64 / rate / 1e3;
            let [t50, t90] = [0.5, 0.9].map(|part| quantile(&mut of_threads, part));
            let [p50, p90] = [0.5, 0.9].map(|part| quantile(&mut of_processes, part));
            println!(
                "{:>8} {bound:>8.2} | {t50:>11.2} {t90:>8.2} {:>10.2} | {p50:>13.2} {p90:>8.2} {:>12.2}",
                size.0,
                t50 / bound,
                p50 / t50
            );
        }
    });
    assert!(child.wait().expect("it ends").success(), "the second process failed");
}
