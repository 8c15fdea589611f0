//! What one rank holds and has spent.

use std::collections::BTreeMap;
use std::time::Duration;

use collective::{CollectiveStats, Coordinates};
use model::parallel::ExpertCounts;
use serde::{Deserialize, Serialize};
use tensor::{Category, DeviceMemory, OpCost, Part, PartTime, PartTimes};

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
    /// What it computes on: `cpu`, or a GPU's name.
    pub device: String,
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
    /// Seconds in all-reduces since the start. On a GPU: in those of the last call, if the times of parts are wanted, else 0.
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
    /// What its GPU has now; `None` on the processor.
    pub gpu: Option<GpuRoom>,
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

/// A GPU's memory, as one of the ranks that share it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRoom {
    /// All of it, in bytes.
    pub total: u64,
    /// Bytes that nobody has.
    pub free: u64,
    /// Ranks of its host that share it.
    pub ranks: usize,
}

impl GpuRoom {
    /// Of a device with a memory of its own.
    pub(crate) fn of(memory: &DeviceMemory) -> Option<GpuRoom> {
        let (total, free) = memory.total.zip(memory.free)?;
        Some(GpuRoom { total, free, ranks: memory.ranks.max(1) })
    }
}

/// What a group has done between two moments.
pub(crate) fn difference(after: CollectiveStats, before: CollectiveStats) -> CollectiveStats {
    CollectiveStats {
        waits: after.waits - before.waits,
        waited: after.waited - before.waited,
        waiting_since: after.waiting_since,
        all_reduce_calls: after.all_reduce_calls - before.all_reduce_calls,
        all_reduce_bytes: after.all_reduce_bytes - before.all_reduce_bytes,
        all_reduce_s: after.all_reduce_s - before.all_reduce_s,
        other_calls: after.other_calls - before.other_calls,
        sent_bytes: after.sent_bytes - before.sent_bytes,
    }
}

/// Where a step's time went on a rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Tokens of the step.
    pub rows: usize,
    /// Its parts that took time, in the order of [`Part::ALL`]. Together they are the step and what the rank did to
    /// get to it from the one before, but for what it waited for the stage before.
    pub parts: Vec<PartReport>,
    /// How long it waited for the rows of the stage before, which was at work meanwhile.
    pub waited_for_stage: Duration,
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
    /// Bytes read and written; of communication, those that the rank gave to others, or got, if it only got some.
    pub bytes: u64,
}

/// What the parts of a step that compute have to do together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

impl StepReport {
    pub(crate) fn new(times: &PartTimes, costs: &BTreeMap<Part, OpCost>, rows: usize) -> Self {
        let of = |part: Part| {
            let (PartTime { time, waited, bytes, .. }, cost) =
                (times.of(part), costs.get(&part).copied().unwrap_or_default());
            match part {
                // The stage before counts that as its own.
                Part::Receive => {
                    let time = time.saturating_sub(waited);
                    PartReport { part, time, waited: Duration::ZERO, flops: 0, bytes }
                }
                part if part.category() == Category::Communication => {
                    PartReport { part, time, waited, flops: 0, bytes }
                }
                part => PartReport { part, time, waited, flops: cost.flops, bytes: cost.bytes() },
            }
        };
        let mut parts: Vec<PartReport> = Vec::new();
        for part in Part::ALL.into_iter().filter(|&part| part != Part::Idle).map(of) {
            match parts.last_mut().filter(|before| before.name() == part.name()) {
                Some(before) => before.add(part),
                None if times.of(part.part).calls == 0 => {}
                None => parts.push(part),
            }
        }
        StepReport { rows, parts, waited_for_stage: times.of(Part::Receive).waited }
    }

