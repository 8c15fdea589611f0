//! Where the time of a step went: a table for people, arrays for `--json`.

use comfy_table::{CellAlignment, Table, presets};
use engine::{Engine, EngineError, PartReport, RankReport, StepReport, Work};
use serde_json::{Value, json};

use super::limits::{Kind, Limits, Machine};
use super::{bytes, count};

/// Milliseconds below which a part has no line of its own.
const SHOWN_MS: f64 = 0.0005;

/// The steps that are told of.
pub struct Steps {
    prefill: Option<Step>,
    decode: Option<Step>,
    /// Steps of which the decode step is the median.
    decode_steps: usize,
    /// Stages that the steps went through.
    stages: usize,
}

/// One, and what its ranks could do at most.
struct Step {
    report: StepReport,
    limits: Limits,
    ranks_at_work: usize,
}

impl Steps {
    /// The steps of a call, and the limits of this machine, which are measured in a second or two.
    ///
    /// # Errors
    /// A GPU can't be measured.
    pub fn new(ranks: &[RankReport], engine: &Engine) -> Result<Self, EngineError> {
        let (mut machine, bubble) = (Machine::of(engine)?, engine.bubble());
        let bubble = bubble.as_ref();
        let mut step = |kind: Kind| {
            let ranks_at_work = kind.ranks_at_work(ranks, bubble);
            Some(Step {
                report: StepReport::through_stages(ranks, |rank| kind.of(rank))?,
                limits: machine.of_rank(engine.threads_per_rank(), ranks_at_work),
                ranks_at_work,
            })
        };
        Ok(Steps {
            prefill: step(Kind::Prefill),
            decode: step(Kind::Decode),
            decode_steps: ranks.first().map_or(0, |rank| rank.decode_steps),
            stages: ranks.iter().map(|rank| rank.place.1 + 1).max().unwrap_or(1),
        })
    }

    /// The parts of the last step with a prompt.
    pub fn prefill_json(&self) -> Value {
        self.prefill.as_ref().map_or(json!([]), Step::parts_json)
    }

    /// The parts of the median step without one.
    pub fn decode_json(&self) -> Value {
        self.decode.as_ref().map_or(json!([]), Step::parts_json)
    }

    /// What the two steps were.
    pub fn json(&self) -> Value {
        json!({
            "prefill": self.prefill.as_ref().map(Step::json),
            "decode": self.decode.as_ref().map(Step::json),
            "decode_steps": self.decode_steps,
        })
    }

    /// Both for people.
    pub fn tables(&self) -> String {
        let median = format!("median of {}", count(self.decode_steps, "decode step"));
        let steps = [("last prefill step", &self.prefill), (&median, &self.decode)];
        let tables: Vec<String> =
            steps.iter().filter_map(|(name, step)| Some(step.as_ref()?.table(name))).collect();
        let shown = || steps.iter().filter_map(|(_, step)| step.as_ref());
        let communicates = shown().any(|step| step.report.parts.iter().any(PartReport::is_communication));
        let mut legend = format!(
            "where: {}; the limit is memory bandwidth or arithmetic, whichever takes longer, shared by the ranks of a host \
             that work at a time on cores of their own; what lies in a cache can exceed it, and so can products of whole numbers",
            if self.stages == 1 { "rank 0" } else { "a rank of each stage, one after the other" },
        );
        if communicates {
            legend += "; bytes are read and written, but of all-reduce, exchange, send and receive those that the rank gave \
                       to others (receive: got), which \"all\" leaves out";
        }
        format!("{}({legend})", tables.concat())
    }
}

impl Step {
    fn fraction(&self, part: &PartReport) -> f64 {
        self.limits.fraction(Work { flops: part.flops, bytes: part.bytes }, part.time)
    }

    fn fraction_of_all(&self) -> f64 {
        self.limits.fraction(self.report.work(), self.report.time())
    }

    fn json(&self) -> Value {
        let Step { report, limits, ranks_at_work } = self;
        let work = report.work();
        json!({
            "tokens": report.rows,
            "ms": ms(report.time()),
            "bytes": work.bytes,
            "flops": work.flops,
            "fraction": self.fraction_of_all(),
            "waited_for_stage_ms": ms(report.waited_for_stage),
            "ranks_at_work": ranks_at_work,
            "rank_limit": { "gb_s": limits.bytes_per_s / 1e9, "gflop_s": limits.flops_per_s / 1e9 },
        })
    }

    fn parts_json(&self) -> Value {
        let part = |part: &PartReport| {
            json!({
                "op": part.name(),
                "ms": ms(part.time),
                "bytes": part.bytes,
                "flops": part.flops,
                "fraction": self.fraction(part),
                "waited_ms": ms(part.waited),
            })
        };
        self.report.parts.iter().map(part).collect()
    }

    fn table(&self, name: &str) -> String {
        let mut table = Table::new();
        let first = format!("{name}, {}", count(self.report.rows, "token"));
        table.load_preset(presets::NOTHING);
        table.set_header([&*first, "ms", "share", "waiting ms", "bytes", "MFLOP", "of the limit"]);
        let (all, work) = (ms(self.report.time()), self.report.work());
        let if_any = |there: bool, text: String| if there { text } else { "-".into() };
        let waited = |time: std::time::Duration| if_any(!time.is_zero(), format!("{:.3}", ms(time)));
        let mflop = |flops: u64| format!("{:.2}", flops as f64 / 1e6);
        let percent = |fraction: f64| format!("{:.0} %", 100.0 * fraction);
        for part in self.report.parts.iter().filter(|part| ms(part.time) >= SHOWN_MS) {
            // What moves between ranks is limited by neither.
            let computes = !part.is_communication() && (part.bytes > 0 || part.flops > 0);
            table.add_row([
                part.name().to_owned(),
                format!("{:.3}", ms(part.time)),
                format!("{:.1} %", 100.0 * ms(part.time) / all),
                waited(part.waited),
                if_any(part.bytes > 0, bytes(part.bytes)),
                if_any(computes, mflop(part.flops)),
                if_any(computes, percent(self.fraction(part))),
            ]);
        }
        table.add_row([
            "all".to_owned(),
            format!("{all:.3}"),
            "100.0 %".into(),
            waited(self.report.parts.iter().map(|part| part.waited).sum()),
            bytes(work.bytes),
            mflop(work.flops),
            percent(self.fraction_of_all()),
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let between = match self.report.waited_for_stage {
            none if none.is_zero() => String::new(),
            time => {
                format!("(stages waited {:.3} ms for those before them, in none of these rows)\n", ms(time))
            }
        };
        format!("{table}\n{between}")
    }
}

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
