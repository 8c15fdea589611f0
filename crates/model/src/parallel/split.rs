//! How a model's weights are cut over the ranks of a tensor-parallel group: the one place that knows.

use std::ops::Range;

use collective::ReducePlan;
use tensor::{Program, ReductionTree};

use super::cuts;
use super::placement::{self, ExpertOptions, Placement};
use super::styles::ExpertForm;
use crate::ModelError;
use crate::config::ModelConfig;

/// Ids of a vocabulary panel.
pub const VOCAB_PANEL: usize = 16;

/// A reduction that is cut over ranks: its tree, and the leaves of each rank.
#[derive(Clone, Debug)]
pub struct SplitReduction {
    tree: ReductionTree,
    leaves: Vec<Range<usize>>,
}

impl SplitReduction {
    pub(super) fn new(tree: ReductionTree, cuts: &[usize]) -> Self {
        SplitReduction { tree, leaves: cuts::ranges(cuts) }
    }

    /// The reduction over ids one by one, owned whole by one rank.
    pub fn over_ids(ids: usize) -> Self {
        Self::new(ReductionTree::over_ids(ids), &[0, ids])
    }

    /// The reduction of a down projection, owned whole by one rank.
    pub fn over_granules(inputs: usize, num_heads: usize) -> Self {
        let tree = ReductionTree::over_granules(inputs, num_heads);
        let leaves = tree.num_leaves();
        Self::new(tree, &[0, leaves])
    }

    /// The same tree, owned whole by one rank.
    pub fn undivided(&self) -> Self {
        Self::new(self.tree.clone(), &[0, self.tree.num_leaves()])
    }

    /// The inputs of a rank.
    pub fn inputs(&self, rank: usize) -> Range<usize> {
        self.tree.inputs_of(self.leaves[rank].clone())
    }

    /// What a rank computes.
    pub fn program(&self, rank: usize) -> Program {
        self.tree.program(self.leaves[rank].clone())
    }

    /// What finishes the sum.
    pub fn reduce_plan(&self) -> ReducePlan {
        let nodes_of_rank = self.leaves.iter().map(|l| self.tree.cover(l.clone()).len()).collect();
        ReducePlan { nodes_of_rank, finish: self.tree.finish(&self.leaves) }
    }
}

/// How the experts of a mixture are cut, and how they would be in the other form.
#[derive(Clone, Debug)]
pub struct ExpertSplit {
    /// Which form it is.
    pub form: ExpertForm,
    /// Sliced: every expert over all ranks, like a dense network.
    pub sliced: SplitReduction,
    /// Whole: the rank of each.
    pub placement: Placement,
    /// Whether tokens always go to whole experts and back, also where summing up over all ranks moves less.
    pub always_exchange: bool,
}

/// The cuts of one model over one group.
#[derive(Clone, Debug)]
pub struct Split {
    ranks: usize,
    group: usize,
    /// Attention's output reduction; its leaves are the query heads.
    pub heads: SplitReduction,
    /// The dense feed-forward network's reduction.
    pub ffn: SplitReduction,
    /// The mixture of experts.
    pub experts: Option<ExpertSplit>,
    vocab: Vec<Range<usize>>,
    vocab_panels: SplitReduction,
}

