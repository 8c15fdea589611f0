//! NVIDIA's GPUs.

mod allocation;
mod api;
mod driver;
mod event;
mod events;
mod faults;
mod gate;
mod gpu;
mod graph;
mod lists;
mod modules;
mod pending;
mod pinned;
mod shared;
mod staging;
mod variables;

pub use driver::NvidiaDriver;
pub use gpu::{Gpu, GpuInfo, Usable, broken_driver, probe, usable};
pub use variables::set_variables;
pub(crate) use variables::{BLOCKS, told_otherwise};
