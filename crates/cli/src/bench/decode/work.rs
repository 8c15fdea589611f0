//! What a point must do at least, whatever the split: the real forward pass, run on a device that only counts.

use engine::{Engine, cost_of_step};
use model::{Layout, ModelError, Stage, TpPlan};
use tensor::{KV_BLOCK, OpCost, SequenceSpan, StepMeta};

use super::sweep::Point;

/// What all replicas together do.
pub struct Work {
    /// FLOPs of all prompts.
    pub prefill_flops: f64,
    /// Bytes of weights, keys and values that are read for one more token of each sequence.
    pub decode_bytes: f64,
    /// FLOPs for one more token of each sequence.
    pub decode_flops: f64,
}

impl Work {
    /// Counts it. Decode is that in the middle of the tokens to come.
    pub fn of(engine: &Engine, point: &Point) -> Result<Work, ModelError> {
        let layout = Layout::new(engine.config().clone(), &[1.0], &TpPlan::auto())?;
        let stage = Stage::whole(&layout.config);
        let cost = |meta: &StepMeta| -> Result<OpCost, ModelError> {
            Ok(cost_of_step(&layout, &stage, 0, engine.kept_as(), engine.kv_cache_dtype(), meta)?.total())
        };
        let prefill = cost(&step(1, 0, point.prompt))?;
        let (dp, middle) = (engine.plan().mesh.dp, point.prompt + point.generate / 2);
        let mut work = Work {
            prefill_flops: point.batch as f64 * prefill.flops as f64,
            decode_bytes: 0.0,
            decode_flops: 0.0,
        };
        // Each replica reads the weights for its own sequences.
        for replica in 0..dp.min(point.batch) {
            let decode = cost(&step((point.batch - replica).div_ceil(dp), middle, 1))?;
            work.decode_bytes += (decode.weight_bytes + decode.kv_bytes) as f64;
            work.decode_flops += decode.flops as f64;
        }
        Ok(work)
    }
}

/// A step of `rows` tokens of each of `batch` sequences, from position `start` on.
fn step(batch: usize, start: usize, rows: usize) -> StepMeta {
    let blocks = (start + rows).div_ceil(KV_BLOCK);
    let sequence = |s: usize| SequenceSpan {
        rows: s * rows..(s + 1) * rows,
        start,
        block_table: (s * blocks..(s + 1) * blocks).map(|block| block as u32).collect(),
    };
    StepMeta {
        tokens: vec![0; batch * rows],
        sequences: (0..batch).map(sequence).collect(),
        logit_rows: (1..=batch).map(|s| (s * rows) as u32 - 1).collect(),
    }
}
