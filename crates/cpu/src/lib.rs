//! The CPU device: packed weights, kernels per instruction set, a pinned thread pool.
//!
//! ```text
//!   device.rs     what `tensor::Device` promises, one line per operation
//!   kernels/      one file per kernel, generic over the vector; tile.rs is the micro-kernel of all products
//!   simd/         the vector of 16 f32 for each instruction set
//!   pack/         weights in panels of 16 outputs, a file per kind of format
//!   pool.rs       the threads of a rank
//!   buffer.rs     memory: aligned, in huge pages, recycled
//!   limits.rs     what this machine could do at best
//! ```
//! Every element has one fixed order of operations (NUMERICS.md), so neither the instruction set nor the number
//! of threads nor the number of rows changes a bit of any result.

// Tiles are two-dimensional arrays of registers: indices say more than iterators.
#![allow(clippy::needless_range_loop)]

mod buffer;
mod device;
mod kernels;
pub mod limits;
mod pack;
mod pool;
mod simd;

pub use device::{CpuConfig, CpuDevice, CpuStep, CpuTensor};
pub use kernels::cache::CpuKv;
pub use kernels::moe::{CpuAssignment, CpuRouting};
pub use pack::CpuWeight;
pub use simd::Isa;

/// The name of the layout of packed weights, for who writes it to files. Another layout gets another name.
pub const PACKED_LAYOUT: &str = "cpu-panels-16";
