//! Gemma 2 and the text model of Gemma 3: norms on both sides of each block, windows in most layers.

use tensor::{Activation, NormKind};

use super::llama::{LLAMA, NAMES};
use crate::architecture::*;

pub(super) const GEMMA2: Architecture = Architecture {
    name: "Gemma2ForCausalLM",
    model_type: "gemma2",
    names: Names {
        post_attention: Some("post_attention_layernorm"),
        pre_ffn: "pre_feedforward_layernorm",
        post_ffn: Some("post_feedforward_layernorm"),
        ..NAMES
    },
    norm: NormKind::Rms { weight_offset: 1.0 },
    ffn_bias: Bias::No,
    activation: ("hidden_activation", Activation::GeluTanh),
    windows: Windows::AllButEvery(2),
    scale: Scale::Key("query_pre_attn_scalar"),
    score_softcap: Some("attn_logit_softcapping"),
    logit_softcap: Some("final_logit_softcapping"),
    scaled_embedding: true,
    tied: true,
    defaults: &[
        ("rope_theta", 10_000.0),
        ("max_position_embeddings", 8192.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("sliding_window", 4096.0),
        ("query_pre_attn_scalar", 256.0),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
    ],
    ..LLAMA
};

pub(super) const GEMMA3_TEXT: Architecture = Architecture {
    name: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    qk_norm: true,
    positions: Positions::RopePerLayerType("rope_local_base_freq", 10_000.0),
    score_softcap: None,
    windows: Windows::AllButEvery(6),
    defaults: &[
        ("rope_theta", 1_000_000.0),
        ("max_position_embeddings", 131_072.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("sliding_window", 4096.0),
        ("query_pre_attn_scalar", 256.0),
    ],
    ..GEMMA2
};
