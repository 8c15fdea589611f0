//! Time of an all-reduce over two threads: `cargo run --release -p collective --example latency`.

use std::time::Instant;

use collective::{Collective, ReducePlan, SharedConfig, SharedGroup, SharedRank};
use tensor::{Device, ReductionTree, Reference};

/// Calls of which one time is taken, so that a rank that comes early and one that comes late even out.
const BATCH: usize = 20;

/// Median and best time of an all-reduce of `[1, elements]`, in µs. On a busy machine only the best means much.
fn measure(group: &SharedRank, elements: usize, batches: usize) -> (f64, f64) {
    let tree = ReductionTree::over_heads(2, 64);
    let plan = ReducePlan { nodes_of_rank: vec![1, 1], finish: tree.finish(&[0..1, 1..2]) };
    let mut x = Reference.upload(&vec![0.0; elements], 1, elements);
    let mut times: Vec<f64> = Vec::with_capacity(batches);
    for _ in 0..batches {
        let began = Instant::now();
        for _ in 0..BATCH {
            x = group.all_reduce(&Reference, x, 1, &plan).expect("both ranks are here");
        }
        times.push(began.elapsed().as_secs_f64() * 1e6 / BATCH as f64);
    }
    times.sort_by(f64::total_cmp);
    (times[batches / 2], times[0])
}

fn main() {
    let ranks = SharedGroup::new(2, SharedConfig::default());
    std::thread::scope(|scope| {
        for (rank, group) in ranks.into_iter().enumerate() {
            scope.spawn(move || {
                for (bytes, batches) in [(4, 5000), (8 << 10, 5000), (64 << 10, 1000), (4 << 20, 30)] {
                    let (median, best) = measure(&group, bytes / 4, batches);
                    if rank == 0 {
                        println!("{:>8} bytes: median {median:8.2} µs, best {best:8.2} µs", bytes);
                    }
                }
            });
        }
    });
}
