//! How a model is split over ranks, as flags.

use std::path::{Path, PathBuf};

use clap::Args;
use collective::WireDType;
use engine::EngineOptions;
use model::parallel::{ExpertForm, ExpertOptions, ExpertPlacement};
use model::{ModelConfig, TpPlan};

use crate::args::yes_or_no;
use crate::error::CliError;
use crate::expert_counts;
use crate::lists::numbers;

/// Query heads that no model has more of: what is longer than this isn't made a list of.
const HEADS_MAX: usize = 1 << 12;

/// How a model is split over ranks.
#[derive(Args)]
pub struct SplitArgs {
    /// Ranks that share every layer: 1 to the model's number of query heads; default: 1, or under a launcher its ranks
    /// divided by --pp and --dp
    #[arg(long, visible_alias = "tp", env = "ANYSPLIT_TENSOR_PARALLEL_SIZE", value_name = "N")]
    pub tensor_parallel_size: Option<usize>,
    /// Stages of consecutive layers: 1 to the model's number of layers
    #[arg(
        long,
        visible_alias = "pp",
        env = "ANYSPLIT_PIPELINE_PARALLEL_SIZE",
        default_value_t = 1,
        value_name = "N"
    )]
    pub pipeline_parallel_size: usize,
    /// Layers of each stage; default: balanced by time and memory
    #[arg(long, env = "ANYSPLIT_PP_LAYERS", value_delimiter = ',', value_name = "20,20", value_parser = numbers::<usize>())]
    pub pp_layers: Option<Vec<usize>>,
    /// Replicas of the model, which share the requests
    #[arg(
        long,
        visible_alias = "dp",
        env = "ANYSPLIT_DATA_PARALLEL_SIZE",
        default_value_t = 1,
        value_name = "N"
    )]
    pub data_parallel_size: usize,
    /// Splits the activations between the layers by token, so that norms are done once and not once per rank
    #[arg(long, visible_alias = "sp", env = "ANYSPLIT_SEQUENCE_PARALLEL", value_parser = yes_or_no())]
    pub sequence_parallel: bool,
    /// Whole experts on each tensor-parallel rank, not a slice of each; default: where a token chooses more than two
    #[arg(long, visible_alias = "ep", env = "ANYSPLIT_ENABLE_EXPERT_PARALLEL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false", value_parser = yes_or_no())]
    pub enable_expert_parallel: Option<bool>,
    /// Where whole experts are: contiguous, round-robin, a JSON file of each expert's rank, or auto, which balances what
    /// --expert-counts has recorded
    #[arg(
        long,
        env = "ANYSPLIT_EXPERT_PLACEMENT",
        default_value = "contiguous",
        value_name = "contiguous|round-robin|auto|FILE"
    )]
    pub expert_placement: String,
    /// A JSON file of the tokens that each expert got: a run adds its own to it, --expert-placement auto reads it
    #[arg(long, env = "ANYSPLIT_EXPERT_COUNTS", value_name = "FILE")]
    pub expert_counts: Option<PathBuf>,
    /// Ranks that share one KV cache by position, where there are more ranks than KV heads; 1: each has a copy
    #[arg(
        long,
        visible_alias = "dcp",
        env = "ANYSPLIT_DECODE_CONTEXT_PARALLEL_SIZE",
        default_value_t = 1,
        value_name = "N"
    )]
    pub decode_context_parallel_size: usize,
    /// What sums between ranks travel as: auto (float32), or bfloat16, fp8 or int8, which give up equal bits on any split
    #[arg(long, env = "ANYSPLIT_ALL_REDUCE_DTYPE", default_value = "auto", value_name = "TYPE", value_parser = wire_dtype)]
    pub all_reduce_dtype: WireDType,
    /// Unequal ranks: how much each gets in relation to the others
    #[arg(long, env = "ANYSPLIT_RANK_WEIGHTS", value_delimiter = ',', value_name = "2,1,1", value_parser = numbers::<f64>())]
    pub rank_weights: Option<Vec<f64>>,
    /// auto, or a JSON file of patterns and styles in transformers' notation
    #[arg(long, env = "ANYSPLIT_TP_PLAN", default_value = "auto", value_name = "auto|FILE")]
    pub tp_plan: String,
}

/// The types by their names, and auto.
pub fn wire_dtype(text: &str) -> Result<WireDType, String> {
    if text == "auto" {
        return Ok(WireDType::Float32);
    }
    let named = WireDType::ALL.into_iter().find(|dtype| dtype.name() == text);
    named.ok_or_else(|| "it must be auto, float32, bfloat16, fp8 or int8".into())
}

