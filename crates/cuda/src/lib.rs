//! The CUDA device.
//!
//! Kernels are CUDA C++ (`kernels/`), one file per operation, compiled when they are first needed. They are written in a few
//! words that have two meanings: `gpu.cuh` has those of a GPU, `emulated.h` those of a processor, so that every kernel also
//! runs, slowly, where there is no GPU. Between [`CudaDevice`] and either is a [`Driver`].
//!
//! Nothing of NVIDIA's is needed to build this. [`probe`] and [`Gpu::open`] look for the driver and the compiler at run time; what
//! is missing is an error of one line. What was compiled is kept in a [`CubinCache`].

mod attention;
pub mod compile;
mod cubin_cache;
mod device;
mod driver;
pub mod kernels;
mod kv;
mod libraries;
mod limits;
mod linear;
mod logits;
mod memory;
mod moe;
pub mod nccl;
mod nvidia;
pub mod nvrtc;
mod nvtx;
mod of_program;
mod ranks;
mod reduction;
pub mod resources;
mod ring;
mod rows;
mod step;
mod step_graphs;
mod tensor;
mod watch;
mod work;

pub use attention::kernels_for;
pub use cubin_cache::CubinCache;
pub use device::CudaDevice;
pub use driver::{Address, Arguments, Driver, Fault, Foreign, Grid, Kernel, Mark, SharedMemory};
pub use kv::CudaKv;
pub use limits::{GpuLimits, library_rate};
pub use linear::{CudaWeight, MOST_HEADS};
pub use moe::{CudaAssignment, CudaRouting};
pub use nvidia::{Gpu, GpuInfo, NvidiaDriver, Usable, broken_driver, probe, set_variables, usable};
pub use ranks::{CudaGroup, GROUP_BYTES, Way};
pub use reduction::Reduction;
pub use step::CudaStep;
pub use tensor::CudaTensor;
