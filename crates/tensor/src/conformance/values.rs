use crate::{Device, MatrixSource, ReferenceTensor, ScaledMatrix, WeightFormat, WeightSpec};

/// Packs a matrix, rounded to elements with scales first if the format keeps such.
pub(super) fn pack<D: Device>(dev: &D, matrix: &dyn MatrixSource, spec: impl Into<WeightSpec>) -> D::Weight {
    let spec = spec.into();
    match spec.format {
        WeightFormat::Scaled(_) => dev.pack(&ScaledMatrix::of(matrix, spec), spec),
        _ => dev.pack(matrix, spec),
    }
}

/// Pseudo-random test data (splitmix64).
pub(super) struct Values(u64);

impl Values {
    pub(super) fn new(seed: usize) -> Self {
        Values(seed as u64)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Mostly between 2^-12 and 8; sometimes a zero of either sign, a coarse value that others share, or
    /// one below the normal numbers, which no device may flush to zero.
    pub(super) fn value(&mut self) -> f32 {
        let bits = self.bits();
        let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
        let fraction = (bits >> 40) as f32 / (1 << 24) as f32;
        sign * match (bits >> 1) % 64 {
            0..2 => 0.0,
            2..8 => (fraction * 8.0).floor() * 0.25,
            8 => fraction * 1e-38,
            _ => (1.0 + fraction) * 2f32.powi(((bits >> 8) % 15) as i32 - 12),
        }
    }

    pub(super) fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    pub(super) fn scaled(&mut self, len: usize, by: f32) -> Vec<f32> {
        (0..len).map(|_| self.value() * by).collect()
    }

    pub(super) fn matrix(&mut self, rows: usize, cols: usize) -> ReferenceTensor {
        ReferenceTensor { rows, cols, data: self.vec(rows * cols) }
    }

    /// The numbers below `n` in a random order.
    pub(super) fn shuffled(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }
}
