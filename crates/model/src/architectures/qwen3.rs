//! Qwen3 is Qwen2 without the bias, with normed query and key heads; Qwen3-MoE is Qwen3 with experts.

use super::{llama::LLAMA, qwen2::QWEN2};
use crate::architecture::*;

pub(super) const QWEN3: Architecture = Architecture {
    name: "Qwen3ForCausalLM",
    model_type: "qwen3",
    qkv_bias: LLAMA.qkv_bias,
    o_bias: LLAMA.o_bias,
    qk_norm: true,
    defaults: &[
        ("rope_theta", 10_000.0),
        ("max_position_embeddings", 32_768.0),
        ("num_key_value_heads", 32.0),
        ("head_dim", 128.0),
        ("sliding_window", 4096.0),
        ("max_window_layers", 28.0),
    ],
    ..QWEN2
};

pub(super) const QWEN3_MOE: Architecture = Architecture {
    name: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    windows: Windows::IfUsed,
    aliases: &[("num_experts", "num_local_experts")],
    defaults: &[
        ("rope_theta", 10_000.0),
        ("max_position_embeddings", 32_768.0),
        ("num_key_value_heads", 4.0),
        ("sliding_window", 4096.0),
        ("decoder_sparse_step", 1.0),
        ("moe_intermediate_size", 768.0),
        ("num_experts", 128.0),
        ("num_experts_per_tok", 8.0),
    ],
    moe: Some(Moe {
        num_experts: "num_experts",
        intermediate_size: "moe_intermediate_size",
        normalize: Bias::Key("norm_topk_prob", false),
        layers: MoeLayers::SparseStep,
        router: "mlp.gate",
        experts: "mlp.experts",
        gate: "gate_proj",
        up: "up_proj",
        down: "down_proj",
        packed: ("mlp.gate", "mlp.experts"),
    }),
    ..QWEN3
};
