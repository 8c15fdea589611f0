//! Llama 1, 2, 3 and 3.1+: the base that the others vary.

use tensor::{Activation, NormKind};

use crate::architecture::*;

pub(super) const NAMES: Names = Names {
    embed: "model.embed_tokens",
    positions: "",
    layer: "model.layers.*",
    final_norm: "model.norm",
    head: "lm_head",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    qkv: "self_attn.qkv_proj",
    o: "self_attn.o_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    pre_attention: "input_layernorm",
    post_attention: None,
    pre_ffn: "post_attention_layernorm",
    post_ffn: None,
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    gate_up: "mlp.gate_up_proj",
    down: "mlp.down_proj",
};

pub(super) const LLAMA: Architecture = Architecture {
    name: "LlamaForCausalLM",
    model_type: "llama",
    names: NAMES,
    norm: NormKind::Rms { weight_offset: 0.0 },
    norm_eps: ("rms_norm_eps", 1e-6),
    qkv: Qkv::Separate,
    qkv_bias: Bias::Key("attention_bias", false),
    o_bias: Bias::Key("attention_bias", false),
    qk_norm: false,
    ffn: FfnForm::Gated,
    ffn_bias: Bias::Key("mlp_bias", false),
    activation: ("hidden_act", Activation::Silu),
    positions: Positions::Rope,
    windows: Windows::No,
    scale: Scale::HeadDim,
    score_softcap: None,
    logit_softcap: None,
    scaled_embedding: false,
    tied: false,
    aliases: &[],
    defaults: &[("rope_theta", 10_000.0), ("max_position_embeddings", 2048.0)],
    only: &[],
    moe: None,
};
