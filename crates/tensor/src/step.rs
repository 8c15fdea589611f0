//! What one forward pass works on.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Positions of one KV block.
pub const KV_BLOCK: usize = 16;

/// One sequence's part of a step: consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceSpan {
    /// Rows of the step that belong to this sequence.
    pub rows: Range<usize>,
    /// Position of the first of these rows in its sequence.
    pub start: usize,
    /// The sequence's KV blocks: position `p` is in block `block_table[p / KV_BLOCK]`.
    pub block_table: Vec<u32>,
}

/// The tokens of one forward pass, those of one sequence after those of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMeta {
    /// Token ids, one per row.
    pub tokens: Vec<u32>,
    /// The sequences, in the order of their rows, without gaps.
    pub sequences: Vec<SequenceSpan>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

impl StepMeta {
    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.tokens.len()
    }

    /// Position of each row in its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.sequences.iter().flat_map(|s| (s.start..s.start + s.rows.len()).map(|p| p as u32)).collect()
    }
}
