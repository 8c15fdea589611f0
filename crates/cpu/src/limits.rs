//! What this machine could do at best, measured: how fast memory can be read, how fast fused multiply-adds go,
//! how far two cores are from each other. A kernel's speed means something only beside these.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use crate::buffer::{Disjoint, Memory};
use crate::kernels::tile::TALL_ROWS;
use crate::pool::{Pool, pin};
use crate::simd::{F32x16, Isa, Kernel, LANES};

/// On what to measure.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Threads that work at the same time.
    pub threads: usize,
    /// The core of each thread. Without, the system places them.
    pub cores: Option<Vec<usize>>,
    /// Measurements of which the median is taken.
    pub repeats: usize,
}

impl LimitsConfig {
    /// Five repeats on some threads, wherever the system places them.
    pub fn new(threads: usize) -> Self {
        LimitsConfig { threads, cores: None, repeats: 5 }
    }

    fn pool(&self) -> Pool {
        Pool::new(self.threads, self.cores.as_deref(), true)
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

/// In which order a thread reads its share of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPattern {
    /// From end to end.
    OneStream,
    /// From end to end, asking for lines ahead.
    OneStreamPrefetched,
    /// Four quarters in turn, a line of each.
    FourStreams,
    /// Four quarters in turn, asking for lines ahead.
    FourStreamsPrefetched,
}

impl ReadPattern {
    /// All patterns.
    pub const ALL: [ReadPattern; 4] = [
        ReadPattern::OneStream,
        ReadPattern::OneStreamPrefetched,
        ReadPattern::FourStreams,
        ReadPattern::FourStreamsPrefetched,
    ];
}

impl fmt::Display for ReadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReadPattern::OneStream => "1 stream",
            ReadPattern::OneStreamPrefetched => "1 stream, prefetched",
            ReadPattern::FourStreams => "4 streams",
            ReadPattern::FourStreamsPrefetched => "4 streams, prefetched",
        })
    }
}

/// Read bandwidth of main memory. Keeps its buffer, so that it can be sampled again between other measurements; but no
/// threads, for those would keep the caller on a core that something else may have chosen otherwise.
pub struct ReadBandwidth {
    memory: Memory,
    config: LimitsConfig,
    sink: f32,
}

/// Bytes that every thread reads in whole steps.
const STEP: usize = 4096;

impl ReadBandwidth {
    /// A buffer of `bytes`, which should be many times the size of the last cache: 1 GiB, say. Each thread
    /// writes its share first, so that it lies near to it.
    pub fn new(config: &LimitsConfig, bytes: usize) -> Self {
        let pool = config.pool();
        let bytes = bytes.next_multiple_of(STEP * config.threads);
        let mut memory = Memory::zeroed(bytes);
        let share = bytes / 4 / config.threads;
        pool.split_mut(memory.slice_mut::<f32>(bytes / 4), share, 1, |_, part| part.fill(1.0));
        ReadBandwidth { memory, config: config.clone(), sink: 0.0 }
    }

    /// On what it measures.
    pub fn config(&self) -> &LimitsConfig {
        &self.config
    }

    /// Reads the buffer once. GB/s.
    pub fn sample(&mut self, pattern: ReadPattern) -> f64 {
        let bytes = self.memory.bytes();
        let isa = Isa::detect();
        let pool = self.config.pool();
        let threads = pool.threads();
        let data = self.memory.slice::<f32>(bytes / 4);
        let mut sums = vec![0.0; threads];
        // Threads begin before the clock does.
        pool.run(threads, &|_| ());
        let start = Instant::now();
        pool.split_mut(&mut sums, 1, 1, |thread, sum| {
            let share = data.len() / threads;
            sum[0] = isa.run(Read { data: &data[thread * share..(thread + 1) * share], pattern });
        });
        let seconds = start.elapsed().as_secs_f64();
        self.sink += sums.iter().sum::<f32>();
        bytes as f64 / seconds / 1e9
    }

    /// The median of each pattern, GB/s.
    pub fn by_pattern(&mut self) -> Vec<(ReadPattern, f64)> {
        let mut found: Vec<(ReadPattern, Vec<f64>)> = ReadPattern::ALL.map(|p| (p, Vec::new())).into();
        // Turn by turn, so that a disturbance does not hit one pattern alone.
        for _ in 0..self.config.repeats {
            found.iter_mut().for_each(|(pattern, values)| values.push(self.sample(*pattern)));
        }
        found.into_iter().map(|(pattern, values)| (pattern, median(values))).collect()
    }

