//! Where the rows of a weight come from, while it is packed.

use std::ops::Range;

/// A matrix `[rows, cols]` that can be read row by row, widened to f32.
pub trait MatrixSource: Sync {
    /// Number of rows (outputs of a linear layer).
    fn rows(&self) -> usize;
    /// Number of columns (inputs of a linear layer).
    fn cols(&self) -> usize;
    /// Writes `cols` of row `row` to `out`. Only the bytes of these elements are read.
    ///
    /// # Shapes
    /// `out [cols.len()]`
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]);
}

/// A rank's part of a matrix: some ranges of rows, one range of columns.
pub struct Slice<'a> {
    /// The whole matrix.
    pub of: &'a dyn MatrixSource,
    /// Rows, in the order in which they are wanted.
    pub rows: Vec<Range<usize>>,
    /// Columns.
    pub cols: Range<usize>,
}

impl MatrixSource for Slice<'_> {
    fn rows(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }
    fn cols(&self) -> usize {
        self.cols.len()
    }
    fn read(&self, mut row: usize, cols: Range<usize>, out: &mut [f32]) {
        for range in &self.rows {
            if row < range.len() {
                let cols = self.cols.start + cols.start..self.cols.start + cols.end;
                return self.of.read(range.start + row, cols, out);
            }
            row -= range.len();
        }
        panic!("row beyond the slice");
    }
}

/// Matrices of the same width, one under the other.
pub struct Concat<'a>(pub Vec<&'a dyn MatrixSource>);

impl MatrixSource for Concat<'_> {
    fn rows(&self) -> usize {
        self.0.iter().map(|m| m.rows()).sum()
    }
    fn cols(&self) -> usize {
        self.0.first().map_or(0, |m| m.cols())
    }
    fn read(&self, mut row: usize, cols: Range<usize>, out: &mut [f32]) {
        for part in &self.0 {
            if row < part.rows() {
                return part.read(row, cols, out);
            }
            row -= part.rows();
        }
        panic!("row beyond the parts");
    }
}
