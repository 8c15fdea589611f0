//! Where the time of a step went: a table for people, arrays for `--json`.

use comfy_table::{CellAlignment, Table, presets};
use cpu::limits;
use engine::{PartReport, RankReport, StepReport, cpus};
use serde_json::{Value, json};

use super::{bytes, count};

/// Bytes of the buffer by which `--stats` measures the memory: above most caches, and quick to read.
const QUICK_BUFFER_BYTES: usize = 256 << 20;
/// Milliseconds below which a part has no line of its own.
const SHOWN_MS: f64 = 0.0005;

/// The steps that are told of.
pub struct Steps {
    prefill: Option<StepReport>,
    decode: Option<StepReport>,
    /// Steps of which the decode step is the median.
    decode_steps: usize,
    /// Stages that the steps went through.
    stages: usize,
    limits: Limits,
}

/// What this machine can do at most.
struct Limits {
    bytes_per_s: f64,
    flops_per_s: f64,
}

impl Limits {
    /// Of one of the ranks of this host while all are at work, each with some threads.
    fn measure(threads: usize, ranks: usize) -> Self {
        let all = (threads * ranks).min(cpus::available().len()).max(1);
        // On cores of their own: this thread is bound to one, and those that it starts would share that.
        let config = limits::LimitsConfig { repeats: 3, ..crate::bench::limits::config(all) };
        let of_rank = 1e9 / ranks.max(1) as f64;
        Limits {
            bytes_per_s: limits::read_bandwidth(&config, QUICK_BUFFER_BYTES) * of_rank,
            flops_per_s: limits::fma_rate(&config) * of_rank,
        }
    }

    /// The time that a part's bytes or its arithmetic need at least, over the time it took. What fits in a cache can
    /// exceed the memory's rate.
    fn fraction(&self, part: &PartReport) -> f64 {
        let least = (part.bytes as f64 / self.bytes_per_s).max(part.flops as f64 / self.flops_per_s);
        least / part.time.as_secs_f64().max(1e-9)
    }
}

impl Steps {
    /// The steps of a call, and the limits of this machine, which are measured in about a second.
    pub fn new(ranks: &[RankReport], threads_per_rank: usize) -> Self {
        let host = ranks.first().map(|rank| &rank.host);
        let ranks_here = ranks.iter().filter(|rank| Some(&rank.host) == host).count();
        Steps {
            prefill: StepReport::of_first_ranks(ranks, |rank| &rank.prefill),
            decode: StepReport::of_first_ranks(ranks, |rank| &rank.decode),
            decode_steps: ranks.first().map_or(0, |rank| rank.decode_steps),
            stages: ranks.iter().map(|rank| rank.place.1 + 1).max().unwrap_or(1),
            limits: Limits::measure(threads_per_rank, ranks_here),
        }
    }

    /// The parts of the last step with a prompt.
    pub fn prefill_json(&self) -> Value {
        self.parts_json(self.prefill.as_ref())
    }

    /// The parts of the median step without one.
    pub fn decode_json(&self) -> Value {
        self.parts_json(self.decode.as_ref())
    }

    /// What the two steps were.
    pub fn json(&self) -> Value {
        let step = |step: &StepReport| json!({ "tokens": step.rows, "ms": ms(step.time()) });
        json!({
            "prefill": self.prefill.as_ref().map(step),
            "decode": self.decode.as_ref().map(step),
            "decode_steps": self.decode_steps,
        })
    }

    fn parts_json(&self, step: Option<&StepReport>) -> Value {
        let part = |part: &PartReport| {
            json!({
                "op": part.name(),
                "ms": ms(part.time),
                "bytes": part.bytes,
                "flops": part.flops,
                "fraction": self.limits.fraction(part),
                "waited_ms": ms(part.waited),
            })
        };
        step.iter().flat_map(|step| &step.parts).map(part).collect()
    }

    /// Both for people.
    pub fn tables(&self) -> String {
        let median = format!("median of {}", count(self.decode_steps, "decode step"));
        let steps = [("last prefill step", &self.prefill), (&median, &self.decode)];
        let tables: Vec<String> =
            steps.iter().filter_map(|(name, step)| Some(self.table(name, step.as_ref()?))).collect();
        format!(
            "{}(where: {}; the limit is memory bandwidth or arithmetic, whichever takes longer, shared by the ranks of a \
             host; what lies in a cache can exceed it, and so can products of whole numbers)",
            tables.concat(),
            if self.stages == 1 { "rank 0" } else { "the first rank of each stage, one after the other" },
        )
    }

    fn table(&self, name: &str, step: &StepReport) -> String {
        let mut table = Table::new();
        let first = format!("{name}, {}", count(step.rows, "token"));
        table.load_preset(presets::NOTHING);
        table.set_header([&*first, "ms", "share", "waiting ms", "bytes", "MFLOP", "of the limit"]);
        let all = ms(step.time());
        for part in step.parts.iter().filter(|part| ms(part.time) >= SHOWN_MS) {
            let costs = part.bytes > 0 || part.flops > 0;
            let if_any = |there: bool, text: String| if there { text } else { "-".into() };
            table.add_row([
                part.name().to_owned(),
                format!("{:.3}", ms(part.time)),
                format!("{:.1} %", 100.0 * ms(part.time) / all),
                if_any(!part.waited.is_zero(), format!("{:.3}", ms(part.waited))),
                if_any(costs, bytes(part.bytes)),
                if_any(costs, format!("{:.2}", part.flops as f64 / 1e6)),
                if_any(costs, format!("{:.0} %", 100.0 * self.limits.fraction(part))),
            ]);
        }
        table.add_row(["all", &format!("{all:.3}")]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{table}\n")
    }
}

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
