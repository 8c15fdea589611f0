//! Matrices in e4m3 whose scales lie in a tensor beside theirs.

use std::ops::Range;
use std::sync::Arc;

use tensor::{DType, StoredElements, fp8};

use crate::random::RandomMatrix;
use crate::storage::Storage;

/// Which elements of a weight share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaledBy {
    /// All of them.
    Tensor,
    /// Those of an output.
    Output,
    /// So many outputs times so many inputs.
    Block([usize; 2]),
}

impl ScaledBy {
    /// The endings of the names that a weight's scales may have, the likelier first.
    pub(crate) fn endings(self) -> [&'static str; 2] {
        match self {
            ScaledBy::Block(_) => ["_scale_inv", "_scale"],
            _ => ["_scale", "_scale_inv"],
        }
    }

    /// Outputs and inputs that share a scale, of a weight `[n, k]`.
    pub fn block(self, [n, k]: [usize; 2]) -> [usize; 2] {
        match self {
            ScaledBy::Tensor => [n.max(1), k.max(1)],
            ScaledBy::Output => [1, k.max(1)],
            ScaledBy::Block(block) => block,
        }
    }

    /// The shapes that the scales of a weight `[n, k]` may have, the likeliest first.
    pub(crate) fn shapes(self, [n, k]: [usize; 2]) -> Vec<Vec<usize>> {
        match self {
            ScaledBy::Tensor => vec![vec![1], vec![], vec![1, 1]],
            ScaledBy::Output => vec![vec![n, 1], vec![n]],
            ScaledBy::Block([rows, cols]) => vec![vec![n.div_ceil(rows), k.div_ceil(cols)]],
        }
    }
}

/// Elements and scales of a matrix.
#[derive(Clone)]
pub(crate) struct Scaled<'a> {
    pub(crate) elements: Elements<'a>,
    /// Row-major, one per block; none of shapes without values.
    scales: Arc<[f32]>,
    /// Rows and columns that share a scale.
    pub(crate) block: [usize; 2],
    cols: usize,
}

#[derive(Clone)]
pub(crate) enum Elements<'a> {
    /// Row-major.
    Stored(&'a [u8], &'a Storage),
    /// Of values up to the largest element.
    Random(RandomMatrix),
    /// Shapes only.
    Meta,
}

impl<'a> Scaled<'a> {
    /// `scales`: as many as there are blocks, row-major.
    pub(crate) fn new(elements: Elements<'a>, scales: Vec<f32>, by: ScaledBy, shape: [usize; 2]) -> Self {
        Scaled { elements, scales: scales.into(), block: by.block(shape), cols: shape[1] }
    }

    /// Random elements, and scales around the one that spreads weights over `±spread`.
    pub(crate) fn random(seed: u64, tensor: &str, spread: f32, by: ScaledBy, shape: [usize; 2]) -> Self {
        let elements = RandomMatrix::new(seed, tensor, 0, 0.0, fp8::MAX);
        let scale = spread / fp8::MAX;
        let of_scales = RandomMatrix::new(seed, &format!("{tensor}_scale"), 0, scale, scale / 4.0);
        let [rows, cols] = by.block(shape);
        let mut scales = vec![0.0; shape[1].div_ceil(cols) * shape[0].div_ceil(rows)];
        for (row, scales) in scales.chunks_mut(shape[1].div_ceil(cols).max(1)).enumerate() {
            of_scales.read(row, 0..scales.len(), DType::F32, scales);
        }
        Scaled::new(Elements::Random(elements), scales, by, shape)
    }

    pub(crate) fn scale(&self, row: usize, col: usize) -> f32 {
        let [rows, cols] = self.block;
        self.scales[row / rows * self.cols.div_ceil(cols) + col / cols]
    }

    pub(crate) fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        match &self.elements {
            Elements::Stored(bytes, _) => {
                out.copy_from_slice(&bytes[row * self.cols + cols.start..row * self.cols + cols.end]);
            }
            Elements::Random(matrix) => {
                let mut wide = vec![0.0; out.len()];
                matrix.read(row, cols, DType::F32, &mut wide);
                out.iter_mut().zip(wide).for_each(|(to, x)| *to = fp8::from_f32(x));
            }
            Elements::Meta => panic!("weights of a Meta source have shapes and no values"),
        }
    }

    /// Element · scale.
    pub(crate) fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let mut elements = vec![0; cols.len()];
        self.read_elements(row, cols.clone(), &mut elements);
        let mut at = cols.start;
        while at < cols.end {
            let end = ((at / self.block[1] + 1) * self.block[1]).min(cols.end);
            let own = at - cols.start..end - cols.start;
            let scale = self.scale(row, at);
            for (out, element) in out[own.clone()].iter_mut().zip(&elements[own]) {
                *out = fp8::to_f32(*element) * scale;
            }
            at = end;
        }
    }

    pub(crate) fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<StoredElements<'_>> {
        let Elements::Stored(bytes, _) = &self.elements else { return None };
        let at = |row: usize, col: usize| row * self.cols + col;
        let own = if rows.is_empty() { 0..0 } else { at(rows.start, cols.start)..at(rows.end - 1, cols.end) };
        Some(StoredElements { bytes: &bytes[own], stride: self.cols })
    }
}

/// The first scale that no weight can have, with its index: one that is negative, NaN, or makes an element infinite.
pub(crate) fn first_bad(scales: &[f32]) -> Option<(usize, f32)> {
    let good = |scale: f32| (0.0..=f32::MAX / fp8::MAX).contains(&scale);
    scales.iter().position(|&scale| !good(scale)).map(|at| (at, scales[at]))
}
