//! Scoring a text: what each of its tokens is worth to the model.

use std::time::Instant;

use tensor::{KV_BLOCK, SequenceSpan, StepMeta};

use crate::bubble::Fill;
use crate::leader::Leader;
use crate::worker::{Command, Reply};
use crate::{Engine, EngineError, Timing};

impl Engine {
    /// The natural logarithm of each token's probability given those before it; `None` for the first.
    ///
    /// # Errors
    /// Token ids that can't be, a rank that fails.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<Option<f32>>, EngineError> {
        self.check_prompt(tokens, 0)?;
        let (context, blocks) = (self.plan.context(), tokens.len().div_ceil(KV_BLOCK));
        self.allocate(context.blocks_that_fit(blocks))?;
        let block_table = context.table_alone(blocks);
        let mut logprobs = vec![None];
        let started = Instant::now();
        let step_tokens = self.step_tokens(tokens.len());
        let most = if self.plan.mesh.pp == 1 { 1 } else { 2 * self.plan.mesh.pp };
        let (mut on_their_way, mut fill) = (0, Fill::default());
        let mut collect = |leader: &mut dyn Leader| -> Result<(), EngineError> {
            let Reply::Tokens(found) = leader.collect()? else { unreachable!("tokens were scored") };
            logprobs.extend(found.into_iter().map(|token| token.logprobs.map(|of| of.logprob)));
            Ok(())
        };
        // The last token's successor isn't asked for, so it needn't run.
        for start in (0..tokens.len() - 1).step_by(step_tokens) {
            if self.is_stopped() {
                break;
            }
            let end = (start + step_tokens).min(tokens.len() - 1);
            let rows = end - start;
            let block_table = block_table[..end.div_ceil(KV_BLOCK)].to_vec();
            let meta = StepMeta {
                tokens: tokens[start..end].to_vec(),
                sequences: vec![SequenceSpan { rows: 0..rows, start, block_table }],
                logit_rows: (0..rows as u32).collect(),
            };
            self.leader.issue(&Command::score(meta, &tokens[start + 1..=end]))?;
            on_their_way += 1;
            fill.issued(true);
            if on_their_way == most {
                collect(&mut *self.leader)?;
                on_their_way -= 1;
                fill.collected();
            }
        }
        for _ in 0..on_their_way {
            collect(&mut *self.leader)?;
            fill.collected();
        }
        if logprobs.len() < tokens.len() {
            return Err(EngineError::Interrupted);
        }
        self.note_bubble(started, &fill);
        self.timing =
            Timing { prefill: (tokens.len(), started.elapsed().as_secs_f64()), ..Timing::default() };
        Ok(logprobs)
    }
}
