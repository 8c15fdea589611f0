//! OPT: learned positions with an offset of two, LayerNorm and biases everywhere, a feed-forward network without gate.

use tensor::{Activation, NormKind};

use super::llama::{LLAMA, NAMES};
use crate::architecture::*;

pub(super) const OPT: Architecture = Architecture {
    name: "OPTForCausalLM",
    model_type: "opt",
    names: Names {
        embed: "model.decoder.embed_tokens",
        positions: "model.decoder.embed_positions",
        layer: "model.decoder.layers.*",
        final_norm: "model.decoder.final_layer_norm",
        o: "self_attn.out_proj",
        pre_attention: "self_attn_layer_norm",
        pre_ffn: "final_layer_norm",
        up: "fc1",
        down: "fc2",
        ..NAMES
    },
    norm: NormKind::Layer,
    norm_eps: ("layer_norm_eps", 1e-5),
    qkv_bias: Bias::Key("enable_bias", true),
    o_bias: Bias::Key("enable_bias", true),
    ffn: FfnForm::Plain,
    ffn_bias: Bias::Key("enable_bias", true),
    activation: ("activation_function", Activation::Relu),
    positions: Positions::Learned { offset: 2 },
    tied: true,
    aliases: &[("intermediate_size", "ffn_dim")],
    defaults: &[("max_position_embeddings", 2048.0)],
    only: &[
        ("do_layer_norm_before", Only::Bool(true)),
        ("layer_norm_elementwise_affine", Only::Bool(true)),
        ("_remove_final_layer_norm", Only::Bool(false)),
        ("word_embed_proj_dim", Only::SameAs("hidden_size")),
    ],
    ..LLAMA
};
