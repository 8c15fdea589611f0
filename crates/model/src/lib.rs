//! Language models: architectures as data, one forward pass, and how it is split over ranks.

pub mod architecture;
pub mod architectures;
mod attention;
pub mod config;
mod decoder;
mod error;
mod ffn;
mod kv_cache;
mod loader;
mod norm;
pub mod parallel;
mod step;
pub mod tp_plan;

pub use config::ModelConfig;
pub use decoder::Decoder;
pub use error::ModelError;
pub use kv_cache::{KvCache, bytes_per_token};
pub use loader::{LoadStats, Loader};
pub use parallel::{Layout, Logits, Pipeline, Rank, Stage};
pub use step::check_tokens;
pub use tp_plan::TpPlan;
