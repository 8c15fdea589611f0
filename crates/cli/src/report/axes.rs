//! What each axis of a split gained and cost: a line for people, a value for `--json`.

use engine::{Bubble, Engine, EngineError, ExpertReport, Plan, RankReport, Savings};
use serde_json::{Value, json};

use super::bytes;

/// The step for which the savings of sequence parallelism are told.
const SAVINGS_TOKENS: usize = 512;

/// What is known of the axes after a run.
pub struct Axes {
    bubble: Option<Bubble>,
    savings: Option<Savings>,
    pub experts: Option<ExpertReport>,
}

impl Axes {
    pub fn new(engine: &Engine, ranks: &[RankReport]) -> Result<Self, EngineError> {
        Ok(Axes {
            bubble: engine.bubble(),
            savings: engine.sequence_savings(SAVINGS_TOKENS)?,
            experts: ExpertReport::new(engine.plan(), ranks),
        })
    }

    /// A line for each axis that there is something to say of.
    pub fn lines(&self, plan: &Plan, ranks: &[RankReport]) -> String {
        let bubble = self.bubble.map(|bubble| bubble_line(&bubble, plan, ranks));
        let savings = self.savings.as_ref().map(savings_line);
        let experts = self.experts.as_ref().map(|experts| expert_lines(experts, plan));
        [bubble, savings, context_line(plan, ranks), experts].into_iter().flatten().collect()
    }

    pub fn bubble_json(&self, plan: &Plan, ranks: &[RankReport]) -> Option<Value> {
        let bubble = self.bubble?;
        let (measured, inevitable) = fractions(&bubble, plan, ranks);
        Some(json!({
            "fraction": measured,
            "formula": inevitable,
            "micro_batches": bubble.micro_batches,
            "steps": bubble.steps,
        }))
    }

    pub fn savings_json(&self) -> Option<Value> {
        let s = self.savings?;
        Some(json!({
            "tokens": s.tokens,
            "norm_and_add_flops": [s.replicated.flops, s.split.flops],
            "norm_and_add_bytes": [s.replicated.bytes(), s.split.bytes()],
            "stream_bytes": [s.stream_bytes.0, s.stream_bytes.1],
        }))
    }

    pub fn context_json(&self, plan: &Plan, ranks: &[RankReport]) -> Option<Value> {
        let (most, copies, split) = shared_kv(plan, ranks)?;
        Some(json!({
            "size": plan.layout.context_parallel(),
            "largest_size": most,
            "kv_bytes_per_token_replicated": copies,
            "kv_bytes_per_token_split": split,
        }))
    }

    pub fn experts_json(&self, plan: &Plan) -> Option<Value> {
        let mut value = self.experts.as_ref()?.to_json();
        let moved = ExpertReport::bytes_of_step(plan, 1)?;
        value["bytes_per_token"] = json!({
            "sliced": moved.sliced,
            "whole_reduced": moved.whole_reduced,
            "whole_exchanged": moved.whole_exchanged,
        });
        Some(value)
    }
}

/// The part of the time that the stages of the first replica waited, and what p stages and m micro-batches make
/// inevitable: (p − 1) / (m + p − 1).
fn fractions(bubble: &Bubble, plan: &Plan, ranks: &[RankReport]) -> (f64, f64) {
    let stages = plan.mesh.pp as f64;
    let of_stages = ranks.iter().filter(|r| r.place.0 == 0 && r.place.2 == 0);
    let busy: f64 = of_stages.map(|r| r.busy_s).sum();
    (1.0 - busy / (stages * bubble.wall_s), (stages - 1.0) / (bubble.micro_batches as f64 + stages - 1.0))
}

fn bubble_line(bubble: &Bubble, plan: &Plan, ranks: &[RankReport]) -> String {
    let (measured, inevitable) = fractions(bubble, plan, ranks);
    format!(
        "bubble: stages waited {:.1} % of the time; (p − 1) / (m + p − 1) = {:.1} % for p = {} stages and m = {} \
         micro-batches that follow each other, in {} steps\n",
        100.0 * measured,
        100.0 * inevitable,
        plan.mesh.pp,
        bubble.micro_batches,
        bubble.steps
    )
}

fn savings_line(s: &Savings) -> String {
    format!(
        "sequence parallel, a step of {} tokens on rank 0: norms and residual adds {:.2} instead of {:.2} MFLOP and {} \
         instead of {}, residual stream {} instead of {}\n",
        s.tokens,
        s.split.flops as f64 / 1e6,
        s.replicated.flops as f64 / 1e6,
        bytes(s.split.bytes()),
        bytes(s.replicated.bytes()),
        bytes(s.stream_bytes.1),
        bytes(s.stream_bytes.0),
    )
}

/// Ranks that could share a KV cache, at most, and what that makes of the bytes of a token on rank 0; nothing, where no
/// ranks read the same heads.
fn shared_kv(plan: &Plan, ranks: &[RankReport]) -> Option<(usize, u64, u64)> {
    let most = *plan.layout.context_parallel_sizes().last().filter(|&&most| most > 1)?;
    let copies = ranks.first()?.kv_replicated_bytes_per_token;
    Some((most, copies, copies.div_ceil(most as u64)))
}

fn context_line(plan: &Plan, ranks: &[RankReport]) -> Option<String> {
    let (most, copies, split) = shared_kv(plan, ranks)?;
    let now = plan.layout.context_parallel();
    Some(format!(
        "KV cache, bytes of a token on rank 0: {} with a copy on each rank that reads the same heads, {} split by position \
         over {most} of them; --decode-context-parallel-size is {now}\n",
        bytes(copies),
        bytes(split),
    ))
}

/// The experts of all layers: who had how much to do, and what travels.
fn expert_lines(experts: &ExpertReport, plan: &Plan) -> String {
    let of_rank = |rank: usize| experts.layers.iter().map(|l| l.tokens_per_rank[rank]).sum::<u64>();
    let per_rank: Vec<String> = (0..plan.mesh.tp).map(|rank| of_rank(rank).to_string()).collect();
    let mut lines = format!(
        "experts, {}: tokens per rank {}, imbalance (max / mean) {:.3}, dropped tokens {}, {} sent to experts and back\n",
        experts.form,
        per_rank.join(" "),
        experts.imbalance,
        experts.dropped_tokens,
        bytes(experts.sent_bytes),
    );
    for layer in &experts.layers {
        let counts: Vec<String> = layer.tokens_per_expert.iter().map(u64::to_string).collect();
        lines += &format!(
            "  layer {}: tokens per expert {}, imbalance {:.3}\n",
            layer.layer,
            counts.join(" "),
            layer.imbalance
        );
    }
    if let Some(moved) = ExpertReport::bytes_of_step(plan, 1).filter(|_| plan.mesh.tp > 1) {
        let reduced = moved.whole_reduced.map_or("-".into(), bytes);
        lines += &format!(
            "  between ranks, per token of a step: {} sliced, {reduced} whole and summed, {} whole and exchanged\n",
            bytes(moved.sliced),
            bytes(moved.whole_exchanged),
        );
    }
    lines
}
