//! The vocabulary in which an architecture is written down. No control flow asks for an architecture's name.

use tensor::{Activation, NormKind};

/// A family of checkpoints, as data.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// What config.json calls it in `architectures`.
    pub name: &'static str,
    /// What config.json calls it in `model_type`.
    pub model_type: &'static str,
    /// Where its weights are.
    pub names: Names,
    /// The norm of rows.
    pub norm: NormKind,
    /// Key of the norm's epsilon, and its value where there is no such key.
    pub norm_eps: (&'static str, f32),
    /// Whether q, k and v are one matrix.
    pub qkv: Qkv,
    /// Bias of q, k and v.
    pub qkv_bias: Bias,
    /// Bias of the attention's output projection.
    pub o_bias: Bias,
    /// Whether each query and key head is normed before its rotation.
    pub qk_norm: bool,
    /// Shape of the feed-forward network.
    pub ffn: FfnForm,
    /// Bias of the feed-forward network.
    pub ffn_bias: Bias,
    /// Key of the activation, and which it is where it is missing.
    pub activation: (&'static str, Activation),
    /// How a token knows its place.
    pub positions: Positions,
    /// Which layers see only a window.
    pub windows: Windows,
    /// Scores are scaled by this.
    pub scale: Scale,
    /// Key of the soft cap of scores, for architectures that have one.
    pub score_softcap: Option<&'static str>,
    /// Key of the soft cap of logits, for architectures that have one.
    pub logit_softcap: Option<&'static str>,
    /// Whether embeddings are multiplied by √hidden_size.
    pub scaled_embedding: bool,
    /// Whether head and embedding are one where config.json doesn't say.
    pub tied: bool,
    /// Keys of config.json under other names: (ours, theirs).
    pub aliases: &'static [(&'static str, &'static str)],
    /// Values of keys that config.json may lack.
    pub defaults: &'static [(&'static str, f64)],
    /// Settings that would need other arithmetic: (key, the only value that works, where it is missing).
    pub only: &'static [(&'static str, Only)],
    /// The mixture of experts, for architectures that have one.
    pub moe: Option<Moe>,
}

/// A setting's only value that works.
#[derive(Clone, Copy, Debug)]
pub enum Only {
    /// This boolean (also if the key is missing).
    Bool(bool),
    /// The same number as another key (also if the key is missing).
    SameAs(&'static str),
}

/// Names of modules. Those of a layer stand behind `layer` with its number for `*`.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Token embedding.
    pub embed: &'static str,
    /// Learned positions.
    pub positions: &'static str,
    /// Prefix of a layer.
    pub layer: &'static str,
    /// Norm behind the last layer.
    pub final_norm: &'static str,
    /// Output head, where it isn't the embedding.
    pub head: &'static str,
    /// Query, key, value, and the three in one.
    pub q: &'static str,
    /// See `q`.
    pub k: &'static str,
    /// See `q`.
    pub v: &'static str,
    /// See `q`.
    pub qkv: &'static str,
    /// Attention's output projection.
    pub o: &'static str,
    /// Norms of query and key heads.
    pub q_norm: &'static str,
    /// See `q_norm`.
    pub k_norm: &'static str,
    /// Norm before attention.
    pub pre_attention: &'static str,
    /// Norm behind attention, before the residual add.
    pub post_attention: Option<&'static str>,
    /// Norm before the feed-forward network.
    pub pre_ffn: &'static str,
    /// Norm behind it, before the residual add.
    pub post_ffn: Option<&'static str>,
    /// Gate, up, and the two in one; `up` alone where there is no gate.
    pub gate: &'static str,
    /// See `gate`.
    pub up: &'static str,
    /// See `gate`.
    pub gate_up: &'static str,
    /// Down.
    pub down: &'static str,
}

/// Whether q, k and v are one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// Three matrices.
    Separate,
    /// One: q over k over v.
    Fused,
}

/// Whether a linear layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It has none.
    No,
    /// It has one.
    Yes,
    /// config.json says (key, and what holds if the key is missing).
    Key(&'static str, bool),
}

/// Shape of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfnForm {
    /// down(act(gate(x)) · up(x)), three matrices.
    Gated,
    /// The same, with gate over up in one matrix.
    GatedFused,
    /// down(act(up(x))).
    Plain,
}

/// How a token knows its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// Rotary embedding of queries and keys, the same in every layer.
    Rope,
    /// Rotary embedding; layers with a window have their own base (key, default).
    RopePerLayerType(&'static str, f32),
    /// A table that is added to the embedding; position p is row p + offset.
    Learned {
        /// Rows before position 0.
        offset: usize,
    },
}

/// Which layers see only a window, where config.json has no `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    No,
    /// All, if `sliding_window` is a number (the default if the key is missing).
    All(Option<usize>),
    /// All, if `use_sliding_window` is on too.
    IfUsed,
    /// Those from `max_window_layers` on, if `use_sliding_window` is on.
    FromLayer,
    /// All but every n-th, where n is `sliding_window_pattern` or this default.
    AllButEvery(usize),
}

/// What scores are scaled by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// 1 / √head_dim.
    HeadDim,
    /// 1 / √(the number under this key).
    Key(&'static str),
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct Moe {
    /// Key of the number of experts.
    pub num_experts: &'static str,
    /// Key of an expert's intermediate size.
    pub intermediate_size: &'static str,
    /// Whether the chosen weights are divided by their sum.
    pub normalize: Bias,
    /// Which layers have experts.
    pub layers: MoeLayers,
    /// The router's module.
    pub router: &'static str,
    /// The module that holds the experts; expert `e` is `{experts}.{e}`.
    pub experts: &'static str,
    /// An expert's gate, up and down.
    pub gate: &'static str,
    /// See `gate`.
    pub up: &'static str,
    /// See `gate`.
    pub down: &'static str,
    /// Modules as transformers 5 keeps them in memory, with all experts in one tensor `[experts, rows, cols]`
    /// called `gate_up_proj` and `down_proj`: the router, and the module that holds them.
    pub packed: (&'static str, &'static str),
}

/// Which layers have experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoeLayers {
    /// All.
    All,
    /// Layer i if (i + 1) is a multiple of `decoder_sparse_step` and i isn't in `mlp_only_layers`.
    SparseStep,
}
