//! Phi-3 and Phi-4-mini: Mistral with q, k, v in one matrix, gate and up in another, and possibly partly rotated heads.

use super::mistral::MISTRAL;
use crate::architecture::*;

pub(super) const PHI3: Architecture = Architecture {
    name: "Phi3ForCausalLM",
    model_type: "phi3",
    norm_eps: ("rms_norm_eps", 1e-5),
    qkv: Qkv::Fused,
    ffn: FfnForm::GatedFused,
    windows: Windows::All(None),
    defaults: &[("rope_theta", 10_000.0), ("max_position_embeddings", 4096.0)],
    ..MISTRAL
};
