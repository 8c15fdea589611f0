use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use tensor::{DType, MatrixSource, PackedPart, PackedWeight, Stored, StoredElements, WeightSpec};

use crate::random::RandomMatrix;
use crate::scaled::{Elements, Scaled};
use crate::storage::Storage;

/// A matrix `[rows, cols]` of a [`crate::WeightSource`], read row by row and widened to f32.
#[derive(Clone)]
pub struct TensorView<'a> {
    rows: usize,
    cols: usize,
    dtype: DType,
    values: Values<'a>,
}

#[derive(Clone)]
enum Values<'a> {
    /// Little endian, row-major, at any alignment.
    Stored(&'a [u8], &'a Storage),
    /// In e4m3.
    Scaled(Scaled<'a>),
    Random(RandomMatrix),
    /// In a device's own layout.
    Packed(PackedWeight),
    /// Shapes only.
    Meta,
}

impl<'a> TensorView<'a> {
    pub(crate) fn stored(
        bytes: &'a [u8],
        storage: &'a Storage,
        [rows, cols]: [usize; 2],
        dtype: DType,
    ) -> Self {
        assert_eq!(bytes.len(), rows * cols * dtype.bytes(), "the header was checked");
        TensorView { rows, cols, dtype, values: Values::Stored(bytes, storage) }
    }

    pub(crate) fn scaled(scaled: Scaled<'a>, [rows, cols]: [usize; 2]) -> Self {
        TensorView { rows, cols, dtype: DType::F32, values: Values::Scaled(scaled) }
    }

    pub(crate) fn random(matrix: RandomMatrix, [rows, cols]: [usize; 2], dtype: DType) -> Self {
        TensorView { rows, cols, dtype, values: Values::Random(matrix) }
    }

    pub(crate) fn packed(weight: PackedWeight, dtype: DType) -> Self {
        let [rows, cols] = weight.shape;
        TensorView { rows, cols, dtype, values: Values::Packed(weight) }
    }

    pub(crate) fn meta([rows, cols]: [usize; 2], dtype: DType) -> Self {
        TensorView { rows, cols, dtype, values: Values::Meta }
    }

    /// The type in which the elements are stored; every element is exact in it. Of a packed matrix that of the elements
    /// which are not quantised; of one with scales the one in which elements · scales are.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The rows and columns that share a scale, if the elements are e4m3.
    pub fn scale_block(&self) -> Option<[usize; 2]> {
        match &self.values {
            Values::Scaled(scaled) => Some(scaled.block),
            _ => None,
        }
    }

    /// How the matrix is packed, if it is.
    pub fn packed_as(&self) -> Option<WeightSpec> {
        match &self.values {
            Values::Packed(weight) => Some(weight.spec),
            _ => None,
        }
    }

    /// Says that the matrix will hardly be read again, so that its file takes no memory.
    pub fn release(&self) {
        match &self.values {
            Values::Stored(bytes, storage)
            | Values::Scaled(Scaled { elements: Elements::Stored(bytes, storage), .. }) => {
                storage.release(bytes);
            }
            _ => {}
        }
    }

    /// Bytes of one stored element.
    pub fn bytes_per_element(&self) -> usize {
        if self.scale_block().is_some() { 1 } else { self.dtype.bytes() }
    }

    /// Bytes of the whole stored matrix, without scales.
    pub fn stored_bytes(&self) -> usize {
        self.rows * self.cols * self.bytes_per_element()
    }

    /// Panics unless there are such rows and columns.
    fn check(&self, rows: &Range<usize>, cols: &Range<usize>) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
    }

    fn elements(&self) -> &Scaled<'a> {
        match &self.values {
            Values::Scaled(scaled) => scaled,
            _ => panic!("a matrix without elements in e4m3"),
        }
    }
}

impl MatrixSource for TensorView<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        self.check(&(row..row + 1), &cols);
        assert_eq!(cols.len(), out.len(), "one place for every column");
        match &self.values {
            Values::Stored(bytes, _) => {
                let (first, width) = (row * self.cols, self.dtype.bytes());
                widen(&bytes[(first + cols.start) * width..(first + cols.end) * width], self.dtype, out);
            }
            Values::Scaled(scaled) => scaled.read(row, cols, out),
            Values::Random(matrix) => matrix.read(row, cols, self.dtype, out),
            Values::Packed(_) => panic!("a packed matrix is used as it lies"),
            Values::Meta => panic!("weights of a Meta source have shapes and no values"),
        }
    }

    fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Stored<'_>> {
        self.check(&rows, &cols);
        let Values::Stored(bytes, _) = &self.values else { return None };
        let width = self.dtype.bytes();
        let at = |row: usize, col: usize| (row * self.cols + col) * width;
        let own = if rows.is_empty() { 0..0 } else { at(rows.start, cols.start)..at(rows.end - 1, cols.end) };
        Some(Stored { dtype: self.dtype, bytes: &bytes[own], stride: self.cols * width })
    }

    fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        self.check(&(row..row + 1), &cols);
        self.elements().read_elements(row, cols, out);
    }

    fn scale(&self, row: usize, col: usize) -> f32 {
        self.check(&(row..row + 1), &(col..col + 1));
        self.elements().scale(row, col)
    }

    fn stored_elements(&self, rows: Range<usize>, cols: Range<usize>) -> Option<StoredElements<'_>> {
        self.check(&rows, &cols);
        self.elements().stored(rows, cols)
    }

    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        match &self.values {
            Values::Packed(weight) => Some(vec![PackedPart { weight: Some(weight.clone()), rows, cols }]),
            _ => None,
        }
    }
}

/// Widens stored elements, exactly. `bytes [out.len() · dtype.bytes()]`, at any alignment.
pub(crate) fn widen(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (x, &b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(b);
            }
        }
        DType::BF16 => {
            for (x, &b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
            }
        }
        DType::F16 => {
            // `half` uses the hardware's conversion, which wants aligned elements.
            let mut aligned = [f16::ZERO; 256];
            for (out, bytes) in out.chunks_mut(256).zip(bytes.chunks(512)) {
                let aligned = &mut aligned[..out.len()];
                for (h, &b) in aligned.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *h = f16::from_le_bytes(b);
                }
                aligned.convert_to_f32_slice(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_exactly_at_every_alignment() {
        let mut bytes = vec![0u8; 1];
        bytes.extend((0..=u16::MAX).flat_map(u16::to_le_bytes));
        let mut out = vec![0.0; 1 << 16];
        for dtype in [DType::F16, DType::BF16] {
            widen(&bytes[1..], dtype, &mut out);
            for (bits, &x) in (0..=u16::MAX).zip(&out) {
                let want = match dtype {
                    DType::F16 => f16::from_bits(bits).to_f32(),
                    _ => half::bf16::from_bits(bits).to_f32(),
                };
                assert!(x.to_bits() == want.to_bits() || x.is_nan() && want.is_nan(), "{dtype} {bits:#x}");
            }
        }
    }
}
