use std::fmt;

use crate::fp8;

/// The type in which elements of weights and of the KV cache are kept. Activations are always `F32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// The name that users write and read: `float32`, `float16`, `bfloat16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
        }
    }

    /// The type of that name (config.json's or safetensors' spelling), if it is one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "float32" | "float" | "F32" => Some(DType::F32),
            "float16" | "half" | "F16" => Some(DType::F16),
            "bfloat16" | "BF16" => Some(DType::BF16),
            _ => None,
        }
    }

    /// `x` rounded to this type (nearest, ties to even) and widened again.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::F32 => x,
            DType::F16 => half::f16::from_f32(x).to_f32(),
            DType::BF16 => half::bf16::from_f32(x).to_f32(),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type in which keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// Element by element.
    Float(DType),
    /// e4m3 ([`fp8`]), and for each position and KV head a scale of its keys and one of its values.
    Fp8,
}

impl KvDType {
    /// All of them.
    pub const ALL: [KvDType; 4] =
        [KvDType::Float(DType::F32), KvDType::Float(DType::BF16), KvDType::Float(DType::F16), KvDType::Fp8];

    /// Size in bytes of one position's keys, or values, of one head. A scale takes two.
    pub const fn bytes(self, head_dim: usize) -> usize {
        match self {
            KvDType::Float(dtype) => head_dim * dtype.bytes(),
            KvDType::Fp8 => head_dim + 2,
        }
    }

    /// The name that users write and read: `float32`, `bfloat16`, `float16`, `fp8`.
    pub const fn name(self) -> &'static str {
        match self {
            KvDType::Float(dtype) => dtype.name(),
            KvDType::Fp8 => "fp8",
        }
    }

    /// One position's keys or values of one head, rounded and widened again, and their scale: element · scale is what
    /// is kept. Without scales it is 1. If an element of `head` is not finite, an fp8 scale is NaN.
    pub fn round(self, head: &[f32]) -> (Vec<f32>, f32) {
        match self {
            KvDType::Float(dtype) => (head.iter().map(|&x| dtype.round(x)).collect(), 1.0),
            KvDType::Fp8 => {
                let scale = fp8::scale_of(head);
                (head.iter().map(|x| fp8::to_f32(fp8::from_f32(x / scale))).collect(), scale)
            }
        }
    }
}

impl From<DType> for KvDType {
    fn from(dtype: DType) -> Self {
        KvDType::Float(dtype)
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
