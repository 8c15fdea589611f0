//! Mistral: Llama with a sliding window.

use super::llama::LLAMA;
use crate::architecture::*;

pub(super) const MISTRAL: Architecture = Architecture {
    name: "MistralForCausalLM",
    model_type: "mistral",
    qkv_bias: Bias::No,
    o_bias: Bias::No,
    ffn_bias: Bias::No,
    windows: Windows::All(Some(4096)),
    defaults: &[
        ("rope_theta", 10_000.0),
        ("max_position_embeddings", 131_072.0),
        ("num_key_value_heads", 8.0),
    ],
    ..LLAMA
};
