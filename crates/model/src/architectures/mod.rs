//! The architectures that are known, one file each. Adding one: a file of data, a line here and a golden checkpoint.

mod gemma;
mod llama;
mod mistral;
mod mixtral;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;

use crate::architecture::Architecture;

/// Every architecture that is known.
pub const ALL: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &gemma::GEMMA2,
    &gemma::GEMMA3_TEXT,
    &phi3::PHI3,
    &mixtral::MIXTRAL,
    &qwen3::QWEN3_MOE,
    &opt::OPT,
];
