//! Where an engine's threads run doesn't depend on what other engines of the process there are.
//!
//! A test binary of its own: it looks at all threads of the process.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use common::Golden;
use engine::{EngineOptions, cpus};

/// What the system says of each thread of this process: its name, and how many cores it may use.
fn threads() -> Vec<(String, u32)> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let cores = |status: String| {
        let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap().trim();
        let ones = |part: &str| u32::from_str_radix(part, 16).unwrap().count_ones();
        mask.split(',').map(ones).sum()
    };
    let read = |task: &std::path::Path, file: &str| fs::read_to_string(task.join(file)).unwrap();
    tasks.map(|task| (read(&task, "comm").trim().to_owned(), cores(read(&task, "status")))).collect()
}

#[test]
fn an_engine_of_more_threads_than_cores_has_all_cores_beside_one_that_is_pinned() {
    let golden = Golden::named("llama");
    let cores = cpus::available().len();
    let load = |ranks: usize, threads: usize| {
        golden.engine(&EngineOptions {
            rank_weights: vec![1.0; ranks],
            threads_per_rank: Some(threads),
            ..Default::default()
        })
    };
    let pinned = load(1, cores);
    let before = threads();
    assert!(before.iter().filter(|(name, of)| name.starts_with("cpu-") && *of == 1).count() == cores - 1);
    let by_threads = load(1, cores + 1);
    let free = threads().into_iter().filter(|(name, of)| name.starts_with("cpu-") && *of == cores as u32);
    assert!(free.count() >= cores, "{:?}", threads());
    drop(by_threads);
    // This model has 8 heads.
    if cores < 8 {
        let by_ranks = load(cores + 1, 1);
        let ranks = threads().into_iter().filter(|(name, _)| name.starts_with("rank "));
        let of_ranks: Vec<u32> = ranks.map(|(_, of)| of).collect();
        assert_eq!(of_ranks, vec![cores as u32; cores]);
        drop(by_ranks);
    }
    // The pinned one's threads are where they were, the caller among them.
    assert_eq!(threads(), before);
    drop(pinned);
}
