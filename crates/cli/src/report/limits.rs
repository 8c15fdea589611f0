//! What a rank could do at most while a step ran.

use std::collections::BTreeMap;
use std::time::Duration;

use cpu::limits;
use engine::{Bubble, Engine, EngineError, HostGpus, RankReport, StepReport, Work, cpus};

/// Bytes of the buffer by which `--stats` measures the memory: above most caches, and quick to read.
const QUICK_BUFFER_BYTES: usize = 256 << 20;

/// What this machine can do at most: all of it, or a rank's share.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes_per_s: f64,
    pub flops_per_s: f64,
}

impl Limits {
    /// Of all together. Memory that is read and written is what they are measured by: both count the same.
    pub fn of_gpus(gpus: &HostGpus) -> Limits {
        let each =
            Limits { bytes_per_s: gpus.each.copy_bytes_per_s, flops_per_s: gpus.each.bf16_flops_per_s };
        each.share(gpus.count as f64)
    }

    /// A part of all, or a multiple.
    fn share(self, share: f64) -> Limits {
        Limits { bytes_per_s: self.bytes_per_s * share, flops_per_s: self.flops_per_s * share }
    }

    /// The time that some work needs at least, over the time it took. What fits in a cache can exceed the memory's rate.
    pub fn fraction(&self, work: Work, time: Duration) -> f64 {
        let least = (work.bytes as f64 / self.bytes_per_s).max(work.flops as f64 / self.flops_per_s);
        least / time.as_secs_f64().max(1e-9)
    }
}

/// The threads of a rank, and of all ranks that worked when it did, if they have cores enough. Where they don't, ranks take
/// turns, and nobody knows beside whom a rank ran: its limit is then what its threads could do alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    own: usize,
    all: usize,
}

impl Share {
    fn new(threads_per_rank: usize, ranks: usize, cores: usize) -> Self {
        let (own, all) = (threads_per_rank.clamp(1, cores.max(1)), threads_per_rank * ranks);
        Share { own, all: if all > cores { own } else { all.max(own) } }
    }
}

/// The limits of what ranks are.
pub enum Machine {
    /// By numbers of threads, each measured once.
    Processor(BTreeMap<usize, Limits>),
    /// Those that ranks of this host have.
    Gpus(HostGpus),
}

impl Machine {
    /// Those of an engine's ranks.
    ///
    /// # Errors
    /// A GPU can't be measured.
    pub fn of(engine: &Engine) -> Result<Self, EngineError> {
        Ok(engine.host_gpus()?.map_or(Machine::Processor(BTreeMap::new()), Machine::Gpus))
    }

    /// Those of a rank while `ranks` ranks like it are at work. Measures for about a second.
    pub fn of_rank(&mut self, threads_per_rank: usize, ranks: usize) -> Limits {
        match self {
            Machine::Processor(known) => {
                let Share { own, all } = Share::new(threads_per_rank, ranks, cpus::available().len());
                known.entry(all).or_insert_with(|| measure(all)).share(own as f64 / all as f64)
            }
            // Ranks that share a GPU share what it does.
            Machine::Gpus(gpus) => Limits::of_gpus(gpus).share(1.0 / ranks.max(gpus.count) as f64),
        }
    }
}

fn measure(threads: usize) -> Limits {
    // On cores of their own: this thread is bound to one, and those that it starts would share that.
    let config = limits::LimitsConfig { repeats: 3, ..crate::bench::limits::config(threads) };
    Limits {
        bytes_per_s: limits::read_bandwidth(&config, QUICK_BUFFER_BYTES) * 1e9,
        flops_per_s: limits::fma_rate(&config) * 1e9,
    }
}

/// Steps with a prompt, or steps without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Prefill,
    Decode,
}

impl Kind {
    /// A rank's step of this kind.
    pub fn of(self, rank: &RankReport) -> &Option<StepReport> {
        match self {
            Kind::Prefill => &rank.prefill,
            Kind::Decode => &rank.decode,
        }
    }

    /// Ranks of rank 0's host that were at work at a time, in steps of this kind: those of its stage in all replicas that
    /// made such steps, and of other stages as many as worked at a time.
    pub fn ranks_at_work(self, ranks: &[RankReport], bubble: Option<&Bubble>) -> usize {
        let Some(first) = ranks.first() else { return 1 };
        let here = ranks.iter().filter(|rank| rank.host == first.host && self.of(rank).is_some());
        let (own, others): (Vec<usize>, Vec<usize>) =
            here.map(|rank| rank.place.1).partition(|&stage| stage == first.place.1);
        let stages = ranks.iter().map(|rank| rank.place.1).max().unwrap_or(0) + 1;
        let besides = bubble.map_or(0, |bubble| bubble.stages_at_work[self as usize] - 1);
        (own.len() + (others.len() * besides).div_ceil((stages - 1).max(1))).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks of some replicas of which `at_work` made steps without a prompt.
    fn ranks(replicas: usize, at_work: usize, stages: usize, tp: usize) -> Vec<RankReport> {
        let rank = |rank: usize| {
            let place = (rank / (stages * tp), rank / tp % stages, rank % tp);
            let decode = (place.0 < at_work).then(StepReport::default);
            RankReport { rank, place, decode, ..RankReport::default() }
        };
        (0..replicas * stages * tp).map(rank).collect()
    }

    fn bubble(stages_at_work: usize) -> Bubble {
        Bubble { wall_s: 1.0, steps: 1, micro_batches: 1, stages_at_work: [1, stages_at_work] }
    }

    #[test]
    fn a_limit_is_shared_by_the_ranks_that_work_at_a_time() {
        let at_work =
            |ranks: &[RankReport], bubble: Option<Bubble>| Kind::Decode.ranks_at_work(ranks, bubble.as_ref());
        assert_eq!(at_work(&ranks(1, 1, 1, 3), None), 3, "a tensor-parallel group");
        assert_eq!(at_work(&ranks(2, 1, 1, 2), None), 2, "one request on two replicas");
        assert_eq!(at_work(&ranks(2, 2, 1, 2), None), 4, "two requests on two replicas");
        assert_eq!(at_work(&ranks(1, 1, 2, 2), Some(bubble(1))), 2, "one stage at a time");
        assert_eq!(at_work(&ranks(1, 1, 4, 2), Some(bubble(2))), 4, "two stages of four");
        assert_eq!(at_work(&ranks(1, 0, 1, 1), None), 1, "nobody");
        let mut hosts = ranks(1, 1, 2, 2);
        hosts[2..].iter_mut().for_each(|rank| rank.host = "other".into());
        assert_eq!(at_work(&hosts, Some(bubble(2))), 2, "the other stage is elsewhere");
    }

    #[test]
    fn a_limit_is_divided_by_no_more_threads_than_have_cores() {
        assert_eq!(Share::new(2, 2, 8), Share { own: 2, all: 4 });
        assert_eq!(Share::new(1, 3, 2), Share { own: 1, all: 1 }, "they take turns");
        assert_eq!(Share::new(4, 1, 2), Share { own: 2, all: 2 });
    }

    #[test]
    fn a_fraction_is_of_the_limit_that_takes_longer() {
        let limits = Limits { bytes_per_s: 10.0, flops_per_s: 100.0 };
        let fraction = |bytes, flops| limits.fraction(Work { flops, bytes }, Duration::from_secs(2));
        assert_eq!((fraction(10, 0), fraction(10, 400), fraction(5, 100)), (0.5, 2.0, 0.5));
    }
}
