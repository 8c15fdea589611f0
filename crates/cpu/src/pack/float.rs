//! Panels of floats: the 16 outputs of input 0, then those of input 1, and so on, each 16 in the order in which
//! vectors widen them.

use tensor::MatrixSource;

use super::Panel;
use crate::buffer::{Disjoint, Memory};
use crate::pool::Pool;
use crate::simd::{Element, LANES};

/// Inputs that are transposed at a time.
const CHUNK: usize = 512;

pub(super) fn pack_panels<E: Element>(source: &dyn MatrixSource, memory: &mut Memory, pool: &Pool) {
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

/// One output of a panel, widened, to `out [k]`.
pub(super) fn read_row<E: Element>(panel: Panel, lane: usize, out: &mut [f32]) {
    let (elements, place) = (panel.elements.cast::<E::Bits>(), E::place(lane));
    for (input, out) in out.iter_mut().enumerate() {
        // SAFETY: a panel has 16 elements of each of the k inputs, and any bits are an element.
        *out = E::widen_one(unsafe { elements.add(input * LANES + place).read_unaligned() });
    }
}
