//! The table of a model's weights: name, shape, style and the part that each rank holds.
//!
//! Loader, layers and `tp-plan` read the same table.

use std::ops::Range;

use checkpoint::ScaledBy;
use tensor::{AttentionSpec, DType};

use super::cuts;
use super::placement::{ExpertOptions, ExpertPlacement};
use super::split::Split;
use super::styles::{DownForm, ExpertForm, Styles, UpForm};
use crate::ModelError;
use crate::architecture::{FfnForm, Qkv};
use crate::config::ModelConfig;
use crate::quantization::StoredAs;
use crate::tp_plan::{Style, TpPlan};

/// A module of the model; those of a layer are asked for with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the field's; `Names` explains them.
pub enum Module {
    Embed,
    Positions,
    FinalNorm,
    Head,
    Q,
    K,
    V,
    Qkv,
    O,
    QNorm,
    KNorm,
    PreAttention,
    PostAttention,
    PreFfn,
    PostFfn,
    Gate,
    Up,
    GateUp,
    Down,
    Router,
    ExpertGate(usize),
    ExpertUp(usize),
    ExpertDown(usize),
}

/// Which part of a weight a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Rows of its query heads.
    QueryRows,
    /// Rows of its KV heads.
    KvRows,
    /// Rows of its query heads, its key heads and its value heads, out of one matrix.
    QkvRows,
    /// Columns of its query heads.
    QueryCols,
    /// Rows of its part of the feed-forward network.
    FfnRows,
    /// The same twice, out of a matrix that holds gate over up.
    FfnTwiceRows,
    /// Columns of its part of the feed-forward network.
    FfnCols,
    /// Rows of its part of every expert.
    ExpertRows,
    /// Columns of its part of every expert.
    ExpertCols,
    /// All of a layer's expert that is its own, nothing of another.
    OwnExpert {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: usize,
    },
    /// Rows of its vocabulary ids.
    VocabRows,
    /// As many rows as others have, wherever they fall.
    EvenRows,
}

/// A module's weight and bias.
#[derive(Clone, Debug)]
pub struct ModuleSpec {
    /// Its full name, without `.weight`.
    pub name: String,
    /// How it is split.
    pub style: Style,
    /// `[rows, cols]`, or `[n]` of a norm.
    pub shape: Vec<usize>,
    /// The part of the weight that a rank holds.
    pub part: Part,
    /// The part of the bias that a rank holds, if there is a bias.
    pub bias: Option<Part>,
}

/// Rows and columns of a weight that a rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Ranges of rows, in order.
    pub rows: Vec<Range<usize>>,
    /// Range of columns.
    pub cols: Range<usize>,
}

impl Held {
    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.num_rows() * self.cols.len()
    }
}

/// A model's weights and where they are.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The model.
    pub config: ModelConfig,
    /// The cuts.
    pub split: Split,
    /// The forms of the blocks.
    pub styles: Styles,
    /// Whether the residual stream is split by token between the parallel regions.
    pub sequence_parallel: bool,
    /// Ranks that share a KV cache by position.
    pub(super) context_parallel: usize,
}

impl Layout {
    /// Inputs after which the quantisation groups of a module's weight begin anew ([`tensor::WeightSpec::period`]):
    /// the leaves of the tree over heads need not be whole groups; all other leaves are.
    pub fn group_period(&self, module: Module) -> Option<usize> {
        (module == Module::O).then_some(self.config.head_dim)
    }

    /// How elements of a module's weight of that name share scales, if config.json says that it is stored in e4m3.
    pub(crate) fn scaled_by(&self, module: Module, name: &str) -> Option<ScaledBy> {
        let fp8 = self.config.fp8.as_ref()?;
        let converts = match module {
            Module::Embed | Module::Positions => false,
            Module::Head | Module::Router => fp8.converts(name, false),
            _ => fp8.converts(name, true),
        };
        converts.then_some(fp8.scaled_by)
    }

    /// What config.json says that a module's weight is stored as, if floats are of type `dtype`.
    pub fn stored_as(&self, module: Module, layer: usize, dtype: DType) -> StoredAs {
        let spec = self.spec(module, layer);
        match self.scaled_by(module, &spec.name) {
            Some(by) => StoredAs::Scaled(by.block([spec.shape[0], spec.shape[1]])),
            None => StoredAs::Float(dtype),
        }
    }

