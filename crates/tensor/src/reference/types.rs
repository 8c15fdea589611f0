use std::ops::Range;

use crate::{HeadSpan, KvSpec, MatrixSource};

/// A matrix in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceTensor {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// The elements, row-major.
    pub data: Vec<f32>,
}

/// One layer's keys and values.
#[derive(Clone, Debug)]
pub struct ReferenceKv {
    pub(super) spec: KvSpec,
    /// At `block · KV_BLOCK + slot` the heads' keys, and the heads' values; nothing where nothing was written.
    pub(super) written: Vec<Option<(Heads, Heads)>>,
}

/// One position's keys or values, head by head.
pub(super) type Heads = Vec<Scaled>;
/// A head's elements, and their scale.
pub(super) type Scaled = (Vec<f32>, f32);

/// Per token the chosen experts with their weights, by ascending id.
#[derive(Clone, Debug)]
pub struct ReferenceRouting {
    pub(super) experts: usize,
    pub(super) chosen: Vec<Vec<(usize, f32)>>,
}

/// The pairs that a range of experts works on.
#[derive(Clone, Debug)]
pub struct ReferenceAssignment {
    pub(super) tokens: usize,
    pub(super) experts: Range<usize>,
    pub(super) pairs: Vec<Pair>,
}

/// A token and one of the experts that it chose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) expert: usize,
    pub(super) token: usize,
    pub(super) weight: f32,
}

impl ReferenceTensor {
    /// A matrix by its elements' rows and columns.
    pub fn from_fn(rows: usize, cols: usize, mut element: impl FnMut(usize, usize) -> f32) -> Self {
        let mut data = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            for col in 0..cols {
                data.push(element(row, col));
            }
        }
        ReferenceTensor { rows, cols, data }
    }

    /// The elements of one row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    pub(super) fn at(&self, row: usize, col: usize) -> f32 {
        self.row(row)[col]
    }

    pub(super) fn head_mut(&mut self, row: usize, span: HeadSpan, head: usize) -> &mut [f32] {
        assert!(
            head < span.heads && span.first_col + span.heads * span.head_dim <= self.cols,
            "heads beyond the row"
        );
        let first = row * self.cols + span.first_col + head * span.head_dim;
        &mut self.data[first..first + span.head_dim]
    }

    pub(super) fn map(&mut self, f: impl Fn(f32) -> f32) {
        self.data.iter_mut().for_each(|x| *x = f(*x));
    }
}

impl MatrixSource for ReferenceTensor {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.row(row)[cols]);
    }
}
