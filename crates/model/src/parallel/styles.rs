//! From the styles of single modules to the forms of blocks, and the refusal of what can't be right.

use super::layout::{Module, layer_modules, name};
use crate::ModelError;
use crate::config::{ModelConfig, MoeConfig};
use crate::tp_plan::{Style, TpPlan};

/// How the first half of a block (q, k, v; gate, up) leaves its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpForm {
    /// Each rank has its part.
    Split,
    /// Each rank computes a part, then all have all.
    Gathered,
    /// Each rank computes all.
    Replicated,
}

/// How the second half of a block (o; down) takes its inputs and leaves its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownForm {
    /// Each rank has its part of the inputs; outputs are reduced.
    Split,
    /// Each rank has all inputs and takes its part of them; outputs are reduced.
    SplitInput,
    /// Each rank has all inputs and computes a part of the outputs, which are gathered.
    Gathered,
    /// Each rank has all inputs and computes all outputs.
    Replicated,
}

/// The form of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockForm {
    /// First half.
    pub up: UpForm,
    /// Second half.
    pub down: DownForm,
}

/// How experts are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertForm {
    /// Every expert over all ranks.
    Sliced,
    /// Whole experts on ranks.
    Whole,
}

impl std::fmt::Display for ExpertForm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ExpertForm::Sliced => "sliced",
            ExpertForm::Whole => "whole",
        })
    }
}

/// The forms of one layer's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerForms {
    /// Attention.
    pub attention: BlockForm,
    /// Dense feed-forward network.
    pub ffn: BlockForm,
}

/// The forms of all blocks of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Styles {
    /// Layers.
    pub layers: Vec<LayerForms>,
    /// Experts of all layers.
    pub experts: ExpertForm,
    /// Whether every rank has the whole embedding.
    pub embed_replicated: bool,
    /// Whether every rank has the whole head.
    pub head_replicated: bool,
}

const SPLIT: BlockForm = BlockForm { up: UpForm::Split, down: DownForm::Split };

impl Styles {
    /// The automatic plan with what `plan` wants otherwise.
    pub(super) fn resolve(
        config: &ModelConfig,
        plan: &TpPlan,
        experts: Option<ExpertForm>,
    ) -> Result<Self, ModelError> {
        let modules = all_names(config);
        if let Some(pattern) = plan.unmatched(&modules) {
            return Err(ModelError::Plan(format!(
                "\"{pattern}\" matches no module of {}; its modules are {}",
                config.architecture.name,
                patterns(config).join(", ")
            )));
        }
        let resolver = Resolver { config, plan };
        let layers = (0..config.num_layers()).map(|layer| resolver.layer(layer)).collect::<Result<_, _>>()?;
        if config.position_rows().is_some() {
            resolver.check_whole(Module::Positions, 0)?;
        }
        resolver.check_whole(Module::FinalNorm, 0)?;
        let embed_replicated = resolver.vocabulary(Module::Embed, Style::EmbeddingRowwise)?;
        let head_replicated = resolver.vocabulary(Module::Head, Style::ColwiseGatherOutput)?;
        if config.tied && embed_replicated != head_replicated {
            let (embed, head) = (name(config, Module::Embed), name(config, Module::Head));
            return Err(ModelError::Plan(format!(
                "{embed} and {head} are one weight here (tie_word_embeddings); both or neither can be replicated"
            )));
        }
        Ok(Styles { layers, experts: resolver.experts(experts)?, embed_replicated, head_replicated })
    }
}

/// The name of each module as patterns print it, each once.
pub fn patterns(config: &ModelConfig) -> Vec<String> {
    let mut patterns = vec![name(config, Module::Embed)];
    patterns.extend(config.position_rows().map(|_| name(config, Module::Positions)));
    for layer in 0..config.num_layers() {
        for module in layer_modules(config, layer) {
            let pattern = pattern(config, module);
            if !patterns.contains(&pattern) {
                patterns.push(pattern);
            }
        }
    }
    patterns.extend([name(config, Module::FinalNorm), name(config, Module::Head)]);
    patterns
}

/// A module's name with `*` for the layer and for the expert.
pub fn pattern(config: &ModelConfig, module: Module) -> String {
    let name = name(config, module);
    match module {
        Module::ExpertGate(e) | Module::ExpertUp(e) | Module::ExpertDown(e) => {
            name.replace(&format!(".{e}."), ".*.")
        }
        _ => name,
    }
}

