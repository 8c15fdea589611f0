use std::fmt;

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
