//! Time of an all-reduce over two threads: `cargo run --release -p collective --example latency`.

use std::time::Instant;

use collective::{Collective, ReducePlan, SharedConfig, SharedGroup, SharedRank};
use tensor::{Device, ReductionTree, Reference};

/// Median and best of the times of `calls` all-reduces of `[1, elements]`, in µs.
fn measure(group: &SharedRank, elements: usize, calls: usize) -> (f64, f64) {
    let tree = ReductionTree::over_heads(2, 64);
    let plan = ReducePlan { nodes_of_rank: vec![1, 1], finish: tree.finish(&[0..1, 1..2]) };
    let mut x = Reference.upload(&vec![0.0; elements], 1, elements);
    let mut times: Vec<f64> = Vec::with_capacity(calls);
    for _ in 0..calls {
        let began = Instant::now();
        x = group.all_reduce(&Reference, x, 1, &plan).expect("both ranks are here");
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    (times[calls / 2], times[0])
}

fn main() {
    let ranks = SharedGroup::new(2, SharedConfig::default());
    std::thread::scope(|scope| {
        for (rank, group) in ranks.into_iter().enumerate() {
            scope.spawn(move || {
                for (bytes, calls) in [(4, 50_000), (8 << 10, 50_000), (64 << 10, 10_000), (4 << 20, 300)] {
                    let (median, best) = measure(&group, bytes / 4, calls);
                    if rank == 0 {
                        println!("{:>8} bytes: median {median:8.2} µs, best {best:8.2} µs", bytes);
                    }
                }
            });
        }
    });
}
