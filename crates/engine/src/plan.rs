//! What is where: the mesh of ranks, the layout of each layer over a tensor-parallel group, the stages.

use collective::Mesh;
use model::parallel::ExpertForm;
use model::{Layout, ModelConfig, Stage};
use scheduler::ContextParallel;
use tensor::{KV_BLOCK, SEGMENT, SequenceSpan, StepMeta};

use crate::{EngineError, EngineOptions};

/// More than anyone has.
const MOST_RANKS: usize = 1 << 16;

/// A model laid out over ranks.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which rank is what.
    pub mesh: Mesh,
    /// Each layer over the ranks of a tensor-parallel group.
    pub layout: Layout,
    /// The layers of each stage.
    pub stages: Vec<Stage>,
}

impl Plan {
    /// Lays a model out. `at_hand`: how many ranks there are, where a launcher has started them.
    ///
    /// # Errors
    /// Sizes that the model can't have, or that don't multiply to the ranks at hand.
    pub fn new(
        config: ModelConfig,
        options: &EngineOptions,
        at_hand: Option<usize>,
    ) -> Result<Plan, EngineError> {
        let (tp, pp, dp) =
            (options.rank_weights.len(), options.pipeline_parallel_size, options.data_parallel_size);
        if dp == 0 {
            return Err(EngineError::Request("data parallel size 0 must be at least 1".into()));
        }
        let size = tp.checked_mul(pp).and_then(|n| n.checked_mul(dp)).filter(|&n| n <= MOST_RANKS);
        let fits_model = tp <= config.num_heads && pp <= config.num_layers();
        if let Some(ranks) = at_hand.filter(|&ranks| size != Some(ranks) || !fits_model) {
            return Err(EngineError::Request(not_the_ranks(&config, ranks, [tp, pp, dp])));
        }
        let stages = Stage::cut(&config, pp, options.pp_layers.as_deref())?;
        let mut layout =
            Layout::with_experts(config, &options.rank_weights, &options.tp_plan, &options.experts)?;
        layout.sequence_parallel = options.sequence_parallel;
        let layout = layout.with_context_parallel(options.decode_context_parallel_size)?;
        if size.is_none() {
            return Err(EngineError::Request(format!(
                "--tp {tp} --pp {pp} --dp {dp} are more than {MOST_RANKS} ranks"
            )));
        }
        let whole = layout.config.moe.is_some() && layout.styles.experts == ExpertForm::Whole;
        let ep = if whole { tp } else { 1 };
        Ok(Plan { mesh: Mesh { dp, pp, ep, tp }, layout, stages })
    }

    /// How ranks share KV blocks.
    pub fn context(&self) -> ContextParallel {
        context_parallel(self.layout.context_parallel())
    }

    /// The next `rows` tokens of a sequence that is alone and has `start` already; logits of the last.
    pub fn step_alone(&self, start: usize, rows: usize) -> StepMeta {
        let block_table = self.context().table_alone((start + rows).div_ceil(KV_BLOCK));
        StepMeta {
            tokens: vec![0; rows],
            sequences: vec![SequenceSpan { rows: 0..rows, start, block_table }],
            logit_rows: vec![rows as u32 - 1],
        }
    }
}

/// How `ranks` ranks share KV blocks.
pub(crate) fn context_parallel(ranks: usize) -> ContextParallel {
    match ranks {
        1 => ContextParallel::OFF,
        ranks => ContextParallel { ranks, segment_blocks: SEGMENT / KV_BLOCK },
    }
}

fn not_the_ranks(config: &ModelConfig, ranks: usize, [tp, pp, dp]: [usize; 3]) -> String {
    let choices = Mesh::choices(ranks, config.num_heads, config.num_layers());
    let shown: Vec<String> = choices.iter().take(8).map(ToString::to_string).collect();
    format!(
        "--tp {tp} --pp {pp} --dp {dp} are not for the {ranks} ranks at hand and a model of {} query heads and {} layers; \
         these would be: {}",
        config.num_heads,
        config.num_layers(),
        shown.join("; ")
    )
}
