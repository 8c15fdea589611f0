//! What a device of CUDA owes the reference, whatever drives it.

#![allow(dead_code, reason = "each program of tests uses a part")]

use cuda::CudaDevice;
use tensor::conformance::{self, Agreement};
use tensor::{DType, KvDType, WeightFormat};

mod unseen;

pub use unseen::unseen_values;

/// Formats whose products have the reference's bits.
pub const EXACT: [WeightFormat; 3] =
    [WeightFormat::Float(DType::F32), WeightFormat::Int8, WeightFormat::Int4];

/// Formats that tensor cores sum as they do, and what inputs are rounded to.
pub const NEAR: [(WeightFormat, DType); 3] = [
    (WeightFormat::Float(DType::F16), DType::F16),
    (WeightFormat::Float(DType::BF16), DType::BF16),
    (WeightFormat::Fp8, DType::BF16),
];

/// Over f32 attention has the reference's bits. Else weights, at most 1, are rounded to the type that tensor cores multiply: by
/// 1/512 of themselves as bfloat16, by 1/4,096 as float16. A sum of weighted values is off by as much of the sum of their
/// magnitudes, which can be a few times as large as the largest sum of a row, where they cancel out.
pub fn agreement(dtype: KvDType) -> Agreement {
    match dtype {
        KvDType::Float(DType::F32) => Agreement::Bits,
        KvDType::Float(DType::BF16) => Agreement::Near { multiplies: DType::BF16, tolerance: 1.0 / 128.0 },
        _ => Agreement::Near { multiplies: DType::F16, tolerance: 1.0 / 1024.0 },
    }
}

/// The same of formats with scales of checkpoints.
pub fn scaled() -> impl Iterator<Item = (WeightFormat, DType)> {
    conformance::scaled().into_iter().map(|format| (format, DType::BF16))
}

/// One part.
pub type Part = fn(&CudaDevice);

/// All of it, for devices that take no minute for each.
pub const ALL: &[(&str, Part)] = &[
    ("rows", |dev| conformance::rows(dev)),
    ("linear layers", |dev| conformance::linear_of(dev, &EXACT)),
    ("tensor cores", |dev| {
        NEAR.into_iter()
            .chain(scaled())
            .for_each(|(format, inputs)| conformance::linear_near(dev, format, inputs))
    }),
    ("experts", |dev| {
        conformance::experts_of(dev, &EXACT);
        conformance::experts_near(dev, DType::BF16.into(), DType::BF16);
        scaled().for_each(|(format, inputs)| conformance::experts_near(dev, format, inputs));
    }),
    ("attention", |dev| conformance::attention_agreeing(dev, &agreement)),
    ("unseen values", unseen_values),
    ("segments", |dev| conformance::context_agreeing(dev, &agreement)),
    ("copies", |dev| conformance::copies_agreeing(dev, &agreement)),
    ("logits", |dev| conformance::logits(dev)),
];
