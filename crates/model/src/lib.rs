//! Language models: architectures as data, one forward pass, and how it is split over ranks.

pub mod architecture;
pub mod architectures;
mod attention;
pub mod config;
mod decoder;
mod error;
mod ffn;
mod finite;
mod kv_cache;
mod loader;
mod norm;
pub mod parallel;
mod quantization;
mod residual;
mod step;
mod stored;
pub mod tp_plan;

pub use config::{Fp8Config, ModelConfig};
pub use decoder::Decoder;
pub use error::ModelError;
pub use kv_cache::{KvCache, bytes_per_token, replicated_bytes_per_token};
pub use loader::{LoadStats, Loader};
pub use parallel::{Calls, Candidates, Layout, Logits, Pipeline, Rank, Stage};
pub use quantization::{KeptAs, Quantization, StoredAs};
pub use step::check_tokens;
pub use stored::{StoredVector, StoredWeight};
pub use tp_plan::TpPlan;
