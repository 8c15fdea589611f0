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
    /// Writes the e4m3 elements of `cols` of row `row` to `out`, of a matrix that has such, with float32 scales: what
    /// [`WeightFormat::Scaled`](crate::WeightFormat::Scaled) is packed from. NaN is not among them. [`MatrixSource::read`]
    /// writes element · scale, rounded once.
    ///
    /// # Shapes
    /// `out [cols.len()]`
    ///
    /// # Panics
    /// If the matrix has none.
    fn read_elements(&self, _row: usize, _cols: Range<usize>, _out: &mut [u8]) {
        panic!("a matrix without elements in e4m3");
    }
    /// The float32 scale of an element, of such a matrix: not negative, and no product with an element is infinite.
    ///
    /// # Panics
    /// If the matrix has none.
    fn scale(&self, _row: usize, _col: usize) -> f32 {
        panic!("a matrix without scales");
    }
    /// The elements of some rows and columns as they are stored, of such a matrix; `None`: they have to be read.
    fn stored_elements(&self, _rows: Range<usize>, _cols: Range<usize>) -> Option<StoredElements<'_>> {
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

/// Elements in e4m3 as they are stored.
#[derive(Clone, Copy, Debug)]
pub struct StoredElements<'a> {
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

impl Slice<'_> {
    /// A row of the whole matrix.
    fn whole_row(&self, mut row: usize) -> usize {
        for range in &self.rows {
            if row < range.len() {
                return range.start + row;
            }
            row -= range.len();
        }
        panic!("row beyond the slice");
    }

    /// Columns of the whole matrix.
    fn whole_cols(&self, cols: Range<usize>) -> Range<usize> {
        self.cols.start + cols.start..self.cols.start + cols.end
    }

    /// Rows of the whole matrix, if they follow each other: rows of one range only do.
    fn whole_rows(&self, rows: Range<usize>) -> Option<Range<usize>> {
        let (i, own) = only(overlaps(self.rows.iter().map(ExactSizeIterator::len), rows))?;
        let first = self.rows[i].start;
        Some(first + own.start..first + own.end)
    }
}

impl MatrixSource for Slice<'_> {
    fn rows(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }
    fn cols(&self) -> usize {
        self.cols.len()
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        self.of.read(self.whole_row(row), self.whole_cols(cols), out);
    }
    fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Stored<'_>> {
        self.of.stored(self.whole_rows(rows)?, self.whole_cols(cols))
    }
    fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        self.of.read_elements(self.whole_row(row), self.whole_cols(cols), out);
    }
    fn scale(&self, row: usize, col: usize) -> f32 {
        self.of.scale(self.whole_row(row), self.cols.start + col)
    }
    fn stored_elements(&self, rows: Range<usize>, cols: Range<usize>) -> Option<StoredElements<'_>> {
        self.of.stored_elements(self.whole_rows(rows)?, self.whole_cols(cols))
    }
    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        let cols = self.whole_cols(cols);
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

impl<'a> Concat<'a> {
    /// The matrix that has a row, and which of its rows that is.
    fn part(&self, mut row: usize) -> (&'a dyn MatrixSource, usize) {
        for part in &self.0 {
            if row < part.rows() {
                return (*part, row);
            }
            row -= part.rows();
        }
        panic!("row beyond the parts");
    }

    /// The matrix that has all of some rows, and which of its rows they are.
    fn part_of(&self, rows: Range<usize>) -> Option<(&'a dyn MatrixSource, Range<usize>)> {
        let (i, own) = only(overlaps(self.0.iter().map(|m| m.rows()), rows))?;
        Some((self.0[i], own))
    }
}

impl MatrixSource for Concat<'_> {
    fn rows(&self) -> usize {
        self.0.iter().map(|m| m.rows()).sum()
    }
    fn cols(&self) -> usize {
        self.0.first().map_or(0, |m| m.cols())
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let (part, row) = self.part(row);
        part.read(row, cols, out);
    }
    fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Stored<'_>> {
        let (part, rows) = self.part_of(rows)?;
        part.stored(rows, cols)
    }
    fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        let (part, row) = self.part(row);
        part.read_elements(row, cols, out);
    }
    fn scale(&self, row: usize, col: usize) -> f32 {
        let (part, row) = self.part(row);
        part.scale(row, col)
    }
    fn stored_elements(&self, rows: Range<usize>, cols: Range<usize>) -> Option<StoredElements<'_>> {
        let (part, rows) = self.part_of(rows)?;
        part.stored_elements(rows, cols)
    }
    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        let mut parts = Vec::new();
        for (i, own) in overlaps(self.0.iter().map(|m| m.rows()), rows) {
            parts.extend(self.0[i].packed(own, cols.clone())?);
        }
        Some(parts)
    }
}
