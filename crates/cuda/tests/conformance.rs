//! Kernels give the bits that NUMERICS.md says, in whatever order the threads of a block run.

mod emulated;

use cuda::CudaDevice;
use emulated::Emulated;
use tensor::conformance;

/// A device for each order of threads; none without a C++ compiler.
fn devices() -> impl Iterator<Item = CudaDevice> {
    [0, 1, 7].into_iter().filter_map(|turn| Some(CudaDevice::new(Box::new(Emulated::new(turn)?))))
}

#[test]
fn rows_are_those_of_the_reference() {
    devices().for_each(|dev| conformance::rows(&dev));
}
