//! Kernels give the bits that NUMERICS.md says, in whatever order the threads of a block run.

mod emulated;
mod suite;

use cuda::{CudaDevice, Reduction};
use emulated::Emulated;
use tensor::{DType, Scales, WeightFormat, conformance};

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

#[test]
fn scales_of_checkpoints_are_those_of_the_reference() {
    // An order for each format, since each takes long.
    for (turn, (format, inputs)) in suite::scaled().enumerate() {
        let Some(driver) = Emulated::new([0, 1, 7][turn % 3]) else { return };
        let dev = CudaDevice::new(Box::new(driver));
        conformance::linear_near(&dev, format, inputs);
        conformance::experts_near(&dev, format, inputs);
    }
}

/// A device that chooses the order of its sums.
fn fast(turn: u32) -> Option<CudaDevice> {
    Some(CudaDevice::with(Box::new(Emulated::new(turn)?), Reduction::Fast))
}

#[test]
fn sums_of_any_order_are_near_the_references() {
    // Activations of few rows are not rounded, but those of many are.
    let kinds = [
        (DType::F16.into(), DType::F16),
        (DType::BF16.into(), DType::BF16),
        (WeightFormat::Fp8, DType::BF16),
        (WeightFormat::Scaled(Scales::OUTPUT), DType::BF16),
        (WeightFormat::Scaled(Scales::every(128, None).expect("whole groups")), DType::BF16),
        (WeightFormat::Int8, DType::F32),
        (WeightFormat::Int4, DType::F32),
    ];
    let Some(dev) = fast(7) else { return };
    for (format, inputs) in kinds {
        conformance::linear_near(&dev, format, inputs);
    }
    conformance::linear_of(&dev, &[WeightFormat::Float(DType::F32)]);
}
