//! What a device of CUDA owes the reference, whatever drives it.

#![allow(dead_code, reason = "each program of tests uses a part")]

use tensor::conformance::{self, Agreement};
use tensor::{DType, KvDType, WeightFormat};

pub mod unseen;

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
