//! What `--stats` and `--json` tell of a run.

mod axes;
mod limits;
mod memory;
mod steps;

use comfy_table::{CellAlignment, Table, presets};
use engine::{Engine, EngineError, ExpertReport, Plan, RankReport, Timing, peak_rss_bytes};
use serde_json::{Value, json};

use axes::Axes;
pub use limits::Limits;
use steps::Steps;

/// A number of bytes for people. From a gigabyte on, to the megabyte.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut x, mut unit) = (n as f64, 0);
    while x >= 1000.0 && unit + 1 < UNITS.len() {
        x /= 1000.0;
        unit += 1;
    }
    let digits = [0, 1, 1, 3, 3][unit];
    format!("{x:.digits$} {}", UNITS[unit])
}

/// What a run was.
pub struct Stats {
    load_s: f64,
    timing: Timing,
    threads_per_rank: usize,
    is_on_gpus: bool,
    plan: Plan,
    ranks: Vec<RankReport>,
    axes: Axes,
    peak_rss_bytes: u64,
    steps: Option<Steps>,
}

impl Stats {
    /// Asks the ranks. `breakdown`: also where the time of a step went, for which the limits of this machine are measured, in
    /// a second or two.
    pub fn collect(engine: &mut Engine, breakdown: bool) -> Result<Self, EngineError> {
        let ranks = engine.reports()?;
        Ok(Stats {
            // Before the limits are measured, which takes a buffer of its own.
            peak_rss_bytes: peak_rss_bytes(),
            steps: breakdown.then(|| Steps::new(&ranks, engine)).transpose()?,
            load_s: engine.load_time().as_secs_f64(),
            timing: engine.timing(),
            threads_per_rank: engine.threads_per_rank(),
            is_on_gpus: engine.is_on_gpus(),
            plan: engine.plan().clone(),
            axes: Axes::new(engine, &ranks)?,
            ranks,
        })
    }

    /// The `parallel` object of `--json`.
    pub fn parallel(&self) -> Value {
        let mesh = self.plan.mesh;
        let sp = self.plan.layout.sequence_parallel;
        json!({ "tp": mesh.tp, "pp": mesh.pp, "dp": mesh.dp, "ep": mesh.ep, "sp": sp })
    }

    /// What was counted of experts, if the model has any.
    pub fn experts(&self) -> Option<&ExpertReport> {
        self.axes.experts.as_ref()
    }

    /// The `stats` object of `--json`.
    pub fn json(&self) -> Value {
        let rank = |r: &RankReport| {
            json!({
                "rank": r.rank,
                "dp_rank": r.place.0,
                "pp_rank": r.place.1,
                "tp_rank": r.place.2,
                "host": r.host,
                "device": r.device,
                "layers": [r.layers.0, r.layers.1],
                "query_heads": r.query_heads,
                "kv_heads": r.kv_heads,
                "weight_bytes": r.weight_bytes,
                "packed_bytes": r.packed_bytes,
                "kv_cache_bytes": r.kv_cache_bytes,
                "kv_bytes_per_token": r.kv_bytes_per_token,
                "kv_replicated_bytes_per_token": r.kv_replicated_bytes_per_token,
                "all_reduce_calls": r.all_reduce_calls,
                "all_reduce_bytes": r.all_reduce_bytes,
                "all_reduce_s": r.all_reduce_s,
                "vocab_collective_calls": r.vocab_collective_calls,
                "sent_bytes": r.sent_bytes,
                "busy_s": r.busy_s,
                "activation_bytes": r.activation_bytes,
                "scratch_bytes": r.scratch_bytes,
                "peak_rss_bytes": r.peak_rss_bytes,
            })
        };
        let parts = |of: fn(&Steps) -> Value| self.steps.as_ref().map_or(json!([]), of);
        json!({
            "load_s": self.load_s,
            "ttft_ms": self.timing.time_to_first_token.as_secs_f64() * 1e3,
            "prefill_tokens_per_s": rate(self.timing.prefill),
            "decode_tokens_per_s": rate(self.timing.decode),
            "peak_rss_bytes": self.peak_rss_bytes,
            "threads_per_rank": self.threads_per_rank,
            "breakdown": parts(Steps::decode_json),
            "prefill_breakdown": parts(Steps::prefill_json),
            "steps": self.steps.as_ref().map(Steps::json),
            "bubble": self.axes.bubble_json(&self.plan, &self.ranks),
            "sequence_parallel": self.axes.savings_json(),
            "context_parallel": self.axes.context_json(&self.plan, &self.ranks),
            "experts": self.axes.experts_json(&self.plan),
            "ranks": self.ranks.iter().map(rank).collect::<Vec<_>>(),
        })
    }

    /// What the ranks are.
    fn hardware(&self) -> String {
        let ranks = count(self.ranks.len(), "rank");
        match self.is_on_gpus {
            true => format!("{ranks} on {}", self.ranks[0].device),
            false => format!("{ranks} × {}", count(self.threads_per_rank, "thread")),
        }
    }

    /// The same for people.
    pub fn table(&self) -> String {
        let show = |rate: Option<f64>| rate.map_or("-".into(), |r| format!("{r:.1} tokens/s"));
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([
            "rank",
            "dp·pp·tp",
            "layers",
            "query heads",
            "KV heads",
            "all-reduces",
            "of bytes",
            "waiting s",
            "sent",
            "busy s",
        ]);
        // One rank has nobody to add up with.
        let if_shared = |text: String| if self.plan.mesh.tp > 1 { text } else { "-".into() };
        for r in &self.ranks {
            table.add_row([
                r.rank.to_string(),
                format!("{}·{}·{}", r.place.0, r.place.1, r.place.2),
                format!("{}–{}", r.layers.0, r.layers.1 - 1),
                r.query_heads.to_string(),
                r.kv_heads.to_string(),
                if_shared(r.all_reduce_calls.to_string()),
                if_shared(bytes(r.all_reduce_bytes)),
                if_shared(format!("{:.3}", r.all_reduce_s)),
                bytes(r.sent_bytes),
                format!("{:.3}", r.busy_s),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let first = format!(
            "{} · load {:.2} s · first token {:.1} ms · prefill {} · decode {} · peak memory {}",
            self.hardware(),
            self.load_s,
            self.timing.time_to_first_token.as_secs_f64() * 1e3,
            show(rate(self.timing.prefill)),
            show(rate(self.timing.decode)),
            bytes(self.peak_rss_bytes),
        );
        let axes = self.axes.lines(&self.plan, &self.ranks);
        let memory = memory::table(&self.ranks, self.plan.mesh.dp);
        let steps = self.steps.as_ref().map_or(String::new(), Steps::tables);
        format!(
            "{first}\n{table}\n(all-reduces, their bytes and what was sent are of one forward pass; sent: activations and experts' tokens, besides the \
             all-reduces)\n{memory}\n{axes}{steps}"
        )
    }
}

/// A number of things in words.
pub fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Tokens per second, if there were any.
fn rate((tokens, seconds): (usize, f64)) -> Option<f64> {
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gigabytes_are_told_to_the_megabyte() {
        let told = [999, 1_500, 68_900_000, 1_236_400_000].map(bytes);
        assert_eq!(told, ["999 B", "1.5 kB", "68.9 MB", "1.236 GB"]);
    }
}
