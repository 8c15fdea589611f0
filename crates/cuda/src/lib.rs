//! The CUDA device.
//!
//! Kernels are CUDA C++ (`kernels/`), one file per operation, compiled when they are first needed. They are written in a few
//! words that have two meanings: `gpu.cuh` has those of a GPU, `emulated.h` those of a processor, so that every kernel also
//! runs, slowly, where there is no GPU. Between [`CudaDevice`] and either is a [`Driver`].

mod attention;
mod device;
mod driver;
pub mod kernels;
mod kv;
mod memory;
mod rows;
mod step;
mod tensor;

pub use device::CudaDevice;
pub use driver::{Address, Arguments, Driver, Fault, Grid, Kernel};
pub use kv::CudaKv;
pub use step::CudaStep;
pub use tensor::CudaTensor;
