//! config.json, in either generation, as the numbers that a forward pass needs.

mod fp8;
mod json;
mod rope;

use serde_json::Value;
use tensor::{Activation, DType, RopeSpec};

use crate::ModelError;
use crate::architecture::{Architecture, Bias, FfnForm, Moe, MoeLayers, Only, Positions, Scale, Windows};
use crate::architectures::ALL;
pub use fp8::Fp8Config;
use json::Json;

/// A model's shape and settings, whatever its config.json called them.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The architecture's data.
    pub architecture: &'static Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of a dense feed-forward network.
    pub intermediate_size: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Added to a norm's mean square.
    pub norm_eps: f32,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether attention's output projection has one.
    pub o_bias: bool,
    /// Whether the feed-forward network has one.
    pub ffn_bias: bool,
    /// The feed-forward network's activation.
    pub activation: Activation,
    /// Scores are `(q · k) · scale`.
    pub attention_scale: f32,
    /// Soft cap of scores.
    pub attention_softcap: Option<f32>,
    /// Soft cap of logits.
    pub logit_softcap: Option<f32>,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f32>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The layers.
    pub layers: Vec<LayerConfig>,
    /// The rotary embeddings that layers refer to.
    pub ropes: Vec<RopeSpec>,
    /// The mixture of experts.
    pub moe: Option<MoeConfig>,
    /// Type that the config says the weights have.
    pub dtype: Option<DType>,
    /// How linear layers are stored, if in e4m3.
    pub fp8: Option<Fp8Config>,
    /// Begin of sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a completion.
    pub eos_token_ids: Vec<u32>,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Positions seen, if not all.
    pub window: Option<usize>,
    /// Index into the ropes, if the model rotates.
    pub rope: Option<usize>,
    /// Whether its feed-forward network is a mixture of experts.
    pub moe: bool,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct MoeConfig {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts chosen per token.
    pub top_k: usize,
    /// Width of one expert.
    pub intermediate_size: usize,
    /// Whether the chosen weights are divided by their sum.
    pub normalize: bool,
    /// Names.
    pub names: Moe,
}

impl ModelConfig {
    /// Reads config.json, and generation_config.json where there is one (its end-of-sequence ids count too).
    ///
    /// # Errors
    /// An architecture that isn't known, a key that is missing, a number that can't be.
    pub fn parse(config: &Value, generation: Option<&Value>) -> Result<Self, ModelError> {
        let architecture = find_architecture(config)?;
        let json = Json::new(config, architecture);
        check_only(&json, architecture)?;
        let fp8 = json.get("quantization_config").map(Fp8Config::parse).transpose()?;
        let hidden_size = json.size("hidden_size", 1 << 20)?;
        let num_heads = json.size("num_attention_heads", 1 << 12)?;
        let num_kv_heads = match json.maybe_size("num_key_value_heads", 1 << 12)? {
            Some(heads) => heads,
            None => num_heads,
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(json.error(format!(
                "num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
            )));
        }
        let head_dim = match json.maybe_size("head_dim", 1 << 12)? {
            Some(dim) => dim,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                return Err(json.error(format!(
                    "hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}, and there is no head_dim"
                )));
            }
        };
        let num_layers = json.size("num_hidden_layers", 1 << 12)?;
        let windows = windows(&json, architecture.windows, num_layers)?;
        let (ropes, rope_of_layer) = rope::ropes(&json, architecture.positions, head_dim, &windows)?;
        let moe = architecture.moe.map(|names| moe(&json, names)).transpose()?;
        if moe.is_some_and(|moe| num_layers * moe.num_experts > MOST_EXPERTS) {
            return Err(json.error(format!(
                "{num_layers} layers of experts make more than {MOST_EXPERTS} experts in all"
            )));
        }
        let sparse = moe_layers(&json, moe.as_ref(), num_layers)?;
        let layers = windows
            .into_iter()
            .zip(rope_of_layer)
            .zip(sparse)
            .map(|((window, rope), moe)| LayerConfig { window, rope, moe })
            .collect();
        let softcap = |key: Option<&str>| key.map_or(Ok(None), |key| json.maybe_positive(key));
        let attention_scale = match architecture.scale {
            Scale::HeadDim => 1.0 / (head_dim as f64).sqrt(),
            Scale::Key(key) => 1.0 / f64::from(json.positive(key)?).sqrt(),
        };
        Ok(ModelConfig {
            architecture,
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: json.size("intermediate_size", 1 << 22)?,
            vocab_size: json.size("vocab_size", 1 << 24)?,
            max_position_embeddings: json.size("max_position_embeddings", 1 << 28)?,
            norm_eps: json.maybe_positive(architecture.norm_eps.0)?.unwrap_or(architecture.norm_eps.1),
            qkv_bias: bias(&json, architecture.qkv_bias)?,
            o_bias: bias(&json, architecture.o_bias)?,
            ffn_bias: bias(&json, architecture.ffn_bias)?,
            activation: activation(&json, architecture)?,
            attention_scale: attention_scale as f32,
            attention_softcap: softcap(architecture.score_softcap)?,
            logit_softcap: softcap(architecture.logit_softcap)?,
            embedding_scale: architecture.scaled_embedding.then(|| (hidden_size as f64).sqrt() as f32),
            tied: json.bool("tie_word_embeddings", architecture.tied)?,
            layers,
            ropes,
            moe,
            dtype: json.dtype()?,
            fp8,
            bos_token_id: json.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: eos_token_ids(&json, generation)?,
        })
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Rows of the table of learned positions, if there is one.
    pub fn position_rows(&self) -> Option<usize> {
        match self.architecture.positions {
            Positions::Learned { offset } => Some(self.max_position_embeddings + offset),
            _ => None,
        }
    }

