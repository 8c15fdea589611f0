//! Rows of a matrix on their way to the GPU: they go there as they are stored, a piece after the other.

use std::ops::Range;

use ::tensor::{DType, MatrixSource, Stored, StoredElements};

use super::tiles::PANEL;
use crate::compile::in_parallel;
use crate::driver::Address;
use crate::memory::Block;
use crate::tensor::Queue;

/// So many bytes of numbers are brought to the GPU at a time, if they are stored as f32.
const PIECE: usize = 32 << 20;
/// Rows that one thread reads at a time.
const READ_ROWS: usize = 64;
/// Parts of fewer bytes are put together before they are written.
const SMALL: usize = 256 << 10;

/// What is brought.
#[derive(Clone, Copy)]
pub(super) enum What {
    /// Numbers of whatever type is stored; as f32 if they are not stored anywhere.
    Values,
    /// The elements of a matrix in e4m3.
    Elements,
}

/// Some rows that are there.
pub(super) struct Piece {
    pub at: Address,
    pub rows: Range<usize>,
    /// Of values.
    pub dtype: DType,
}

/// Brings all rows, whole panels at a time, and tells of each piece, whose memory is the next one's.
pub(super) fn in_pieces(queue: &Queue, source: &dyn MatrixSource, what: What, mut take: impl FnMut(Piece)) {
    let (n, width) = (source.rows(), what.read_bytes() * source.cols());
    if n * width == 0 {
        return;
    }
    let rows_at_once = (PIECE / (width * PANEL)).max(1) * PANEL;
    // All that are large have the same, which the next weight takes again.
    let least = if width * n < PIECE { 0 } else { PIECE };
    let piece = queue.block((width * rows_at_once.min(n)).max(least));
    for first in (0..n).step_by(rows_at_once) {
        let rows = first..n.min(first + rows_at_once);
        let dtype = bring(queue, source, what, rows.clone(), &piece);
        take(Piece { at: piece.at, rows, dtype });
    }
}

/// Rows that lie together as they are stored.
#[derive(Clone, Copy)]
struct Part<'a> {
    dtype: DType,
    bytes: &'a [u8],
    stride: usize,
    /// Bytes of an element.
    of_element: usize,
}

impl What {
    /// Bytes of an element that is read.
    fn read_bytes(self) -> usize {
        match self {
            What::Values => DType::F32.bytes(),
            What::Elements => 1,
        }
    }

    fn stored(self, source: &dyn MatrixSource, rows: Range<usize>) -> Option<Part<'_>> {
        let cols = 0..source.cols();
        match self {
            What::Values => {
                let Stored { dtype, bytes, stride } = source.stored(rows, cols)?;
                Some(Part { dtype, bytes, stride, of_element: dtype.bytes() })
            }
            What::Elements => {
                let StoredElements { bytes, stride } = source.stored_elements(rows, cols)?;
                Some(Part { dtype: DType::F32, bytes, stride, of_element: 1 })
            }
        }
    }

    /// Rows that are not stored, as bytes.
    fn read(self, source: &dyn MatrixSource, rows: Range<usize>) -> Vec<u8> {
        let cols = source.cols();
        let mut bytes = vec![0; self.read_bytes() * cols * rows.len()];
        let mut row = vec![0.0; cols];
        for (output, bytes) in rows.zip(bytes.chunks_exact_mut(self.read_bytes() * cols)) {
            match self {
                What::Values => {
                    source.read(output, 0..cols, &mut row);
                    bytes.as_chunks_mut().0.iter_mut().zip(&row).for_each(|(to, x)| *to = x.to_le_bytes());
                }
                What::Elements => source.read_elements(output, 0..cols, bytes),
            }
        }
        bytes
    }
}

/// Brings rows to the GPU, one after the other, and says of what type they are there.
fn bring(queue: &Queue, source: &dyn MatrixSource, what: What, rows: Range<usize>, to: &Block) -> DType {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut next = rows.start;
    while next < rows.end {
        let Some((part, end)) = stored_together(source, what, next..rows.end) else {
            return bring_read(queue, source, what, &rows, to);
        };
        if parts.first().is_some_and(|first| first.dtype != part.dtype) {
            return bring_read(queue, source, what, &rows, to);
        }
        parts.push(part);
        next = end;
    }
    let Some(&Part { dtype, of_element, .. }) = parts.first() else { return DType::F32 };
    let width = source.cols() * of_element;
    let (mut at, mut gathered) = (to.at, Vec::new());
    let mut write = |bytes: &[u8]| {
        queue.write(at, bytes);
        at += bytes.len() as u64;
    };
    for part in parts {
        if part.stride == width && part.bytes.len() >= SMALL {
            write(&std::mem::take(&mut gathered));
            write(part.bytes);
        } else {
            part.bytes.chunks(part.stride).for_each(|row| gathered.extend_from_slice(&row[..width]));
        }
    }
    write(&gathered);
    dtype
}

/// The first of some rows that lie together as they are stored, about as many as there are, and where they end.
fn stored_together(source: &dyn MatrixSource, what: What, rows: Range<usize>) -> Option<(Part<'_>, usize)> {
    let mut count = rows.len();
    loop {
        let end = rows.start + count;
        if let Some(part) = what.stored(source, rows.start..end) {
            return Some((part, end));
        }
        count = if count > 1 { count / 2 } else { return None };
    }
}

/// The same of rows that are not stored.
fn bring_read(
    queue: &Queue,
    source: &dyn MatrixSource,
    what: What,
    rows: &Range<usize>,
    to: &Block,
) -> DType {
    let parts: Vec<Range<usize>> =
        rows.clone().step_by(READ_ROWS).map(|first| first..rows.end.min(first + READ_ROWS)).collect();
    let mut at = to.at;
    for bytes in in_parallel(&parts, |rows| what.read(source, rows.clone())) {
        queue.write(at, &bytes);
        at += bytes.len() as u64;
    }
    DType::F32
}