impl Split {
    /// Cuts a model over as many ranks as there are weights; a rank's share is in proportion to its weight.
    ///
    /// # Errors
    /// More ranks than query heads, or a weight that isn't a positive number.
    pub fn new(
        config: &ModelConfig,
        weights: &[f64],
        form: ExpertForm,
        experts: &ExpertOptions,
    ) -> Result<Self, ModelError> {
        let ranks = weights.len();
        if ranks == 0 || ranks > config.num_heads {
            return Err(ModelError::Split(format!(
                "tensor parallel size {ranks} must be from 1 to the model's {} query heads",
                config.num_heads
            )));
        }
        let total: f64 = weights.iter().sum();
        if !weights.iter().all(|w| w.is_finite() && *w > 0.0) || !total.is_finite() {
            return Err(ModelError::Split("rank weights must be positive numbers".into()));
        }
        let shares: Vec<f64> = weights.iter().map(|w| w / total).collect();
        let head_cuts = cuts::heads(config.num_heads, config.num_kv_heads, &shares);
        let heads =
            SplitReduction::new(ReductionTree::over_heads(config.num_heads, config.head_dim), &head_cuts);
        let group = config.group();
        let held = attention_sizes(config, &cuts::ranges(&head_cuts));
        let panels = config.vocab_size.div_ceil(VOCAB_PANEL);
        let vocab_cuts = cuts::nearest(panels, 1, &shares);
        let ids = |panel: usize| (panel * VOCAB_PANEL).min(config.vocab_size);
        let vocab = vocab_cuts.windows(2).map(|c| ids(c[0])..ids(c[1])).collect();
        let vocab_panels = SplitReduction::new(ReductionTree::over_ids(panels), &vocab_cuts);
        let ffn = split_ffn(config, config.intermediate_size, 1, &held, &shares);
        let experts = config.moe.map(|moe| {
            let parts = ffn_matrices(config) * config.hidden_size * moe.intermediate_size;
            let targets = even_out(&held, parts, moe.num_experts, &shares);
            let cuts = placement::contiguous(moe.num_experts, &targets);
            Ok::<_, ModelError>(ExpertSplit {
                form,
                sliced: split_ffn(config, moe.intermediate_size, moe.num_experts, &held, &shares),
                placement: Placement::resolve(&experts.placement, config, &shares, &cuts)?,
                always_exchange: experts.form == Some(ExpertForm::Whole),
            })
        });
        let experts = experts.transpose()?;
        Ok(Split { ranks, group, heads, ffn, experts, vocab, vocab_panels })
    }

    /// Ranks in the group.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// A rank's query heads.
    pub fn query_heads(&self, rank: usize) -> Range<usize> {
        self.heads.leaves[rank].clone()
    }

    /// The KV heads that a rank's query heads read. Neighbours may share one.
    pub fn kv_heads(&self, rank: usize) -> Range<usize> {
        kv_heads(&self.query_heads(rank), self.group)
    }

    /// A rank's vocabulary ids.
    pub fn vocab(&self, rank: usize) -> Range<usize> {
        self.vocab[rank].clone()
    }

    /// The reduction over panels of the vocabulary that a log-sum-exp follows.
    pub fn vocab_panels(&self) -> &SplitReduction {
        &self.vocab_panels
    }
}

fn kv_heads(query_heads: &Range<usize>, group: usize) -> Range<usize> {
    query_heads.start / group..query_heads.end.div_ceil(group)
}

/// Elements of attention weights that each rank holds, replicated KV heads included.
fn attention_sizes(config: &ModelConfig, heads: &[Range<usize>]) -> Vec<f64> {
    let per_head = (config.head_dim * config.hidden_size) as f64;
    let size = |h: &Range<usize>| (2 * h.len() + 2 * kv_heads(h, config.group()).len()) as f64 * per_head;
    heads.iter().map(size).collect()
}

fn ffn_matrices(config: &ModelConfig) -> usize {
    if config.gated() { 3 } else { 2 }
}

/// Cuts a feed-forward network of `experts` copies so that it evens out what attention left uneven.
fn split_ffn(
    config: &ModelConfig,
    intermediate_size: usize,
    experts: usize,
    held: &[f64],
    shares: &[f64],
) -> SplitReduction {
    let tree = ReductionTree::over_granules(intermediate_size, config.num_heads);
    let per_input = ffn_matrices(config) * config.hidden_size * experts;
    let cuts = cuts::leaves(&tree, &even_out(held, per_input, intermediate_size, shares));
    SplitReduction::new(tree, &cuts)
}

/// How many of `items`, each of `size` elements, each rank should take so that the sum with what it holds
/// already comes to its share. Never negative; adds up to `items`.
fn even_out(held: &[f64], size: usize, items: usize, shares: &[f64]) -> Vec<f64> {
    let total: f64 = held.iter().sum::<f64>() + (size * items) as f64;
    let wanted: Vec<f64> =
        held.iter().zip(shares).map(|(h, s)| (s * total - h).max(0.0) / size as f64).collect();
    let sum: f64 = wanted.iter().sum();
    wanted.iter().map(|w| w / sum * items as f64).collect()
}
