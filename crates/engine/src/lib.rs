//! Runs a model over ranks: workers, pipelines, replicas, scheduling, sampling, text.

mod bubble;
mod clocks;
mod cost;
mod cpu_ranks;
pub mod cpus;
mod cuda_ranks;
mod data_parallel;
mod dispatch;
mod engine;
mod error;
mod experts;
mod generate;
mod gpu_limits;
mod grammar;
mod groups;
mod helper;
mod kv_size;
mod large_stack;
mod launch;
mod leader;
mod memory;
mod options;
mod pack;
mod peers;
mod places;
mod plan;
mod pool;
mod prepared;
mod profile;
mod pulse;
mod replica;
mod report;
mod request;
mod router;
mod sampler;
mod sampling;
mod savings;
mod score;
pub mod serving;
mod steps;
pub mod text;
mod trace;
mod worker;

pub use bubble::Bubble;
pub use clocks::HostClock;
pub use cost::cost_of_step;
pub use cuda::{
    GpuInfo, GpuLimits, Reduction, broken_driver, missing_library, probe as gpus, usable as usable_gpus,
};
pub use engine::Engine;
pub use error::EngineError;
pub use experts::ExpertReport;
pub use gpu_limits::{HostGpus, gpu_library_rate, gpu_limits};
pub use grammar::Grammars;
pub use memory::peak_rss_bytes;
pub use options::{DeviceKind, EngineOptions};
pub use pack::{Packed, pack};
pub use plan::Plan;
pub use pool::PoolOptions;
pub use prepared::{packed_as, weight_bytes};
pub use pulse::RankPulse;
pub use report::{PartReport, RankReport, StepReport, Work};
pub use request::{
    BatchPrompt, Completion, FinishReason, GenerateBatch, GenerateRequest, Grammar, Logprobs, Opened, Timing,
};
pub use router::Router;
pub use sampling::SamplingParams;
pub use savings::Savings;
pub use trace::{RankTrace, TraceEvent};
