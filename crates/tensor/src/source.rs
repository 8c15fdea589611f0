//! Where the rows of a weight come from, while it is packed.

use std::ops::Range;
use std::sync::Arc;

use crate::{DType, WeightSpec};

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
    /// Some rows and columns as they are stored; `None`: they have to be read.
    fn stored(&self, _rows: Range<usize>, _cols: Range<usize>) -> Option<Stored<'_>> {
        None
    }
    /// Where some rows and columns lie packed already, in parts one under the other; `None`: they have to be read.
    /// What is packed is not read, and used as it is.
    fn packed(&self, _rows: Range<usize>, _cols: Range<usize>) -> Option<Vec<PackedPart>> {
        None
    }
}

/// Elements of a matrix as they are stored, little endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Their type.
    pub dtype: DType,
    /// From the first element of the first row to the last one of the last row.
    pub bytes: &'a [u8],
    /// Bytes from the beginning of one row to that of the next.
    pub stride: usize,
}

/// Memory that holds packed weights, such as a mapped file.
pub trait PackedBytes: Send + Sync {
    /// All of it.
    fn bytes(&self) -> &[u8];
    /// Compares some of it with what was written, once. Who owns the memory remembers what differs.
    fn verify(&self, range: Range<usize>);
}

/// A weight in a device's own layout.
#[derive(Clone)]
pub struct PackedWeight {
    /// Where it lies.
    pub memory: Arc<dyn PackedBytes>,
    /// Its bytes there.
    pub range: Range<usize>,
    /// `[n, k]`.
    pub shape: [usize; 2],
    /// How it is packed.
    pub spec: WeightSpec,
}

/// Some rows and columns of a packed weight.
#[derive(Clone)]
pub struct PackedPart {
    /// The weight; `None`: rows of zeros.
    pub weight: Option<PackedWeight>,
    /// Its rows.
    pub rows: Range<usize>,
    /// Its columns.
    pub cols: Range<usize>,
}

/// The parts of some rows of `all` ranges of rows that follow each other: which range, and which rows of it.
fn overlaps(
    all: impl IntoIterator<Item = usize>,
    rows: Range<usize>,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut start = 0;
    all.into_iter().enumerate().filter_map(move |(i, len)| {
        let before = start;
        start += len;
        let (from, to) = (rows.start.max(before), rows.end.min(start));
        (from < to).then(|| (i, from - before..to - before))
    })
}

/// The item of an iterator that has one.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
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
    fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Stored<'_>> {
        let cols = self.cols.start + cols.start..self.cols.start + cols.end;
        // Rows of one range only follow each other.
        let (i, own) = only(overlaps(self.rows.iter().map(ExactSizeIterator::len), rows))?;
        let first = self.rows[i].start;
        self.of.stored(first + own.start..first + own.end, cols)
    }
    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        let cols = self.cols.start + cols.start..self.cols.start + cols.end;
        let mut parts = Vec::new();
        for (i, own) in overlaps(self.rows.iter().map(ExactSizeIterator::len), rows) {
            let first = self.rows[i].start;
            parts.extend(self.of.packed(first + own.start..first + own.end, cols.clone())?);
        }
        Some(parts)
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
    fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Stored<'_>> {
        let (i, own) = only(overlaps(self.0.iter().map(|m| m.rows()), rows))?;
        self.0[i].stored(own, cols)
    }
    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        let mut parts = Vec::new();
        for (i, own) in overlaps(self.0.iter().map(|m| m.rows()), rows) {
            parts.extend(self.0[i].packed(own, cols.clone())?);
        }
        Some(parts)
    }
}
