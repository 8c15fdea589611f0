//! What `--stats` and `--json` tell of a run.

mod axes;

use comfy_table::{CellAlignment, Table, presets};
use cpu::limits;
use engine::{Engine, EngineError, ExpertReport, OpTime, Plan, RankReport, Timing, peak_rss_bytes};
use serde_json::{Value, json};

use axes::Axes;

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut x, mut unit) = (n as f64, 0);
    while x >= 1000.0 && unit + 1 < UNITS.len() {
        x /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{x:.1} {}", UNITS[unit]) }
}

/// What a run was.
pub struct Stats {
    load_s: f64,
    timing: Timing,
    threads_per_rank: usize,
    plan: Plan,
    ranks: Vec<RankReport>,
    axes: Axes,
    peak_rss_bytes: u64,
    breakdown: Vec<(OpTime, f64)>,
}

/// Bytes of the buffer by which `--stats` measures the memory: above most caches, and quick to read.
const QUICK_BUFFER_BYTES: usize = 256 << 20;

impl Stats {
    /// Asks the ranks. `breakdown`: also where the last step's time went, for which the limits of this machine are
    /// measured, in about a second.
    pub fn collect(engine: &mut Engine, breakdown: bool) -> Result<Self, EngineError> {
        let ranks = engine.reports()?;
        let ops = if breakdown { engine.breakdown()? } else { Vec::new() };
        Ok(Stats {
            // Before the limits are measured, which takes a buffer of its own.
            peak_rss_bytes: peak_rss_bytes(),
            breakdown: with_fractions(ops, engine.threads_per_rank()),
            load_s: engine.load_time().as_secs_f64(),
            timing: engine.timing(),
            threads_per_rank: engine.threads_per_rank(),
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
                "peak_rss_bytes": r.peak_rss_bytes,
            })
        };
        let op = |(op, fraction): &(OpTime, f64)| {
            json!({
                "op": op.op,
                "ms": op.time.as_secs_f64() * 1e3,
                "bytes": op.cost.bytes(),
                "flops": op.cost.flops,
                "fraction": fraction,
            })
        };
        json!({
            "load_s": self.load_s,
            "ttft_ms": self.timing.time_to_first_token.as_secs_f64() * 1e3,
            "prefill_tokens_per_s": rate(self.timing.prefill),
            "decode_tokens_per_s": rate(self.timing.decode),
            "peak_rss_bytes": self.peak_rss_bytes,
            "threads_per_rank": self.threads_per_rank,
            "breakdown": self.breakdown.iter().map(op).collect::<Vec<_>>(),
            "bubble": self.axes.bubble_json(&self.plan, &self.ranks),
            "sequence_parallel": self.axes.savings_json(),
            "context_parallel": self.axes.context_json(&self.plan, &self.ranks),
            "experts": self.axes.experts_json(&self.plan),
            "ranks": self.ranks.iter().map(rank).collect::<Vec<_>>(),
        })
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
            "weights",
            "packed",
            "KV cache",
            "KV/token",
            "all-reduces",
            "of bytes",
            "waiting s",
            "sent",
            "busy s",
        ]);
        for r in &self.ranks {
            table.add_row([
                r.rank.to_string(),
                format!("{}·{}·{}", r.place.0, r.place.1, r.place.2),
                format!("{}–{}", r.layers.0, r.layers.1 - 1),
                r.query_heads.to_string(),
                r.kv_heads.to_string(),
                bytes(r.weight_bytes),
                bytes(r.packed_bytes),
                bytes(r.kv_cache_bytes),
                bytes(r.kv_bytes_per_token),
                r.all_reduce_calls.to_string(),
                bytes(r.all_reduce_bytes),
                format!("{:.3}", r.all_reduce_s),
                bytes(r.sent_bytes),
                format!("{:.3}", r.busy_s),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let first = format!(
            "{} × {} · load {:.2} s · first token {:.1} ms · prefill {} · decode {} · peak memory {}",
            count(self.ranks.len(), "rank"),
            count(self.threads_per_rank, "thread"),
            self.load_s,
            self.timing.time_to_first_token.as_secs_f64() * 1e3,
            show(rate(self.timing.prefill)),
            show(rate(self.timing.decode)),
            bytes(self.peak_rss_bytes),
        );
        let mut ops = Table::new();
        ops.load_preset(presets::NOTHING).set_header([
            "last step on rank 0",
            "ms",
            "bytes",
            "MFLOP",
            "of the limit",
        ]);
        for (op, fraction) in &self.breakdown {
            ops.add_row([
                op.op.to_owned(),
                format!("{:.3}", op.time.as_secs_f64() * 1e3),
                bytes(op.cost.bytes()),
                format!("{:.2}", op.cost.flops as f64 / 1e6),
                format!("{:.0} %", 100.0 * fraction),
            ]);
        }
        for column in ops.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let axes = self.axes.lines(&self.plan, &self.ranks);
        format!(
            "{first}\n{table}\n(all-reduces, their bytes and what was sent are of one forward pass; sent: activations and experts' tokens, besides the \
             all-reduces)\n{axes}{ops}\n\
             (the limit is memory bandwidth or arithmetic, whichever takes longer; what lies in a cache can exceed it)"
        )
    }
}

/// How close each operation came to what this machine can do: the time that its bytes or its arithmetic need at
/// least, over the time it took. What fits in a cache can exceed the memory's rate.
fn with_fractions(ops: Vec<OpTime>, threads: usize) -> Vec<(OpTime, f64)> {
    if ops.is_empty() {
        return Vec::new();
    }
    let config = limits::LimitsConfig { repeats: 3, ..limits::LimitsConfig::new(threads) };
    let bandwidth = limits::read_bandwidth(&config, QUICK_BUFFER_BYTES) * 1e9;
    let flops = limits::fma_rate(&config) * 1e9;
    let fraction = |op: &OpTime| {
        let least = (op.cost.bytes() as f64 / bandwidth).max(op.cost.flops as f64 / flops);
        least / op.time.as_secs_f64().max(1e-9)
    };
    ops.into_iter().map(|op| (op, fraction(&op))).collect()
}

/// A number of things in words.
fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Tokens per second, if there were any.
fn rate((tokens, seconds): (usize, f64)) -> Option<f64> {
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}