    /// Reads the buffer once by each pattern: the best, GB/s.
    pub fn measure_once(&mut self) -> f64 {
        ReadPattern::ALL.into_iter().map(|pattern| self.sample(pattern)).fold(0.0, f64::max)
    }

    /// The best pattern's median, GB/s.
    pub fn measure(&mut self) -> f64 {
        self.by_pattern().into_iter().map(|(_, rate)| rate).fold(0.0, f64::max)
    }
}

/// How fast memory can be read, GB/s: the best median over all patterns.
pub fn read_bandwidth(config: &LimitsConfig, bytes: usize) -> f64 {
    ReadBandwidth::new(config, bytes).measure()
}

struct Read<'a> {
    data: &'a [f32],
    pattern: ReadPattern,
}

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: F32x16>(self) -> f32 {
        match self.pattern {
            ReadPattern::OneStream => read::<V, 1, false>(self.data),
            ReadPattern::OneStreamPrefetched => read::<V, 1, true>(self.data),
            ReadPattern::FourStreams => read::<V, 4, false>(self.data),
            ReadPattern::FourStreamsPrefetched => read::<V, 4, true>(self.data),
        }
    }
}

/// Lines by which a prefetch is ahead.
const AHEAD: usize = 24;

#[inline(always)]
fn read<V: F32x16, const STREAMS: usize, const PREFETCH: bool>(data: &[f32]) -> f32 {
    let lines = data.as_chunks::<LANES>().0;
    let quarter = lines.len() / STREAMS;
    let mut streams: [&[[f32; LANES]]; STREAMS] = [&[]; STREAMS];
    for s in 0..STREAMS {
        streams[s] = &lines[s * quarter..(s + 1) * quarter];
    }
    let mut sums = [V::splat(0.0); 4];
    let mut at = 0;
    while at + 4 <= quarter {
        for s in 0..STREAMS {
            for i in 0..4 {
                if PREFETCH {
                    V::prefetch(streams[s].as_ptr().wrapping_add(at + i + AHEAD).cast());
                }
                sums[i] = sums[i].add(V::load(&streams[s][at + i]));
            }
        }
        at += 4;
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum_by_halves()
}

/// How fast all threads together do fused multiply-adds of f32 in registers, GFLOP/s (an FMA counts as two).
pub fn fma_rate(config: &LimitsConfig) -> f64 {
    let pool = config.pool();
    let isa = Isa::detect();
    let mut sums = vec![0f32; config.threads];
    let mut run = |steps: usize| {
        let start = Instant::now();
        pool.split_mut(&mut sums, 1, 1, |_, sum| sum[0] += isa.run(Fma { steps }));
        start.elapsed().as_secs_f64()
    };
    // Some hundredths of a second each.
    let mut steps = 1 << 12;
    while run(steps) < 0.02 {
        steps *= 2;
    }
    let flops = (steps * PRODUCTS * LANES * 2 * config.threads) as f64;
    median((0..config.repeats).map(|_| flops / run(steps) / 1e9).collect())
}

/// Products in a step of the FMA loop.
const PRODUCTS: usize = 12;

struct Fma {
    steps: usize,
}

impl Kernel for Fma {
    type Output = f32;

    #[inline(always)]
    fn run<V: F32x16>(self) -> f32 {
        // More sums would not fit the registers, fewer would wait for each other.
        match V::TILE_ROWS {
            TALL_ROWS => multiply::<V, PRODUCTS>(self.steps),
            _ => multiply::<V, { PRODUCTS / 2 }>(2 * self.steps),
        }
    }
}

#[inline(always)]
fn multiply<V: F32x16, const SUMS: usize>(steps: usize) -> f32 {
    let mut sums = [V::splat(1.0); SUMS];
    let (a, b) = (V::splat(std::hint::black_box(0.999)), V::splat(std::hint::black_box(0.001)));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = sum.fma(a, b);
        }
    }
    sums.into_iter().fold(V::splat(0.0), V::add).sum_by_halves()
}

/// How long threads that wait actively need to start and finish an operation that does nothing, µs.
pub fn barrier(config: &LimitsConfig) -> f64 {
    const BARRIERS: usize = 1000;
    let pool = config.pool();
    let round = |_| {
        let start = Instant::now();
        for _ in 0..BARRIERS {
            pool.run(config.threads, &|_| ());
        }
        start.elapsed().as_secs_f64() * 1e6 / BARRIERS as f64
    };
    median((0..config.repeats).map(round).collect())
}