    /// Lays a model out over ranks, one per weight, by the automatic plan and what `plan` wants otherwise.
    ///
    /// # Errors
    /// A number of ranks or a plan that can't be.
    pub fn new(config: ModelConfig, rank_weights: &[f64], plan: &TpPlan) -> Result<Self, ModelError> {
        Self::with_experts(config, rank_weights, plan, &ExpertOptions::default())
    }

    /// The same with what is wanted of the experts.
    ///
    /// # Errors
    /// Also experts that the model doesn't have, or a placement that can't be.
    pub fn with_experts(
        config: ModelConfig,
        rank_weights: &[f64],
        plan: &TpPlan,
        experts: &ExpertOptions,
    ) -> Result<Self, ModelError> {
        let name = config.architecture.name;
        // That no experts are whole is true of a dense model.
        let wants_none =
            experts.form != Some(ExpertForm::Whole) && experts.placement == ExpertPlacement::Contiguous;
        if config.moe.is_none() && !wants_none {
            return Err(ModelError::Split(format!(
                "expert parallelism is for mixtures of experts, and {name} as configured here has none; leave \
                 enable-expert-parallel and expert-placement out"
            )));
        }
        let styles = Styles::resolve(&config, plan, experts.form)?;
        // To balance sliced experts there is nothing to do: every rank has as much of each.
        let is_placed =
            !matches!(experts.placement, ExpertPlacement::Contiguous | ExpertPlacement::Balanced(_));
        if styles.experts == ExpertForm::Sliced && is_placed {
            return Err(ModelError::Split(format!(
                "expert placement is for whole experts, and those of {name} are sliced here; enable-expert-parallel \
                 would make them whole"
            )));
        }
        let split = Split::new(&config, rank_weights, styles.experts, experts)?;
        Ok(Layout { config, split, styles, sequence_parallel: false, context_parallel: 1 })
    }

    /// Ranks in the group.
    pub fn ranks(&self) -> usize {
        self.split.ranks()
    }

    /// A layer's attention on a rank.
    pub fn attention(&self, layer: usize, rank: usize) -> AttentionSpec {
        let config = &self.config;
        let group = config.group();
        let (query, kv) = match self.styles.layers[layer].attention.up {
            UpForm::Split => (self.split.query_heads(rank), self.split.kv_heads(rank)),
            UpForm::Gathered | UpForm::Replicated => (0..config.num_heads, 0..config.num_kv_heads),
        };
        AttentionSpec {
            num_heads: query.len(),
            num_kv_heads: kv.len(),
            group,
            first_in_group: query.start % group,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            softcap: config.attention_softcap,
            window: config.layers[layer].window,
        }
    }

    /// The modules outside of layers.
    pub fn outer_modules(&self) -> Vec<Module> {
        let positions = self.config.position_rows().map(|_| Module::Positions);
        let head = (!self.config.tied).then_some(Module::Head);
        [Some(Module::Embed), positions, Some(Module::FinalNorm), head].into_iter().flatten().collect()
    }

    /// The modules of a layer.
    pub fn layer_modules(&self, layer: usize) -> Vec<Module> {
        layer_modules(&self.config, layer)
    }

    /// A module's weight, and the style and part by which it is held.
    pub fn spec(&self, module: Module, layer: usize) -> ModuleSpec {
        let config = &self.config;
        let (style, part) = self.style_and_part(module, layer);
        let biased = match module {
            Module::Q | Module::K | Module::V | Module::Qkv => config.qkv_bias,
            Module::O => config.o_bias,
            Module::Gate | Module::Up | Module::GateUp | Module::Down => config.ffn_bias,
            Module::PreAttention | Module::PreFfn | Module::FinalNorm => config.architecture.norm.has_bias(),
            _ => false,
        };
        // A bias goes with the rows; one of a row-parallel layer is added once the sum is complete.
        let bias = match part {
            Part::QueryCols | Part::FfnCols | Part::ExpertCols => Part::Whole,
            rows => rows,
        };
        ModuleSpec {
            name: name(config, module).replacen('*', &layer.to_string(), 1),
            style,
            shape: shape(config, module),
            part,
            bias: biased.then_some(bias),
        }
    }

