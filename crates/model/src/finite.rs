use std::ops::Range;
use std::sync::OnceLock;

use tensor::{MatrixSource, PackedPart};

use crate::ModelError;

/// A matrix that notices if an element which is read is not finite: such a one has no place among quantised weights.
pub(crate) struct Finite<'a> {
    of: &'a dyn MatrixSource,
    /// Row, column and value of one that was found.
    found: OnceLock<(usize, usize, f32)>,
}

impl<'a> Finite<'a> {
    pub(crate) fn new(of: &'a dyn MatrixSource) -> Self {
        Finite { of, found: OnceLock::new() }
    }

    /// What was found since, as an error about the weight of a module.
    pub(crate) fn check(&self, module: &str) -> Result<(), ModelError> {
        match self.found.get() {
            None => Ok(()),
            Some(&(row, col, value)) => {
                Err(ModelError::NotFinite { tensor: format!("{module}.weight"), row, col, value })
            }
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
    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        self.of.packed(rows, cols)
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        self.of.read(row, cols.clone(), out);
        // An exponent of ones: as integers, so that it becomes vectors.
        let largest = out.iter().fold(0, |most, x| (x.to_bits() & 0x7FFF_FFFF).max(most));
        if largest >= f32::INFINITY.to_bits() {
            let at = out.iter().position(|x| !x.is_finite()).unwrap_or(0);
            let _ = self.found.set((row, cols.start + at, out[at]));
            // Whatever is made of them is thrown away.
            out.fill(0.0);
        }
    }
}
