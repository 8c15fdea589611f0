use std::fmt;
use std::ops::Range;

use super::PANEL;
use crate::{DType, HeadSpan, KvDType, NormKind, WeightFormat, WeightSpec};

/// Shape of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeTensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Shape and type of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeWeight {
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) spec: WeightSpec,
}

/// How many tokens chose each expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeRouting {
    pub(super) tokens: usize,
    /// Pairs of the experts before each, and of all.
    pub(super) pairs_before: Vec<usize>,
}

/// How many pairs a range of experts works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeAssignment {
    pub(super) tokens: usize,
    pub(super) experts: Range<usize>,
    pub(super) pairs: usize,
    /// Experts that have a pair.
    pub(super) busy: usize,
}

impl ShapeRouting {
    pub(super) fn experts(&self) -> usize {
        self.pairs_before.len() - 1
    }

    pub(super) fn pairs(&self) -> usize {
        self.pairs_before[self.experts()]
    }
}

impl ShapeTensor {
    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
    }
}

impl ShapeWeight {
    pub(super) fn packed_bytes(&self) -> usize {
        self.spec.bytes(self.n.next_multiple_of(PANEL), self.k)
    }

    /// By a linear layer of so many rows.
    pub(super) fn bytes_read(&self, rows: usize) -> u64 {
        if rows == 0 { 0 } else { self.packed_bytes() as u64 }
    }
}

impl fmt::Display for ShapeTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

impl fmt::Display for ShapeWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}]", format_name(self.spec.format), self.n, self.k)
    }
}

impl fmt::Display for HeadSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} heads of {} from column {}", self.heads, self.head_dim, self.first_col)
    }
}

impl fmt::Display for NormKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NormKind::Rms { weight_offset: 0.0 } => f.write_str("rms"),
            NormKind::Rms { weight_offset } => write!(f, "rms({weight_offset} + w)"),
            NormKind::Layer => f.write_str("layer"),
        }
    }
}

fn format_name(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Float(dtype) => short_name(dtype),
        other => other.name(),
    }
}

fn short_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
    }
}

pub(super) fn short_kv_name(dtype: KvDType) -> &'static str {
    match dtype {
        KvDType::Float(dtype) => short_name(dtype),
        KvDType::Fp8 => "fp8",
    }
}
