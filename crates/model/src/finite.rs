use std::ops::Range;
use std::sync::OnceLock;

use tensor::{DType, MatrixSource, PackedPart, Stored, StoredElements, WeightFormat};

use crate::ModelError;

/// A matrix that notices if an element which is read would not be finite as it is kept: such a one has no place in a file that
/// is packed, nor among quantised weights. Kernels do not know e4m3's NaN.
pub(crate) struct Finite<'a> {
    of: &'a dyn MatrixSource,
    kept: DType,
    /// The bits of the least magnitude that is not finite as it is kept.
    limit: u32,
    /// Row, column and value of one that was found.
    found: OnceLock<(usize, usize, f32)>,
    /// Row and column of an element in e4m3 that is NaN.
    nan: OnceLock<(usize, usize)>,
}

impl<'a> Finite<'a> {
    /// `kept`: what is made of it.
    pub(crate) fn new(of: &'a dyn MatrixSource, kept: WeightFormat) -> Self {
        let kept = match kept {
            WeightFormat::Float(dtype) => dtype,
            // Scales are made of float32.
            _ => DType::F32,
        };
        Finite { of, kept, limit: limit(kept), found: OnceLock::new(), nan: OnceLock::new() }
    }

    /// Looks for NaN among elements in e4m3.
    fn check_elements(&self, row: usize, first_col: usize, elements: &[u8]) {
        const MAGNITUDE: u8 = 0x7F;
        // All of them first, so that it becomes vectors.
        let largest = elements.iter().fold(0, |most, element| (element & MAGNITUDE).max(most));
        if largest == MAGNITUDE {
            let at = elements.iter().position(|element| element & MAGNITUDE == MAGNITUDE).unwrap_or(0);
            let _ = self.nan.set((row, first_col + at));
        }
    }

    /// What was found since, as an error about a tensor.
    pub(crate) fn check(&self, tensor: &str) -> Result<(), ModelError> {
        if let Some(&(row, col)) = self.nan.get() {
            return Err(ModelError::NanElement { tensor: tensor.into(), at: [row, col] });
        }
        match self.found.get() {
            None => Ok(()),
            Some(&(row, col, value)) => Err(refusal(tensor, vec![row, col], value, self.kept)),
        }
    }
}

impl MatrixSource for Finite<'_> {
    fn rows(&self) -> usize {
        self.of.rows()
    }
    fn cols(&self) -> usize {
        self.of.cols()
    }
    fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Stored<'_>> {
        let stored = self.of.stored(rows.clone(), cols.clone())?;
        let mut some = [0.0; 1024];
        for row in rows {
            for first in cols.clone().step_by(some.len()) {
                let inner = first..cols.end.min(first + some.len());
                self.read(row, inner.clone(), &mut some[..inner.len()]);
            }
        }
        // What is made of others than finite ones is thrown away.
        Some(stored)
    }
    fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        self.of.read_elements(row, cols.clone(), out);
        self.check_elements(row, cols.start, out);
    }
    fn scale(&self, row: usize, col: usize) -> f32 {
        self.of.scale(row, col)
    }
    fn stored_elements(&self, rows: Range<usize>, cols: Range<usize>) -> Option<StoredElements<'_>> {
        let stored = self.of.stored_elements(rows.clone(), cols.clone())?;
        for (row, bytes) in rows.zip(stored.bytes.chunks(stored.stride.max(1))) {
            self.check_elements(row, cols.start, &bytes[..cols.len()]);
        }
        Some(stored)
    }
    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        self.of.packed(rows, cols)
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        self.of.read(row, cols.clone(), out);
        if let Some((at, value)) = first_beyond(out, self.limit) {
            let _ = self.found.set((row, cols.start + at, value));
            // Whatever is made of them is thrown away.
            out.fill(0.0);
        }
    }
}

/// Refuses a vector with an element that would not be finite as it is kept.
pub(crate) fn check_vector(values: &[f32], kept: DType, tensor: &str) -> Result<(), ModelError> {
    match first_beyond(values, limit(kept)) {
        None => Ok(()),
        Some((at, value)) => Err(refusal(tensor, vec![at], value, kept)),
    }
}

fn refusal(tensor: &str, at: Vec<usize>, value: f32, dtype: DType) -> ModelError {
    let tensor = tensor.to_owned();
    match value.is_finite() {
        false => ModelError::NotFinite { tensor, at, value },
        true => ModelError::BeyondType { tensor, at, value, dtype },
    }
}

/// The bits of the least positive float32 that rounds to infinity: half a step above the largest of the type.
fn limit(kept: DType) -> u32 {
    match kept {
        DType::F32 => f32::INFINITY.to_bits(),
        DType::BF16 => 0x7F7F_8000,
        DType::F16 => 65_520f32.to_bits(),
    }
}

/// The first element whose magnitude has at least these bits. Those of NaN are above infinity's.
fn first_beyond(values: &[f32], limit: u32) -> Option<(usize, f32)> {
    let magnitude = |x: &f32| x.to_bits() & 0x7FFF_FFFF;
    // All of them as integers first, so that it becomes vectors.
    let largest = values.iter().fold(0, |most, x| magnitude(x).max(most));
    let at = (largest >= limit).then(|| values.iter().position(|x| magnitude(x) >= limit)).flatten()?;
    Some((at, values[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_what_rounds_to_no_number() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let least = f32::from_bits(limit(dtype));
            let below = f32::from_bits(limit(dtype) - 1);
            assert!(!dtype.round(least).is_finite() && dtype.round(below).is_finite(), "{dtype}");
            assert!(check_vector(&[1.0, -below, 0.0], dtype, "x").is_ok());
            for bad in [least, -least, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
                let line = check_vector(&[1.0, below, bad, f32::NAN], dtype, "x").unwrap_err().to_string();
                assert!(line.starts_with("x: element [2] is "), "{dtype} {bad}: {line}");
            }
        }
    }
}
