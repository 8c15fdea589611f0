//! What sequence parallelism saves.

use model::KeptAs;
use model::parallel::even_rows;
use tensor::{KvDType, OpCost};

use crate::cost::cost_of_step;
use crate::{EngineError, Plan};

/// What sequence parallelism saves one rank in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Savings {
    /// Tokens of the step.
    pub tokens: usize,
    /// Norms and residual adds, done once per rank.
    pub replicated: OpCost,
    /// Done once per token.
    pub split: OpCost,
    /// Bytes of the residual stream, without and with.
    pub stream_bytes: (u64, u64),
}

impl Savings {
    /// Of a step of `tokens` tokens, on rank 0; `None` without sequence parallelism.
    pub(crate) fn of_step(
        plan: &Plan,
        kept: KeptAs,
        kv_dtype: KvDType,
        tokens: usize,
    ) -> Result<Option<Self>, EngineError> {
        if !plan.layout.sequence_parallel {
            return Ok(None);
        }
        let meta = plan.step_alone(0, tokens);
        let cost = |sequence_parallel| -> Result<OpCost, EngineError> {
            let mut layout = plan.layout.clone();
            layout.sequence_parallel = sequence_parallel;
            let cost = cost_of_step(&layout, &plan.stages[0], 0, kept, kv_dtype, &meta)?;
            let mut sum = OpCost::default();
            ["norm", "add", "add_norm"].iter().filter_map(|op| cost.ops.get(op)).for_each(|op| sum += *op);
            Ok(sum)
        };
        let row = (plan.layout.config.hidden_size * size_of::<f32>()) as u64;
        let own = even_rows(tokens, plan.mesh.tp)[0] as u64;
        Ok(Some(Savings {
            tokens,
            replicated: cost(false)?,
            split: cost(true)?,
            stream_bytes: (tokens as u64 * row, own * row),
        }))
    }
}
