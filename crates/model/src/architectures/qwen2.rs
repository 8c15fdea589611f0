//! Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and windows in the upper layers if asked for.

use super::llama::LLAMA;
use crate::architecture::*;

pub(super) const QWEN2: Architecture = Architecture {
    name: "Qwen2ForCausalLM",
    model_type: "qwen2",
    qkv_bias: Bias::Yes,
    o_bias: Bias::No,
    ffn_bias: Bias::No,
    windows: Windows::FromLayer,
    defaults: &[
        ("rope_theta", 10_000.0),
        ("max_position_embeddings", 32_768.0),
        ("num_key_value_heads", 32.0),
        ("sliding_window", 4096.0),
        ("max_window_layers", 28.0),
    ],
    ..LLAMA
};
