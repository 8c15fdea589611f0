//! Mixtral: Mistral with experts.

use super::mistral::MISTRAL;
use crate::architecture::*;

pub(super) const MIXTRAL: Architecture = Architecture {
    name: "MixtralForCausalLM",
    model_type: "mixtral",
    norm_eps: ("rms_norm_eps", 1e-5),
    windows: Windows::All(None),
    defaults: &[
        ("rope_theta", 1_000_000.0),
        ("max_position_embeddings", 131_072.0),
        ("num_key_value_heads", 8.0),
        ("num_local_experts", 8.0),
        ("num_experts_per_tok", 2.0),
    ],
    moe: Some(Moe {
        num_experts: "num_local_experts",
        intermediate_size: "intermediate_size",
        normalize: Bias::Yes,
        layers: MoeLayers::All,
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        gate: "w1",
        up: "w3",
        down: "w2",
        packed: ("mlp.gate", "mlp.experts"),
    }),
    ..MISTRAL
};