    /// A step's way through the stages of the first replica: the last with a prompt (`of` gives
    /// [`RankReport::prefill`]), or the median of those without. A stage is told of by its first rank, or by the first that
    /// took rows over: the others wait for that one, and what of it is waiting for the stage before they don't know.
    pub fn through_stages(
        reports: &[RankReport],
        of: impl Fn(&RankReport) -> &Option<StepReport>,
    ) -> Option<StepReport> {
        let mut stages: BTreeMap<usize, Vec<&StepReport>> = BTreeMap::new();
        for report in reports.iter().filter(|report| report.place.0 == 0) {
            stages.entry(report.place.1).or_default().extend(of(report));
        }
        let takes_over = |step: &&&StepReport| step.parts.iter().any(|part| part.part == Part::Receive);
        let stages = stages.values().filter_map(|ranks| ranks.iter().find(takes_over).or(ranks.first()));
        stages.map(|&stage| stage.clone()).reduce(StepReport::then)
    }

    /// With another stage's behind it.
    fn then(mut self, stage: StepReport) -> StepReport {
        for part in stage.parts {
            match self.parts.iter_mut().find(|p| p.part == part.part) {
                Some(sum) => sum.add(part),
                None => self.parts.push(part),
            }
        }
        self.parts.sort_by_key(|part| Part::ALL.iter().position(|&p| p == part.part));
        self.waited_for_stage += stage.waited_for_stage;
        self
    }

    /// How long all parts took.
    pub fn time(&self) -> Duration {
        self.parts.iter().map(|part| part.time).sum()
    }

    /// What all parts but communication have to do.
    pub fn work(&self) -> Work {
        let computes = self.parts.iter().filter(|part| !part.is_communication());
        computes.fold(Work::default(), |sum, part| Work {
            flops: sum.flops + part.flops,
            bytes: sum.bytes + part.bytes,
        })
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

    /// Whether its bytes are those of communication.
    pub fn is_communication(&self) -> bool {
        self.part.category() == Category::Communication
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn report(place: (usize, usize, usize), parts: &[(Part, u32, u32)]) -> RankReport {
        let mut times = PartTimes::default();
        for &(part, ms, waited_ms) in parts {
            *times.of_mut(part) = PartTime { calls: 1, time: ms * MS, waited: waited_ms * MS, bytes: 8 };
        }
        let ffn = OpCost { flops: 5, weight_bytes: 7, ..OpCost::default() };
        let step = StepReport::new(&times, &BTreeMap::from([(Part::Ffn, ffn)]), 1);
        RankReport { place, decode: Some(step), ..RankReport::default() }
    }

    #[test]
    fn what_a_stage_waits_for_the_one_before_is_not_counted_again() {
        let reports = [
            report((0, 0, 0), &[(Part::Ffn, 20, 0), (Part::Send, 1, 0)]),
            report((0, 1, 0), &[(Part::Receive, 22, 21), (Part::Ffn, 10, 0)]),
        ];
        let step = StepReport::through_stages(&reports, |rank| &rank.decode).unwrap();
        assert_eq!((step.time(), step.waited_for_stage), (32 * MS, 21 * MS));
        assert_eq!(step.work(), Work { flops: 10, bytes: 14 }, "what moved is no work");
    }

    #[test]
    fn a_stage_is_told_of_by_a_rank_that_took_rows_over() {
        // The only row of the step came to the second rank, and the first waited for that.
        let reports = [
            report((0, 0, 0), &[(Part::Ffn, 20, 0)]),
            report((0, 0, 1), &[(Part::Ffn, 20, 0)]),
            report((0, 1, 0), &[(Part::Exchange, 22, 22), (Part::Ffn, 10, 0)]),
            report((0, 1, 1), &[(Part::Receive, 22, 21), (Part::Ffn, 10, 0)]),
            report((1, 0, 0), &[(Part::Ffn, 50, 0)]),
        ];
        let step = StepReport::through_stages(&reports, |rank| &rank.decode).unwrap();
        assert_eq!(step.time(), 31 * MS);
    }

    #[test]
    fn a_part_that_took_no_time_is_told_of_and_one_that_was_not_there_is_not() {
        // Of a GPU's work two clocks tell, and one may say that a part ended before the other says that it began.
        let report = report((0, 0, 0), &[(Part::Ffn, 20, 0), (Part::Norm, 0, 0)]);
        let parts: Vec<Part> = report.decode.unwrap().parts.iter().map(|part| part.part).collect();
        assert_eq!(parts, [Part::Norm, Part::Ffn]);
    }
}
