//! How much memory a step takes on a GPU, found out by running the largest one.

use tensor::{KV_BLOCK, SequenceSpan, StepMeta};

use crate::places::Place;
use crate::worker::Command;
use crate::{Engine, EngineError};

impl Engine {
    /// Asks the ranks of other processes what their GPUs have, so that no cache is larger than the smallest of them allows.
    ///
    /// # Errors
    /// A rank is missing.
    pub(crate) fn see_other_gpus(&mut self) -> Result<(), EngineError> {
        if !self.is_on_gpus() {
            return Ok(());
        }
        // This one is rank 0.
        let others = self.reports()?.into_iter().filter(|report| report.rank > 0);
        self.places.extend(others.filter_map(|report| Some(Place::gpu_of_rank(report.rank, report.gpu?))));
        Ok(())
    }

    /// Where ranks are GPUs, runs a step of as many tokens as there may be, once: what its activations take is known from then
    /// on and no estimate, and kernels are loaded when the first request comes. Graphs are made as steps come again: those of
    /// this step would be of another cache.
    ///
    /// # Errors
    /// There is no room for it; a rank fails.
    pub(crate) fn profile(&mut self) -> Result<(), EngineError> {
        if self.is_profiled || !self.is_on_gpus() {
            return Ok(());
        }
        let rows = self.max_num_batched_tokens.min(self.max_model_len);
        // What has no room here will have none later: a server says then how long requests may be.
        let rows = rows.min(self.affordable_blocks().saturating_mul(KV_BLOCK));
        let blocks = self.plan.context().blocks_that_fit(rows.div_ceil(KV_BLOCK));
        if rows == 0 || blocks == 0 {
            return Ok(());
        }
        self.allocate(blocks)?;
        let meta = StepMeta {
            tokens: vec![0; rows],
            sequences: vec![SequenceSpan {
                rows: 0..rows,
                start: 0,
                block_table: self.plan.context().table_alone(rows.div_ceil(KV_BLOCK)),
            }],
            logit_rows: (rows - rows.min(self.max_num_seqs)..rows).map(|row| row as u32).collect(),
        };
        let targets = vec![0; meta.logit_rows.len()];
        self.leader.issue(&Command::score(meta, &targets))?;
        self.leader.collect()?;
        let reports = self.leader.reports()?;
        let most = reports.iter().map(|report| report.activation_bytes).max().unwrap_or(0);
        // Tokens of several sequences can be more than the longest has. An eighth more: other steps have other sizes.
        let tokens = self.max_num_batched_tokens as u64;
        self.needs.activations = (most + most / 8).saturating_mul(tokens).div_ceil(rows as u64);
        self.is_profiled = true;
        // The cache that requests get is another one.
        self.blocks = 0;
        Ok(())
    }
}