/// The way between two cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreToCore {
    /// Time from a write on one core until the other sees it, ns.
    pub latency_ns: f64,
    /// How fast one core reads what the other has just written to its cache, GB/s.
    pub rate_gb_per_s: f64,
}

/// What two threads share: whose turn it is, and a buffer that belongs to the one whose turn it is.
struct Shared {
    turn: AtomicU32,
}

/// Round trips are timed so many at a time, so that those in which the system did something else do not count.
const ROUND_TRIPS: u32 = 100;
const WINDOWS: usize = 100;
/// Fits the second-level cache.
const SHARED_BYTES: usize = 128 << 10;
const SHARED_ROUNDS: u32 = 200;

/// Measures the way between two cores by medians of `repeats`. `None` if a thread cannot be pinned to them.
pub fn core_to_core(a: usize, b: usize, repeats: usize) -> Option<CoreToCore> {
    let shared = Arc::new(Shared { turn: AtomicU32::new(0) });
    let mut memory = Memory::zeroed(SHARED_BYTES);
    let data = Disjoint::new(memory.slice_mut::<f32>(SHARED_BYTES / 4));
    let (mut latencies, mut rates) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let pinned = pin(a);
            for _ in 0..repeats {
                (0..WINDOWS).for_each(|_| shared.play(0, ROUND_TRIPS, || ()));
                // SAFETY: it is this thread's turn.
                shared.play(0, SHARED_ROUNDS, || unsafe { data.part(0..SHARED_BYTES / 4) }.fill(1.0));
            }
            pinned
        });
        let reader = scope.spawn(|| {
            let pinned = pin(b);
            let isa = Isa::detect();
            for _ in 0..repeats {
                for _ in 0..WINDOWS {
                    let start = Instant::now();
                    shared.play(1, ROUND_TRIPS, || ());
                    latencies.push(start.elapsed().as_secs_f64() * 1e9 / (2.0 * ROUND_TRIPS as f64));
                }
                let (mut seconds, mut sum) = (0.0, 0.0);
                shared.play(1, SHARED_ROUNDS, || {
                    let start = Instant::now();
                    // SAFETY: it is this thread's turn.
                    let data = unsafe { data.part(0..SHARED_BYTES / 4) };
                    sum += isa.run(Read { data, pattern: ReadPattern::OneStream });
                    seconds += start.elapsed().as_secs_f64();
                });
                std::hint::black_box(sum);
                rates.push(SHARED_BYTES as f64 * SHARED_ROUNDS as f64 / seconds / 1e9);
            }
            pinned
        });
        (writer.join().unwrap_or(false) && reader.join().unwrap_or(false)).then_some(())
    })?;
    Some(CoreToCore { latency_ns: median(latencies), rate_gb_per_s: median(rates) })
}

impl Shared {
    /// Takes `rounds` turns as player 0 or 1.
    fn play(&self, player: u32, rounds: u32, mut work: impl FnMut()) {
        for _ in 0..rounds {
            let mut waits = 0;
            while self.turn.load(Acquire) != player {
                std::hint::spin_loop();
                // Both may be on one core.
                waits += 1;
                if waits > 10_000 {
                    std::thread::yield_now();
                }
            }
            work();
            self.turn.store(1 - player, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_numbers() {
        let config = LimitsConfig { repeats: 1, ..LimitsConfig::new(2) };
        let mut memory = ReadBandwidth::new(&config, 1 << 20);
        assert!(memory.measure() > 0.1 && memory.sample(ReadPattern::OneStream) > 0.1);
        assert!(fma_rate(&config) > 0.01 && barrier(&config) > 0.001);
        if let Some(way) = core_to_core(0, 1, 1) {
            assert!(way.latency_ns > 1.0 && way.rate_gb_per_s > 0.01);
        }
    }

    #[test]
    fn who_measures_may_run_afterwards_where_it_could_before() {
        let affinity = || rustix::thread::sched_getaffinity(None).unwrap();
        let before = affinity();
        let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|&core| before.is_set(core)).unwrap();
        let config = LimitsConfig { cores: Some(vec![core]), repeats: 1, ..LimitsConfig::new(1) };
        let mut memory = ReadBandwidth::new(&config, 1 << 20);
        assert!(affinity() == before);
        assert!(memory.measure() > 0.1 && affinity() == before);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 3.0]), 3.0);
    }
}
