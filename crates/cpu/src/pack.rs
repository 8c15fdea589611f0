//! Weights, packed once into the layout that serves one row and many.
//!
//! ```text
//!   panel 0 (outputs 0..16)                     panel 1 (outputs 16..32)
//!   ┌ input 0: w[0,0] w[1,0] … w[15,0] ┐        ┌ input 0: w[16,0] … ┐
//!   │ input 1: w[0,1] w[1,1] … w[15,1] │        │                    │
//!   └ …                                ┘        └                    ┘
//! ```
//! A vector is 16 outputs of one input, so the sum over inputs never crosses lanes. A kernel streams a panel
//! from end to end. The last panel's missing outputs are zeros.

use tensor::{DType, MatrixSource};

use crate::buffer::{Disjoint, Memory};
use crate::pool::Pool;
use crate::simd::{Element, LANES, with_element};

/// Inputs that are transposed at a time.
const CHUNK: usize = 512;

/// A packed weight `[n, k]`.
pub struct CpuWeight {
    memory: Memory,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) dtype: DType,
}

impl CpuWeight {
    /// Each thread reads and writes the panels that it will later multiply by.
    pub(crate) fn pack(source: &dyn MatrixSource, dtype: DType, pool: &Pool) -> Self {
        let (n, k) = (source.rows(), source.cols());
        let mut memory = Memory::zeroed(n.next_multiple_of(LANES) * k * dtype.bytes());
        with_element!(dtype, E => pack_panels::<E>(source, &mut memory, pool));
        CpuWeight { memory, n, k, dtype }
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// All panels, one behind the other, `k · 16` elements each.
    pub(crate) fn bits<E: Element>(&self) -> &[E::Bits] {
        assert_eq!(size_of::<E::Bits>(), self.dtype.bytes(), "the weight holds {}", self.dtype);
        self.memory.slice(self.panels() * self.k * LANES)
    }

    /// Bytes, padding included.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// All panels, as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        self.memory.slice(self.memory.bytes())
    }

    /// Row `row`, widened, to `out [k]`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "row {row} of a weight of {} rows", self.n);
        with_element!(self.dtype, E => {
            let panel = &self.bits::<E>()[row / LANES * self.k * LANES..][..self.k * LANES];
            let place = E::place(row % LANES);
            for (group, out) in panel.as_chunks::<LANES>().0.iter().zip(out) {
                *out = E::widen_one(group[place]);
            }
        });
    }
}

fn pack_panels<E: Element>(source: &dyn MatrixSource, memory: &mut Memory, pool: &Pool) {
    let (n, k) = (source.rows(), source.cols());
    let all = Disjoint::new(memory.slice_mut::<E::Bits>(n.next_multiple_of(LANES) * k));
    pool.split(n.div_ceil(LANES), 1, |panels| {
        let mut wide = [0f32; CHUNK];
        let mut rows = [[E::Bits::default(); CHUNK]; LANES];
        for panel in panels {
            // SAFETY: panels do not overlap, and each belongs to one thread.
            let out = unsafe { all.part(panel * k * LANES..(panel + 1) * k * LANES) };
            let filled = (n - panel * LANES).min(LANES);
            rows[filled..].fill([E::Bits::default(); CHUNK]);
            for start in (0..k).step_by(CHUNK) {
                let len = CHUNK.min(k - start);
                for (i, row) in rows[..filled].iter_mut().enumerate() {
                    source.read(panel * LANES + i, start..start + len, &mut wide[..len]);
                    E::narrow(&wide[..len], &mut row[..len]);
                }
                interleave::<E>(&rows, &mut out[start * LANES..(start + len) * LANES]);
            }
        }
    });
}

/// `out[input][place(row)] = rows[row][input]`.
fn interleave<E: Element>(rows: &[[E::Bits; CHUNK]; LANES], out: &mut [E::Bits]) {
    for (input, group) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for (row, bits) in rows.iter().enumerate() {
            group[E::place(row)] = bits[input];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers(usize, usize);
    impl MatrixSource for Numbers {
        fn rows(&self) -> usize {
            self.0
        }
        fn cols(&self) -> usize {
            self.1
        }
        fn read(&self, row: usize, cols: std::ops::Range<usize>, out: &mut [f32]) {
            for (col, out) in cols.zip(out) {
                *out = (row * 1000 + col) as f32 * 0.37 - 5.0;
            }
        }
    }

    #[test]
    fn a_row_comes_back_rounded_to_the_stored_type() {
        let pool = Pool::new(2, None, false);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (n, k) in [(1, 1), (16, 3), (17, 513), (40, 1030), (3, 0), (0, 5)] {
                let source = Numbers(n, k);
                let weight = CpuWeight::pack(&source, dtype, &pool);
                assert_eq!(weight.bytes(), n.next_multiple_of(16) * k * dtype.bytes());
                let (mut got, mut want) = (vec![0.0; k], vec![0.0; k]);
                for row in 0..n {
                    weight.read_row(row, &mut got);
                    source.read(row, 0..k, &mut want);
                    assert!(got.iter().zip(&want).all(|(g, w)| g.to_bits() == dtype.round(*w).to_bits()));
                }
            }
        }
    }
}