    /// Whether the feed-forward network has a gate.
    pub fn gated(&self) -> bool {
        self.architecture.ffn != FfnForm::Plain
    }
}

/// More experts in all layers than any model has.
const MOST_EXPERTS: usize = 1 << 17;

fn find_architecture(config: &Value) -> Result<&'static Architecture, ModelError> {
    let wrong = |key: &str, what: &str| ModelError::Config(format!("{key} must be {what}"));
    let named = match config.get("architectures") {
        None | Some(Value::Null) => None,
        Some(list) => Some(list.get(0).and_then(Value::as_str).ok_or_else(|| {
            wrong("architectures", "a list that begins with a name, such as [\"LlamaForCausalLM\"]")
        })?),
    };
    let typed = match config.get("model_type") {
        None | Some(Value::Null) => None,
        Some(name) => Some(name.as_str().ok_or_else(|| wrong("model_type", "a name in quotes"))?),
    };
    let found = match (named, typed) {
        (Some(name), _) => ALL.iter().find(|a| a.name == name),
        (None, Some(model_type)) => ALL.iter().find(|a| a.model_type == model_type),
        (None, None) => {
            return Err(ModelError::Config("neither \"architectures\" nor \"model_type\" is there".into()));
        }
    };
    found.copied().ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|a| a.name).collect();
        ModelError::Config(format!(
            "architecture {} is not known; known are {}",
            named.or(typed).unwrap_or_default(),
            known.join(", ")
        ))
    })
}

fn check_only(json: &Json, architecture: &Architecture) -> Result<(), ModelError> {
    for (key, only) in architecture.only {
        match only {
            Only::Bool(value) if json.bool(key, *value)? != *value => {
                return Err(json.error(format!("{key} must be {value}; the other form is not supported")));
            }
            Only::SameAs(other) => {
                let (a, b) = (json.maybe_size(key, 1 << 20)?, json.size(other, 1 << 20)?);
                if a.is_some_and(|a| a != b) {
                    return Err(
                        json.error(format!("{key} must be {other} ({b}); the other form is not supported"))
                    );
                }
            }
            Only::Bool(_) => {}
        }
    }
    Ok(())
}

fn bias(json: &Json, bias: Bias) -> Result<bool, ModelError> {
    match bias {
        Bias::No => Ok(false),
        Bias::Yes => Ok(true),
        Bias::Key(key, default) => json.bool(key, default),
    }
}

fn activation(json: &Json, architecture: &Architecture) -> Result<Activation, ModelError> {
    let (key, default) = architecture.activation;
    let Some(name) = json.text(key)? else { return Ok(default) };
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::GeluErf),
        "relu" => Ok(Activation::Relu),
        _ => Err(json.error(format!(
            "{key} \"{name}\" is not known; known are silu, gelu, gelu_pytorch_tanh, gelu_new, relu"
        ))),
    }
}

fn windows(json: &Json, windows: Windows, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let size = || json.maybe_size("sliding_window", 1 << 28);
    let used = || json.bool("use_sliding_window", false);
    let window = match windows {
        Windows::No => None,
        Windows::All(default) => match json.has("sliding_window") {
            true => size()?,
            false => default,
        },
        Windows::IfUsed | Windows::FromLayer => match used()? {
            true => size()?,
            false => None,
        },
        Windows::AllButEvery(_) => size()?,
    };
    let Some(window) = window else { return Ok(vec![None; layers]) };
    let sliding: Vec<bool> = match (json.layer_types(layers)?, windows) {
        (Some(types), Windows::FromLayer | Windows::AllButEvery(_)) => types,
        (_, Windows::FromLayer) => {
            let first = json.count("max_window_layers", 1 << 12)?;
            (0..layers).map(|i| i >= first).collect()
        }
        (_, Windows::AllButEvery(n)) => {
            let n = json.maybe_size("sliding_window_pattern", 1 << 12)?.unwrap_or(n);
            (0..layers).map(|i| !(i + 1).is_multiple_of(n)).collect()
        }
        _ => vec![true; layers],
    };
    Ok(sliding.into_iter().map(|s| s.then_some(window)).collect())
}

fn moe(json: &Json, names: Moe) -> Result<MoeConfig, ModelError> {
    let num_experts = json.size(names.num_experts, 1 << 14)?;
    let top_k = json.size("num_experts_per_tok", 1 << 10)?;
    if top_k > num_experts {
        return Err(
            json.error(format!("num_experts_per_tok {top_k} exceeds {} {num_experts}", names.num_experts))
        );
    }
    let intermediate_size = json.size(names.intermediate_size, 1 << 22)?;
    Ok(MoeConfig { num_experts, top_k, intermediate_size, normalize: bias(json, names.normalize)?, names })
}

fn moe_layers(json: &Json, moe: Option<&MoeConfig>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let Some(moe) = moe else { return Ok(vec![false; layers]) };
    match moe.names.layers {
        MoeLayers::All => Ok(vec![true; layers]),
        MoeLayers::SparseStep => {
            let step = json.size("decoder_sparse_step", 1 << 12)?;
            let dense = json.counts("mlp_only_layers")?;
            Ok((0..layers).map(|i| (i + 1).is_multiple_of(step) && !dense.contains(&i)).collect())
        }
    }
}

/// The ids of generation_config.json stand before config.json's, as they do for Hugging Face's `generate`.
fn eos_token_ids(json: &Json, generation: Option<&Value>) -> Result<Vec<u32>, ModelError> {
    if let Some(generation) = generation.filter(|g| g.get("eos_token_id").is_some_and(|id| !id.is_null())) {
        return json::token_ids(generation, "eos_token_id").map_err(ModelError::GenerationConfig);
    }
    json.token_ids("eos_token_id")
}
