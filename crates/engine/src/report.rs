//! What one rank holds and has spent.

use std::collections::BTreeMap;
use std::time::Duration;

use collective::Coordinates;
use model::parallel::ExpertCounts;
use serde::{Deserialize, Serialize};
use tensor::{OpCost, Part, PartTimes};

/// What one rank holds and has spent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// The rank.
    pub rank: usize,
    /// Its replica, stage, and place in its tensor-parallel group.
    pub place: (usize, usize, usize),
    /// The host that it runs on.
    pub host: String,
    /// Its layers: the first, and the one behind the last.
    pub layers: (usize, usize),
    /// Its query heads.
    pub query_heads: usize,
    /// The KV heads that they read.
    pub kv_heads: usize,
    /// Elements times stored type.
    pub weight_bytes: u64,
    /// What packed weights take.
    pub packed_bytes: u64,
    /// What its KV cache takes.
    pub kv_cache_bytes: u64,
    /// What one token takes in it.
    pub kv_bytes_per_token: u64,
    /// What it would take if no ranks shared their caches.
    pub kv_replicated_bytes_per_token: u64,
    /// All-reduces of one forward pass.
    pub all_reduce_calls: u64,
    /// Bytes that it contributed to those.
    pub all_reduce_bytes: u64,
    /// Seconds in all-reduces since the start.
    pub all_reduce_s: f64,
    /// Exchanges of embedding rows, sums and candidates for one forward pass and its choice.
    pub vocab_collective_calls: u64,
    /// Bytes that it sent to single ranks for one forward pass: activations, tokens for experts.
    pub sent_bytes: u64,
    /// What it has counted of its layers' experts since the last report, by layer.
    pub experts: Vec<(usize, ExpertCounts)>,
    /// Seconds at work, not waiting for the stage before, since the last call of the engine began.
    pub busy_s: f64,
    /// Seconds of the all-reduce of one row, where that was measured.
    pub row_all_reduce_s: Option<f64>,
    /// The most that activations took at a time, in bytes.
    pub activation_bytes: u64,
    /// The most that operations took for themselves at a time, in bytes.
    pub scratch_bytes: u64,
    /// The most memory that its process has had, in bytes; 0 where the system doesn't say.
    pub peak_rss_bytes: u64,
    /// Where the time of the last call's last step with a prompt went.
    pub prefill: Option<StepReport>,
    /// Where that of its median step without a prompt went.
    pub decode: Option<StepReport>,
    /// Steps without a prompt in that call.
    pub decode_steps: usize,
    /// Seconds of all parts of those.
    pub decode_s: f64,
}

/// Where a step's time went on a rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Tokens of the step.
    pub rows: usize,
    /// Its parts that took time, in the order of [`Part::ALL`]. Together they are the step and what the rank did to
    /// get to it from the one before.
    pub parts: Vec<PartReport>,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartReport {
    /// The part.
    pub part: Part,
    /// How long it took.
    pub time: Duration,
    /// What of that was waiting for other ranks, as far as the transport knows.
    pub waited: Duration,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written, and sent to other ranks.
    pub bytes: u64,
}

impl StepReport {
    pub(crate) fn new(times: &PartTimes, costs: &BTreeMap<Part, OpCost>, rows: usize) -> Self {
        let of = |part: Part| {
            let (time, cost) = (times.of(part), costs.get(&part).copied().unwrap_or_default());
            let (flops, bytes) = (cost.flops, cost.bytes());
            PartReport { part, time: time.time, waited: time.waited, flops, bytes }
        };
        let mut parts: Vec<PartReport> = Vec::new();
        for part in Part::ALL.into_iter().filter(|&part| part != Part::Idle).map(of) {
            match parts.last_mut().filter(|before| before.name() == part.name()) {
                Some(before) => before.add(part),
                None if part.time.is_zero() => {}
                None => parts.push(part),
            }
        }
        StepReport { rows, parts }
    }

    /// A step's way through the stages of the first replica, by their first ranks: the last with a prompt (`of` gives
    /// [`RankReport::prefill`]), or the median of those without.
    pub fn of_first_ranks(
        reports: &[RankReport],
        of: impl Fn(&RankReport) -> &Option<StepReport>,
    ) -> Option<StepReport> {
        let first = reports.iter().filter(|report| report.place.0 == 0 && report.place.2 == 0);
        StepReport::through(first.filter_map(|report| of(report).as_ref()))
    }

    fn through<'a>(stages: impl Iterator<Item = &'a StepReport>) -> Option<StepReport> {
        stages.cloned().reduce(|mut all, stage| {
            for part in stage.parts {
                match all.parts.iter_mut().find(|p| p.part == part.part) {
                    Some(sum) => sum.add(part),
                    None => all.parts.push(part),
                }
            }
            let place = |part: &PartReport| Part::ALL.iter().position(|&p| p == part.part);
            all.parts.sort_by_key(place);
            all
        })
    }

    /// How long all parts took.
    pub fn time(&self) -> Duration {
        self.parts.iter().map(|part| part.time).sum()
    }
}

impl PartReport {
    /// Its name; what is in no part of a step is `other`.
    pub fn name(&self) -> &'static str {
        match self.part {
            Part::Step | Part::Layer => "other",
            part => part.name(),
        }
    }

    fn add(&mut self, more: PartReport) {
        self.time += more.time;
        self.waited += more.waited;
        self.flops += more.flops;
        self.bytes += more.bytes;
    }
}

impl RankReport {
    /// Its place in the mesh.
    pub fn coordinates(&self) -> Coordinates {
        Coordinates { dp: self.place.0, pp: self.place.1, tp: self.place.2 }
    }
}
