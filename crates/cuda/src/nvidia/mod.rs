//! NVIDIA's GPUs.

mod api;
mod driver;
mod gpu;
mod graph;
mod pending;
mod pinned;
mod shared;

pub use driver::NvidiaDriver;
pub use gpu::{Gpu, GpuInfo, probe, usable};
