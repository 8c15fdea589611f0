//! NVIDIA's GPUs.

mod api;
mod driver;
mod gpu;
mod graph;
mod pinned;

pub use driver::NvidiaDriver;
pub use gpu::{Gpu, GpuInfo, probe, usable};