    /// What a rank holds of a weight of this shape. Vectors count as matrices of one column.
    pub fn held(&self, part: Part, shape: &[usize], rank: usize) -> Held {
        let split = &self.split;
        let (rows, cols) = (shape[0], shape.get(1).copied().unwrap_or(1));
        let d = self.config.head_dim;
        let heads = |h: Range<usize>, first: usize| (first + h.start) * d..(first + h.end) * d;
        let (query, kv) = (split.query_heads(rank), split.kv_heads(rank));
        let by_rows = |rows: Range<usize>| Held { rows: vec![rows], cols: 0..cols };
        let by_cols = |cols: Range<usize>| Held { rows: vec![0..rows], cols };
        match part {
            Part::Whole => by_rows(0..rows),
            Part::QueryRows => by_rows(heads(query, 0)),
            Part::KvRows => by_rows(heads(kv, 0)),
            Part::QkvRows => {
                let (h, k) = (self.config.num_heads, self.config.num_kv_heads);
                Held { rows: vec![heads(query, 0), heads(kv.clone(), h), heads(kv, h + k)], cols: 0..cols }
            }
            Part::QueryCols => by_cols(split.heads.inputs(rank)),
            Part::FfnRows => by_rows(split.ffn.inputs(rank)),
            Part::FfnTwiceRows => {
                let r = split.ffn.inputs(rank);
                Held { rows: vec![r.clone(), rows / 2 + r.start..rows / 2 + r.end], cols: 0..cols }
            }
            Part::FfnCols => by_cols(split.ffn.inputs(rank)),
            Part::ExpertRows => by_rows(self.expert_inputs(rank)),
            Part::ExpertCols => by_cols(self.expert_inputs(rank)),
            Part::OwnExpert { layer, expert } => match &split.experts {
                Some(experts) if experts.placement.ranks_of(layer)[expert] == rank => by_rows(0..rows),
                _ => by_rows(0..0),
            },
            Part::VocabRows => by_rows(split.vocab(rank)),
            Part::EvenRows => {
                let shares = vec![1.0 / self.ranks() as f64; self.ranks()];
                by_rows(cuts::ranges(&cuts::nearest(rows, 1, &shares)).swap_remove(rank))
            }
        }
    }

    /// The experts of a layer whose weights a rank has, or has slices of; ascending.
    pub fn own_experts(&self, layer: usize, rank: usize) -> Vec<usize> {
        let Some(experts) = &self.split.experts else { return Vec::new() };
        match experts.form {
            ExpertForm::Whole => experts.placement.own(layer, rank),
            ExpertForm::Sliced => (0..experts.placement.ranks_of(layer).len()).collect(),
        }
    }

    fn expert_inputs(&self, rank: usize) -> Range<usize> {
        self.split.experts.as_ref().map_or(0..0, |experts| experts.sliced.inputs(rank))
    }

    fn style_and_part(&self, module: Module, layer: usize) -> (Style, Part) {
        let up = |form: UpForm, packed: bool, split: Part| match form {
            UpForm::Split if packed => (Style::PackedColwise, split),
            UpForm::Split => (Style::Colwise, split),
            UpForm::Gathered => (Style::ColwiseGatherOutput, Part::EvenRows),
            UpForm::Replicated => (Style::Replicate, Part::Whole),
        };
        let down = |form: DownForm, split: Part| match form {
            DownForm::Split => (Style::Rowwise, split),
            DownForm::SplitInput => (Style::RowwiseSplitInput, split),
            DownForm::Gathered => (Style::ColwiseGatherOutput, Part::EvenRows),
            DownForm::Replicated => (Style::Replicate, Part::Whole),
        };
        let expert = |e: usize, sliced: (Style, Part)| match self.styles.experts {
            ExpertForm::Sliced => sliced,
            ExpertForm::Whole => (Style::GroupedGemm, Part::OwnExpert { layer, expert: e }),
        };
        let of_layer = || &self.styles.layers[layer];
        match module {
            Module::Embed if self.styles.embed_replicated => (Style::Replicate, Part::Whole),
            Module::Embed => (Style::EmbeddingRowwise, Part::VocabRows),
            Module::Head if self.styles.head_replicated => (Style::Replicate, Part::Whole),
            Module::Head => (Style::ColwiseGatherOutput, Part::VocabRows),
            Module::Q => up(of_layer().attention.up, false, Part::QueryRows),
            Module::K | Module::V => up(of_layer().attention.up, false, Part::KvRows),
            Module::Qkv => up(of_layer().attention.up, true, Part::QkvRows),
            Module::O => down(of_layer().attention.down, Part::QueryCols),
            Module::Gate | Module::Up => up(of_layer().ffn.up, false, Part::FfnRows),
            Module::GateUp => up(of_layer().ffn.up, true, Part::FfnTwiceRows),
            Module::Down => down(of_layer().ffn.down, Part::FfnCols),
            Module::ExpertGate(e) | Module::ExpertUp(e) => expert(e, (Style::Colwise, Part::ExpertRows)),
            Module::ExpertDown(e) => expert(e, (Style::Rowwise, Part::ExpertCols)),
            _ => (Style::Replicate, Part::Whole),
        }
    }
}