/// Every name that a rule may mean: a module's own, and those by which transformers knows modules of experts.
fn aliases(config: &ModelConfig, module: Module, layer: usize) -> Vec<String> {
    let at = |name: String| name.replacen('*', &layer.to_string(), 1);
    let mut names = vec![at(name(config, module))];
    if let Some(moe) = &config.moe {
        let packed = |inner: String| at(format!("{}.{inner}", config.architecture.names.layer));
        match module {
            Module::Router => names.push(packed(moe.names.packed.0.into())),
            Module::ExpertGate(_) | Module::ExpertUp(_) => {
                names.push(packed(format!("{}.gate_up_proj", moe.names.packed.1)));
            }
            Module::ExpertDown(_) => names.push(packed(format!("{}.down_proj", moe.names.packed.1))),
            _ => {}
        }
    }
    names
}

/// Modules that hold experts, by which transformers says how it wraps them.
fn hooks(moe: &MoeConfig) -> [&'static str; 2] {
    [moe.names.packed.1, moe.names.experts]
}

fn all_names(config: &ModelConfig) -> Vec<String> {
    let mut names: Vec<String> = [Module::Embed, Module::Positions, Module::FinalNorm, Module::Head]
        .map(|m| name(config, m))
        .into_iter()
        .filter(|n| !n.is_empty())
        .collect();
    for layer in 0..config.num_layers() {
        names.extend(layer_modules(config, layer).into_iter().flat_map(|m| aliases(config, m, layer)));
        if let Some(moe) = &config.moe {
            // Plans of an architecture also name what this model happens not to have: dense layers.
            let dense = [Module::Gate, Module::Up, Module::Down].map(|m| name(config, m));
            let hooks = hooks(moe).map(|hook| format!("{}.{hook}", config.architecture.names.layer));
            names.extend(dense.into_iter().chain(hooks).map(|n| n.replacen('*', &layer.to_string(), 1)));
        }
    }
    names
}

struct Resolver<'a> {
    config: &'a ModelConfig,
    plan: &'a TpPlan,
}

