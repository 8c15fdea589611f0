//! What a step costs the scheduler: `cargo run --release -p scheduler --example step`.
use std::time::{Duration, Instant};

use scheduler::{CacheUse, ContextParallel, Request, Scheduler, SchedulerConfig};

const STEPS: usize = 2000;

fn main() {
    println!("sequences  schedule + complete, median µs per step of one token each");
    for sequences in [1, 32, 256, 1024] {
        let config = SchedulerConfig {
            num_blocks: sequences * 256,
            block_size: 16,
            max_num_seqs: sequences,
            max_num_batched_tokens: 1 << 16,
            context: ContextParallel::OFF,
            prefix_caching: true,
        };
        let mut scheduler = Scheduler::new(config);
        for id in 0..sequences as u64 {
            let prompt = (0..128).map(|i| i * 7 + id as u32).collect();
            let request = Request { id, prompt, max_tokens: STEPS + 1, cache: CacheUse::default() };
            scheduler.add(request).expect("there is room");
        }
        let mut times: Vec<Duration> = Vec::with_capacity(STEPS);
        while let Some((batch, took)) = timed(|| scheduler.schedule(1 << 16)) {
            let outputs: Vec<_> =
                batch.items.iter().filter(|i| i.samples).map(|i| (i.id, i.id as u32, false)).collect();
            let began = Instant::now();
            scheduler.complete(&batch, &outputs);
            times.push(took + began.elapsed());
        }
        times.sort_unstable();
        println!("{sequences:9}  {:.1}", 1e6 * times[times.len() / 2].as_secs_f64());
    }
}

fn timed<T>(work: impl FnOnce() -> Option<T>) -> Option<(T, Duration)> {
    let began = Instant::now();
    work().map(|made| (made, began.elapsed()))
}
