//! What ranks have counted of experts, put together.

use std::collections::BTreeMap;

use model::parallel::{ExpertBytes, ExpertCounts, ExpertForm, expert_bytes, imbalance};
use serde_json::{Value, json};

use crate::{Plan, RankReport};

/// What the experts of all layers got and moved.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertReport {
    /// Sliced or whole.
    pub form: ExpertForm,
    /// Layers that have experts, ascending.
    pub layers: Vec<LayerExperts>,
    /// The busiest rank's tokens in relation to the mean, over all layers together.
    pub imbalance: f64,
    /// Choices that no expert worked on.
    pub dropped_tokens: u64,
    /// Bytes that tokens, choices and results took from rank to rank, where tokens travelled.
    pub sent_bytes: u64,
}

/// One layer's experts.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerExperts {
    /// The layer.
    pub layer: usize,
    /// Tokens that chose each expert.
    pub tokens_per_expert: Vec<u64>,
    /// Tokens that each rank's experts got; sliced experts work on all tokens on every rank.
    pub tokens_per_rank: Vec<u64>,
    /// The busiest rank's in relation to the mean.
    pub imbalance: f64,
}

impl ExpertReport {
    /// Adds up what all ranks of all replicas have counted; nothing, if the model has no experts.
    pub fn new(plan: &Plan, reports: &[RankReport]) -> Option<Self> {
        let split = plan.layout.split.experts.as_ref()?;
        let mut counts: BTreeMap<usize, ExpertCounts> = BTreeMap::new();
        for (layer, of_rank) in reports.iter().flat_map(|report| &report.experts) {
            counts.entry(*layer).or_default().add(of_rank);
        }
        let mut all = vec![0; plan.mesh.tp];
        let mut layers = Vec::new();
        for (&layer, ExpertCounts { tokens_per_expert, .. }) in &counts {
            let tokens_per_rank = match split.form {
                ExpertForm::Whole => split.placement.tokens_per_rank(layer, tokens_per_expert),
                ExpertForm::Sliced => vec![tokens_per_expert.iter().sum(); plan.mesh.tp],
            };
            all.iter_mut().zip(&tokens_per_rank).for_each(|(sum, tokens)| *sum += tokens);
            layers.push(LayerExperts {
                layer,
                tokens_per_expert: tokens_per_expert.clone(),
                imbalance: imbalance(&tokens_per_rank),
                tokens_per_rank,
            });
        }
        Some(ExpertReport {
            form: split.form,
            layers,
            imbalance: imbalance(&all),
            dropped_tokens: counts.values().map(ExpertCounts::dropped).sum(),
            sent_bytes: counts.values().map(|c| c.sent_bytes).sum(),
        })
    }

    /// What the experts of all layers move from rank to rank in a step of `tokens`, in each form.
    pub fn bytes_of_step(plan: &Plan, tokens: usize) -> Option<ExpertBytes> {
        let layers = 0..plan.layout.config.num_layers();
        layers.filter_map(|layer| expert_bytes(&plan.layout, layer, tokens)).reduce(|a, b| ExpertBytes {
            sliced: a.sliced + b.sliced,
            whole_reduced: a.whole_reduced.zip(b.whole_reduced).map(|(a, b)| a + b),
            whole_exchanged: a.whole_exchanged + b.whole_exchanged,
        })
    }

    /// For `--json`; also what [`model::parallel::ExpertPlacement::balanced`] reads.
    pub fn to_json(&self) -> Value {
        let each = |of: fn(&LayerExperts) -> Value| self.layers.iter().map(of).collect::<Vec<_>>();
        json!({
            "form": self.form.to_string(),
            "layers": each(|l| l.layer.into()),
            "tokens_per_expert": each(|l| json!(l.tokens_per_expert)),
            "tokens_per_rank": each(|l| json!(l.tokens_per_rank)),
            "imbalance_per_layer": each(|l| l.imbalance.into()),
            "imbalance": self.imbalance,
            "dropped_tokens": self.dropped_tokens,
            "sent_bytes": self.sent_bytes,
        })
    }
}
