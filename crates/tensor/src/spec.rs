//! What operations of a device are told besides their operands.

use serde::{Deserialize, Serialize};

/// The function between the two halves of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU by the tanh formula.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// max(x, 0).
    Relu,
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) · (weight + weight_offset)`; no mean is taken off.
    Rms {
        /// 0, or 1 where a checkpoint stores the weight's distance from one (Gemma).
        weight_offset: f32,
    },
    /// `(x − mean) / sqrt(var + eps) · weight + bias`, in two passes.
    Layer,
}

impl NormKind {
    /// Whether it has a bias beside its weight.
    pub fn has_bias(self) -> bool {
        self == NormKind::Layer
    }
}

/// A norm over whole rows or over heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Which norm.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f32,
}

/// A norm of whole rows with its weights, which are matrices `[1, c]`.
#[derive(Debug)]
pub struct RowNorm<'a, T> {
    /// One weight per column.
    pub weight: &'a T,
    /// One bias per column, where the norm has them.
    pub bias: Option<&'a T>,
    /// Which norm.
    pub spec: NormSpec,
}

// Derived, these would ask the matrix to be copied.
impl<T> Clone for RowNorm<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for RowNorm<'_, T> {}

/// Heads that lie side by side in the columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSpan {
    /// First column of the first head.
    pub first_col: usize,
    /// Number of heads.
    pub heads: usize,
    /// Columns of each head.
    pub head_dim: usize,
}

/// What heads of queries and keys go through before attention.
pub struct Heads<'a, T> {
    /// The weights of the queries' and the keys' norm, each `[1, head_dim]`, and of which kind both are.
    pub norms: Option<([&'a T; 2], NormSpec)>,
    /// What they are rotated by ([`crate::Device::rope_table`]).
    pub table: Option<&'a T>,
}

impl<T> Clone for Heads<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Heads<'_, T> {}

/// Rotary position embedding: the inverse frequencies, already scaled and rounded to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// One inverse frequency per rotated pair. Pair `i` is columns `i` and `i + inv_freq.len()` of a head;
    /// columns from `2 · inv_freq.len()` on stay as they are.
    pub inv_freq: Vec<f32>,
}

/// How a mixture of experts chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterSpec {
    /// Experts chosen per token.
    pub top_k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub normalize: bool,
}

/// A change of one row of logits before a token is chosen from it. Columns are a rank's own. A logit of −∞ is forbidden,
/// and no other edit brings it back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum LogitEdit {
    /// Adds to one logit (a bias; or, negative, a presence or frequency penalty; −∞ forbids it).
    Add {
        /// Row of the logits.
        row: usize,
        /// Column of the logits.
        col: usize,
        /// What is added.
        by: f32,
    },
    /// Divides positive logits, multiplies negative ones (repetition penalty).
    Repetition {
        /// Row of the logits.
        row: usize,
        /// Columns of the logits: as many as a sequence has different tokens.
        cols: Vec<u32>,
        /// The penalty.
        by: f32,
    },
    /// Forbids the columns whose bit is not set (a grammar): bit `c % 32` of word `c / 32` is column `c`. Columns beyond the
    /// words are forbidden, bits beyond the columns say nothing.
    Allow {
        /// Row of the logits.
        row: usize,
        /// The bits.
        words: Vec<u32>,
    },
    /// Divides a whole row (temperature).
    Divide {
        /// Row of the logits.
        row: usize,
        /// The divisor.
        by: f32,
    },
}

impl LogitEdit {
    /// Whether an [`LogitEdit::Allow`] of these words allows a column.
    pub fn allows(words: &[u32], col: usize) -> bool {
        words.get(col / 32).is_some_and(|word| word >> (col % 32) & 1 == 1)
    }
}