impl Resolver<'_> {
    fn style(&self, module: Module, layer: usize, auto: Style) -> Style {
        self.plan.style_of(&aliases(self.config, module, layer)).unwrap_or(auto)
    }

    fn named(&self, module: Module, layer: usize) -> String {
        name(self.config, module).replacen('*', &layer.to_string(), 1)
    }

    fn layer(&self, layer: usize) -> Result<LayerForms, ModelError> {
        let modules = layer_modules(self.config, layer);
        for &module in &modules {
            self.check_whole(module, layer)?;
        }
        let present =
            |wanted: &[Module]| modules.iter().copied().filter(|m| wanted.contains(m)).collect::<Vec<_>>();
        let attention =
            self.block(&present(&[Module::Q, Module::K, Module::V, Module::Qkv]), Module::O, layer)?;
        let up = present(&[Module::Gate, Module::Up, Module::GateUp]);
        let ffn = if up.is_empty() { SPLIT } else { self.block(&up, Module::Down, layer)? };
        Ok(LayerForms { attention, ffn })
    }

    /// Norms, routers and tables of positions are on every rank.
    fn check_whole(&self, module: Module, layer: usize) -> Result<(), ModelError> {
        use Module::*;
        let whole = matches!(
            module,
            PreAttention | PostAttention | PreFfn | PostFfn | QNorm | KNorm | Router | Positions | FinalNorm
        );
        match self.style(module, layer, Style::Replicate) {
            style if whole && style != Style::Replicate => Err(ModelError::Plan(format!(
                "{}: style {style} can't be right for it; replicate or sequence_parallel can",
                self.named(module, layer)
            ))),
            _ => Ok(()),
        }
    }

    fn block(&self, ups: &[Module], down: Module, layer: usize) -> Result<BlockForm, ModelError> {
        let mut forms = Vec::new();
        for &up in ups {
            let style = self.style(up, layer, Style::Colwise);
            let form = match style {
                Style::Colwise | Style::PackedColwise => UpForm::Split,
                Style::ColwiseGatherOutput => UpForm::Gathered,
                Style::Replicate => UpForm::Replicated,
                _ => {
                    return Err(ModelError::Plan(format!(
                        "{}: style {style} can't be right for it; colwise, colwise_gather_output and replicate can",
                        self.named(up, layer)
                    )));
                }
            };
            forms.push((up, style, form));
        }
        let (first, first_style, form) = forms[0];
        if let Some((other, style, _)) = forms.iter().find(|(_, _, f)| *f != form) {
            return Err(ModelError::Plan(format!(
                "{} is {first_style} but {} is {style}; they feed the same {} and must be split alike",
                self.named(first, layer),
                self.named(*other, layer),
                self.named(down, layer)
            )));
        }
        let style = self.style(down, layer, Style::Rowwise);
        let wrong = |works: &str| {
            Err(ModelError::Plan(format!(
                "{} is {first_style} but {} is {style}, which can't be right; {works}",
                self.named(first, layer),
                self.named(down, layer)
            )))
        };
        let down = match (form, style) {
            (UpForm::Split, Style::Rowwise) => DownForm::Split,
            (UpForm::Split, _) => {
                return wrong("a colwise layer leaves split outputs, which only rowwise takes");
            }
            (_, Style::RowwiseSplitInput) => DownForm::SplitInput,
            (_, Style::ColwiseGatherOutput) => DownForm::Gathered,
            (_, Style::Replicate) => DownForm::Replicated,
            _ => return wrong("rowwise_split_input, colwise_gather_output and replicate take whole inputs"),
        };
        Ok(BlockForm { up: form, down })
    }

    /// `wanted` takes the place of the automatic form; a plan may say the same, but nothing else.
    fn experts(&self, wanted: Option<ExpertForm>) -> Result<ExpertForm, ModelError> {
        let Some(moe) = self.config.moe else { return Ok(ExpertForm::Sliced) };
        // Slices of an expert travel once for each expert that a token chose, whole experts once for all of them.
        let auto = wanted.unwrap_or(if moe.top_k > 2 { ExpertForm::Whole } else { ExpertForm::Sliced });
        let mut found: Option<(ExpertForm, String)> = None;
        for layer in (0..self.config.num_layers()).filter(|&l| self.config.layers[l].moe) {
            self.check_hooks(&moe, layer)?;
            for e in 0..moe.num_experts {
                for module in [Module::ExpertGate(e), Module::ExpertUp(e), Module::ExpertDown(e)] {
                    let sliced =
                        if matches!(module, Module::ExpertDown(_)) { Style::Rowwise } else { Style::Colwise };
                    let auto = if auto == ExpertForm::Whole { Style::GroupedGemm } else { sliced };
                    let style = self.style(module, layer, auto);
                    let named = self.named(module, layer);
                    let form = match style {
                        Style::GroupedGemm => ExpertForm::Whole,
                        Style::PackedColwise if sliced == Style::Colwise => ExpertForm::Sliced,
                        _ if style == sliced => ExpertForm::Sliced,
                        _ => {
                            return Err(ModelError::Plan(format!(
                                "{named}: style {style} can't be right for it; {sliced} and grouped_gemm can"
                            )));
                        }
                    };
                    match &found {
                        Some((other, first)) if *other != form => {
                            return Err(ModelError::Plan(format!(
                                "{named} is {style} but {first} is not; experts are all sliced or all whole"
                            )));
                        }
                        Some(_) => {}
                        None => found = Some((form, named)),
                    }
                }
            }
        }
        match (found, wanted) {
            (Some((form, named)), Some(wanted)) if form != wanted => Err(ModelError::Plan(format!(
                "{named} is {form} by the plan, but {wanted} experts were asked for; one of the two must go"
            ))),
            (found, _) => Ok(found.map_or(auto, |(form, _)| form)),
        }
    }

    /// What holds experts can only say how they are wrapped.
    fn check_hooks(&self, moe: &MoeConfig, layer: usize) -> Result<(), ModelError> {
        for hook in hooks(moe) {
            let named = format!("{}.{hook}", self.config.architecture.names.layer).replacen(
                '*',
                &layer.to_string(),
                1,
            );
            let style = self.plan.style_of(std::slice::from_ref(&named));
            if let Some(style) = style.filter(|s| !matches!(s, Style::ExpertHook)) {
                return Err(ModelError::Plan(format!(
                    "{named}: style {style} can't be right for it; moe_tp_experts can, and {named}.gate_up_proj takes others"
                )));
            }
        }
        Ok(())
    }

    /// Whether the embedding or the head is on every rank.
    fn vocabulary(&self, module: Module, auto: Style) -> Result<bool, ModelError> {
        match (self.style(module, 0, auto), module) {
            (Style::Replicate, _) => Ok(true),
            (Style::EmbeddingRowwise, Module::Embed) => Ok(false),
            (Style::ColwiseGatherOutput | Style::Colwise, Module::Head) => Ok(false),
            (style, _) => Err(ModelError::Plan(format!(
                "{}: style {style} can't be right for it; {auto} and replicate can",
                name(self.config, module)
            ))),
        }
    }
}