impl SplitArgs {
    /// What the engine wants to know of the split; the rest is as it is by default. `at_hand`: how many ranks a launcher
    /// has started.
    pub fn options(&self, at_hand: Option<usize>) -> Result<EngineOptions, CliError> {
        Ok(EngineOptions {
            rank_weights: self.weights(at_hand)?,
            tp_plan: self.plan()?,
            pipeline_parallel_size: self.pipeline_parallel_size,
            pp_layers: self.pp_layers.clone(),
            data_parallel_size: self.data_parallel_size,
            sequence_parallel: self.sequence_parallel,
            experts: self.experts()?,
            decode_context_parallel_size: self.decode_context_parallel_size,
            all_reduce_dtype: self.all_reduce_dtype,
            ..EngineOptions::default()
        })
    }

    /// One weight per tensor-parallel rank. `at_hand`: how many ranks a launcher has started.
    fn weights(&self, at_hand: Option<usize>) -> Result<Vec<f64>, CliError> {
        // What the other axes leave; if they leave nothing whole, the sizes are refused together.
        let others = self.pipeline_parallel_size.saturating_mul(self.data_parallel_size).max(1);
        let left = at_hand.filter(|ranks| ranks.is_multiple_of(others)).map(|ranks| ranks / others);
        match (self.tensor_parallel_size, &self.rank_weights) {
            (None, None) => Ok(vec![1.0; left.unwrap_or(1).min(HEADS_MAX)]),
            (Some(n), None) if n > HEADS_MAX => Err(CliError::Usage(format!(
                "tensor parallel size {n} must be from 1 to the model's number of query heads"
            ))),
            (Some(n), None) => Ok(vec![1.0; n]),
            (None, Some(weights)) => Ok(weights.clone()),
            (Some(n), Some(weights)) if weights.len() == n => Ok(weights.clone()),
            (Some(n), Some(weights)) => Err(CliError::Usage(format!(
                "--rank-weights has {} numbers, but --tp is {n}; give one per rank",
                weights.len()
            ))),
        }
    }

    /// What is split otherwise than automatically.
    fn plan(&self) -> Result<TpPlan, CliError> {
        match self.tp_plan.as_str() {
            "auto" => Ok(TpPlan::auto()),
            file => Ok(TpPlan::parse(&checkpoint::json_file(Path::new(file))?)?),
        }
    }

    /// How a mixture's experts are split.
    fn experts(&self) -> Result<ExpertOptions, CliError> {
        let form = self.enable_expert_parallel.map(|whole| match whole {
            true => ExpertForm::Whole,
            false => ExpertForm::Sliced,
        });
        let placement = match &*self.expert_placement {
            "contiguous" => ExpertPlacement::Contiguous,
            "round-robin" => ExpertPlacement::RoundRobin,
            "auto" => self.recorded()?.unwrap_or_default(),
            file => ExpertPlacement::given(&checkpoint::json_value_file(Path::new(file))?)
                .map_err(|e| CliError::Usage(format!("--expert-placement {file}: {e}")))?,
        };
        Ok(ExpertOptions { form, placement })
    }

    fn recorded(&self) -> Result<Option<ExpertPlacement>, CliError> {
        Ok(self.expert_counts.as_deref().map(expert_counts::read).transpose()?.flatten())
    }

    /// Flags about experts need a model that has some, and counts of that very model. `leads`: whether this process is the
    /// one that tells, and writes the counts in the end.
    pub fn check(&self, config: &ModelConfig, leads: bool) -> Result<(), CliError> {
        let is_auto = self.expert_placement == "auto";
        let flag = match (self.enable_expert_parallel, &*self.expert_placement, &self.expert_counts) {
            (Some(true), _, _) => "--enable-expert-parallel",
            (_, placement, _) if placement != "contiguous" => "--expert-placement",
            (_, _, Some(_)) => "--expert-counts",
            _ => return Ok(()),
        };
        if config.moe.is_none() {
            return Err(CliError::Usage(format!("{flag}: this model has no experts; leave it out")));
        }
        if let Some(file) = self.expert_counts.as_ref().filter(|_| leads) {
            expert_counts::check(file, config)?;
        }
        if leads && is_auto && self.recorded()?.is_none() {
            let name = self.expert_counts.as_ref().map_or("FILE".into(), |file| file.display().to_string());
            job::say!(
                "--expert-placement auto: no counts are recorded in --expert-counts {name} yet; whole experts are contiguous"
            );
        }
        Ok(())
    }
}
