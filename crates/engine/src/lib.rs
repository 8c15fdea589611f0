//! Runs a model over ranks: workers, scheduling, sampling, text.

mod cost;
pub mod cpus;
mod engine;
mod error;
mod launch;
mod memory;
mod options;
mod sampler;
mod sampling;
pub mod text;
mod worker;

pub use cost::cost_of_step;
pub use engine::{Completion, Engine, FinishReason, GenerateRequest, OpTime, Timing};
pub use error::EngineError;
pub use options::EngineOptions;
pub use sampling::SamplingParams;
pub use worker::RankReport;
