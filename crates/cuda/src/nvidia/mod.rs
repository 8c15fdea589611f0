//! NVIDIA's GPUs.

mod allocation;
mod api;
mod driver;
mod events;
mod faults;
mod gpu;
mod graph;
mod pending;
mod pinned;
mod shared;
mod variables;

pub use driver::NvidiaDriver;
pub use gpu::{Gpu, GpuInfo, broken_driver, probe, usable};
pub use variables::set_variables;