/// The modules of a layer.
pub(super) fn layer_modules(config: &ModelConfig, layer: usize) -> Vec<Module> {
    let architecture = config.architecture;
    let mut modules = vec![Module::PreAttention];
    match architecture.qkv {
        Qkv::Separate => modules.extend([Module::Q, Module::K, Module::V]),
        Qkv::Fused => modules.push(Module::Qkv),
    }
    if architecture.qk_norm {
        modules.extend([Module::QNorm, Module::KNorm]);
    }
    modules.push(Module::O);
    modules.extend(architecture.names.post_attention.map(|_| Module::PostAttention));
    modules.push(Module::PreFfn);
    match (config.layers[layer].moe, config.moe, architecture.ffn) {
        (true, Some(moe), _) => {
            modules.push(Module::Router);
            let expert = |e| [Module::ExpertGate(e), Module::ExpertUp(e), Module::ExpertDown(e)];
            modules.extend((0..moe.num_experts).flat_map(expert));
        }
        (_, _, FfnForm::Gated) => modules.extend([Module::Gate, Module::Up, Module::Down]),
        (_, _, FfnForm::GatedFused) => modules.extend([Module::GateUp, Module::Down]),
        (_, _, FfnForm::Plain) => modules.extend([Module::Up, Module::Down]),
    }
    modules.extend(architecture.names.post_ffn.map(|_| Module::PostFfn));
    modules
}

/// A module's name, with `*` for the layer.
pub(super) fn name(config: &ModelConfig, module: Module) -> String {
    let names = &config.architecture.names;
    let expert = |e: usize, part: fn(&crate::architecture::Moe) -> &'static str| {
        let moe = &config.moe.as_ref().expect("only a mixture has experts").names;
        format!("{}.{}.{e}.{}", names.layer, moe.experts, part(moe))
    };
    let inner = match module {
        Module::Embed => return names.embed.into(),
        Module::Positions => return names.positions.into(),
        Module::FinalNorm => return names.final_norm.into(),
        Module::Head => return names.head.into(),
        Module::ExpertGate(e) => return expert(e, |m| m.gate),
        Module::ExpertUp(e) => return expert(e, |m| m.up),
        Module::ExpertDown(e) => return expert(e, |m| m.down),
        Module::Router => config.moe.as_ref().expect("only a mixture has a router").names.router,
        Module::Q => names.q,
        Module::K => names.k,
        Module::V => names.v,
        Module::Qkv => names.qkv,
        Module::O => names.o,
        Module::QNorm => names.q_norm,
        Module::KNorm => names.k_norm,
        Module::PreAttention => names.pre_attention,
        Module::PostAttention => names.post_attention.unwrap_or_default(),
        Module::PreFfn => names.pre_ffn,
        Module::PostFfn => names.post_ffn.unwrap_or_default(),
        Module::Gate => names.gate,
        Module::Up => names.up,
        Module::GateUp => names.gate_up,
        Module::Down => names.down,
    };
    format!("{}.{inner}", names.layer)
}

/// A weight's full shape.
pub(super) fn shape(config: &ModelConfig, module: Module) -> Vec<usize> {
    let hidden = config.hidden_size;
    let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let moe = config.moe.map_or(0, |m| m.intermediate_size);
    match module {
        Module::Embed | Module::Head => vec![config.vocab_size, hidden],
        Module::Positions => vec![config.position_rows().unwrap_or(0), hidden],
        Module::Q => vec![q, hidden],
        Module::K | Module::V => vec![kv, hidden],
        Module::Qkv => vec![q + 2 * kv, hidden],
        Module::O => vec![hidden, q],
        Module::QNorm | Module::KNorm => vec![config.head_dim],
        Module::Gate | Module::Up => vec![config.intermediate_size, hidden],
        Module::GateUp => vec![2 * config.intermediate_size, hidden],
        Module::Down => vec![hidden, config.intermediate_size],
        Module::Router => vec![config.moe.map_or(0, |m| m.num_experts), hidden],
        Module::ExpertGate(_) | Module::ExpertUp(_) => vec![moe, hidden],
        Module::ExpertDown(_) => vec![hidden, moe],
        _ => vec![hidden],
    }
}
