//! Kernels give the bits that NUMERICS.md says, in whatever order the threads of a block run.

mod emulated;
mod suite;

use cuda::CudaDevice;
use emulated::Emulated;
use tensor::{DType, conformance};

/// A device for each order of threads; none without a C++ compiler.
fn devices() -> impl Iterator<Item = CudaDevice> {
    [0, 1, 7].into_iter().filter_map(|turn| Some(CudaDevice::new(Box::new(Emulated::new(turn)?))))
}

#[test]
fn rows_are_those_of_the_reference() {
    devices().for_each(|dev| conformance::rows(&dev));
}

#[test]
fn linear_layers_of_f32_and_of_whole_numbers_are_those_of_the_reference() {
    devices().for_each(|dev| conformance::linear_of(&dev, &suite::EXACT));
}

#[test]
fn tensor_cores_sum_what_the_reference_sums() {
    devices().for_each(|dev| {
        suite::NEAR.iter().for_each(|&(format, inputs)| conformance::linear_near(&dev, format, inputs))
    });
}

#[test]
fn experts_are_those_of_the_reference() {
    devices().for_each(|dev| {
        conformance::experts_of(&dev, &suite::EXACT);
        conformance::experts_near(&dev, DType::BF16.into(), DType::BF16);
    });
}
