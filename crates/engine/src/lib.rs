//! Runs a model over ranks: workers, pipelines, replicas, scheduling, sampling, text.

mod bubble;
mod call;
mod cost;
pub mod cpus;
mod data_parallel;
mod engine;
mod error;
mod experts;
mod groups;
mod launch;
mod leader;
mod memory;
mod options;
mod plan;
mod prepared;
mod replica;
mod report;
mod request;
mod router;
mod sampler;
mod sampling;
pub mod text;
mod worker;

pub use bubble::Bubble;
pub use cost::cost_of_step;
pub use engine::{Engine, Savings};
pub use error::EngineError;
pub use experts::ExpertReport;
pub use memory::peak_rss_bytes;
pub use options::EngineOptions;
pub use plan::Plan;
pub use prepared::weight_bytes;
pub use report::RankReport;
pub use request::{Completion, FinishReason, GenerateRequest, OpTime, Timing};
pub use router::Router;
pub use sampling::SamplingParams;
