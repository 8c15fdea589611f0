//! Tensor-parallel plans in transformers' notation: patterns of modules and the style each is split by.
//!
//! Source of the notation: transformers, `base_model_tp_plan` and `ALL_PARALLEL_STYLES`.

use std::fmt;

use serde_json::Value;

use crate::ModelError;

/// How a module is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Outputs are split, and stay so.
    Colwise,
    /// The same for a matrix that holds several, each split for itself.
    PackedColwise,
    /// Outputs are split, then gathered.
    ColwiseGatherOutput,
    /// Inputs are split already; the outputs are summed.
    Rowwise,
    /// Inputs are whole and are split here; the outputs are summed.
    RowwiseSplitInput,
    /// An embedding whose ids are split.
    EmbeddingRowwise,
    /// Whole experts on ranks.
    GroupedGemm,
    /// Every rank has all of it.
    Replicate,
    /// Says only how transformers' hooks wrap a module of experts; the experts' own styles decide.
    ExpertHook,
}

/// Every name that is understood, ours first.
const NAMES: &[(&str, Style)] = &[
    ("colwise", Style::Colwise),
    ("packed_colwise", Style::PackedColwise),
    ("colwise_gather_output", Style::ColwiseGatherOutput),
    ("rowwise", Style::Rowwise),
    ("rowwise_split_input", Style::RowwiseSplitInput),
    ("embedding_rowwise", Style::EmbeddingRowwise),
    ("grouped_gemm", Style::GroupedGemm),
    ("replicate", Style::Replicate),
    ("moe_tp_experts", Style::ExpertHook),
    ("colwise_rep", Style::ColwiseGatherOutput),
    ("rowwise_rep", Style::RowwiseSplitInput),
    ("local_colwise", Style::Colwise),
    ("local_packed_colwise", Style::PackedColwise),
    ("local_rowwise", Style::Rowwise),
    ("packed_rowwise", Style::Rowwise),
    ("local_packed_rowwise", Style::Rowwise),
    ("sequence_parallel", Style::Replicate),
    ("replicated_with_grad_allreduce", Style::Replicate),
    ("ep_router", Style::Replicate),
    ("ep_dispatch_experts", Style::ExpertHook),
];

/// Styles of transformers that no module of a known architecture can have here.
const UNSUPPORTED: &[&str] = &[
    "all_reduce",
    "embedding_colwise",
    "gather",
    "local",
    "local_params",
    "megamoe_experts",
    "megamoe_router",
    "mla_kv_a_proj",
    "moe_identity_expert",
];

impl Style {
    fn parse(name: &str) -> Option<Style> {
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, style)| *style)
    }

    /// Our name of it.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, style)| *style == self).expect("every style has a name").0
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a user wants otherwise than the automatic plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TpPlan {
    rules: Vec<(String, Style)>,
}

impl TpPlan {
    /// The automatic plan.
    pub fn auto() -> Self {
        Self::default()
    }

    /// Reads `{"model.layers.*.self_attn.q_proj": "colwise", …}`, or the output of `tp-plan --json`, which
    /// has it under `plan`.
    ///
    /// # Errors
    /// Not such a map, or a style that isn't known.
    pub fn parse(json: &Value) -> Result<Self, ModelError> {
        let json = json.get("plan").filter(|plan| plan.is_object()).unwrap_or(json);
        let map = json.as_object().ok_or_else(|| {
            ModelError::Plan("must be a JSON object of patterns and styles, such as {\"model.layers.*.mlp.up_proj\": \"colwise\"}".into())
        })?;
        let rule = |(key, style): (&String, &Value)| {
            let parsed = style.as_str().and_then(Style::parse);
            parsed.map(|style| (key.clone(), style)).ok_or_else(|| {
                let known: Vec<_> = NAMES.iter().map(|(n, _)| *n).collect();
                let what = match style.as_str() {
                    Some(name) if UNSUPPORTED.contains(&name) => "is not supported",
                    _ => "is not known",
                };
                ModelError::Plan(format!("\"{key}\": style {style} {what}; known are {}", known.join(", ")))
            })
        };
        Ok(TpPlan { rules: map.iter().map(rule).collect::<Result<_, _>>()? })
    }

    /// The last rule that names this module, whose own name may be any of `names`.
    pub(crate) fn style_of(&self, names: &[String]) -> Option<Style> {
        let named = |(pattern, _): &&(String, Style)| names.iter().any(|name| matches(pattern, name));
        self.rules.iter().rev().find(named).map(|(_, style)| *style)
    }

    /// The first rule that names none of the model's modules.
    pub(crate) fn unmatched(&self, modules: &[String]) -> Option<&str> {
        let unused = |(pattern, _): &&(String, Style)| !modules.iter().any(|name| matches(pattern, name));
        self.rules.iter().find(unused).map(|(pattern, _)| pattern.as_str())
    }
}

/// Whether a pattern names a module. `*` stands for one part of a name; a leading `model.` may be missing on
/// either side.
fn matches(pattern: &str, name: &str) -> bool {
    fn strip(s: &str) -> &str {
        s.strip_prefix("model.").unwrap_or(s)
    }
    let (mut pattern, mut name) = (strip(pattern).split('.'), strip(name).split('.'));
    loop {
        match (pattern.next(), name.next()) {
            (None, None) => return true,
            (Some(p), Some(n)) if p == n || p == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_with_and_without_the_models_prefix() {
        assert!(matches("model.layers.*.mlp.up_proj", "model.layers.17.mlp.up_proj"));
        assert!(matches("layers.*.mlp.up_proj", "model.layers.17.mlp.up_proj"));
        assert!(matches("model.layers.3.mlp.up_proj", "layers.3.mlp.up_proj"));
        assert!(!matches("layers.*.mlp", "model.layers.17.mlp.up_proj"));
        assert!(!matches("layers.*.mlp.up_proj", "model.layers.17.mlp.gate_proj"));
        assert!(matches("lm_head", "lm_head"));
    }

    #[test]
    fn an_unknown_style_is_named_with_those_that_are_known() {
        let error = TpPlan::parse(&serde_json::json!({"lm_head": "diagonal"})).unwrap_err().to_string();
        assert!(
            error.contains("lm_head") && error.contains("diagonal") && error.contains("colwise"),
            "{error}"
        );
    }
}
