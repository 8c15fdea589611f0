//! The limits of this machine, measured between the runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cpu::limits::{self, ReadBandwidth};
use engine::{Engine, EngineError, HostGpus};
use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::limits::{BUFFER_BYTES, config};
use crate::report;

/// What so many threads could do at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Read bandwidth of memory; of GPUs that of copying. GB/s.
    pub bandwidth: f64,
    /// Fused multiply-adds of f32; of GPUs products of bfloat16. GFLOP/s.
    pub flops: f64,
}

impl Limits {
    /// Of two measurements.
    pub fn mean(self, other: Limits) -> Limits {
        Limits {
            bandwidth: (self.bandwidth + other.bandwidth) / 2.0,
            flops: (self.flops + other.flops) / 2.0,
        }
    }
}

/// Buffers to measure with, and the last measurements, by threads.
#[derive(Default)]
pub struct Machine {
    memory: BTreeMap<usize, ReadBandwidth>,
    last: BTreeMap<usize, Sample>,
}

/// Passes of each pattern: few, for they are done as often as there are runs.
const REPEATS: usize = 3;

/// A measurement serves for so long, or for as long as it took. Runs of milliseconds share one, longer ones have one before
/// and one behind.
const FRESH: Duration = Duration::from_millis(250);

/// A measurement.
struct Sample {
    limits: Limits,
    taken: Instant,
    serves: Duration,
}

impl Limits {
    /// Those of all GPUs of an engine's ranks; `None` if these are the processor's.
    ///
    /// # Errors
    /// A GPU can't be measured.
    pub fn of_gpus(engine: &Engine) -> Result<Option<Limits>, EngineError> {
        let of_all = |gpus: HostGpus| {
            let all = report::Limits::of_gpus(&gpus);
            Limits { bandwidth: all.bytes_per_s / 1e9, flops: all.flops_per_s / 1e9 }
        };
        Ok(engine.host_gpus()?.map(of_all))
    }
}

impl Machine {
    /// The limits now.
    pub fn limits(&mut self, threads: usize) -> Limits {
        if let Some(last) = self.last.get(&threads).filter(|last| last.taken.elapsed() < last.serves) {
            return last.limits;
        }
        let start = Instant::now();
        let config = limits::LimitsConfig { repeats: REPEATS, ..config(threads) };
        let memory = self.memory.entry(threads).or_insert_with(|| ReadBandwidth::new(&config, BUFFER_BYTES));
        let limits = Limits { bandwidth: memory.measure(), flops: limits::fma_rate(&config) };
        let sample = Sample { limits, taken: Instant::now(), serves: start.elapsed().max(FRESH) };
        self.last.insert(threads, sample);
        limits
    }
}

/// A bar of runs on a terminal. It is drawn only between runs, and takes no time from them.
pub fn bar(runs: u64) -> ProgressBar {
    let bar = ProgressBar::new(runs);
    let style = ProgressStyle::with_template("{msg} {bar:30} run {pos} of {len}, {eta} left");
    bar.set_style(style.expect("the template is right"));
    bar
}
