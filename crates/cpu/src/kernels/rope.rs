//! Rotary position embedding.

use tensor::HeadSpan;
use tensor::lanes::Lanes;
use tensor::math::sin_cos_f64;

use super::{Exec, grain};
use crate::simd::{F32x16, Kernel, LANES};

/// `table [positions, 2 · pairs]`: the cosines, then the sines.
pub(crate) fn table(exec: &Exec, positions: &[u32], inv_freq: &[f32], table: &mut [f32]) {
    let pairs = inv_freq.len();
    exec.pool.split_mut(table, 2 * pairs, grain(pairs * 64), |first, rows| {
        for (row, position) in rows.chunks_exact_mut(2 * pairs).zip(&positions[first..]) {
            let (cosines, sines) = row.split_at_mut(pairs);
            for ((cos, sin), inv_freq) in cosines.iter_mut().zip(sines).zip(inv_freq) {
                let angle = *position as f32 * inv_freq;
                let (s, c) = sin_cos_f64(angle as f64);
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
    });
}

/// Rotates the heads of `span` in every row of `x [rows, cols]`.
pub(crate) fn rotate(exec: &Exec, x: &mut [f32], cols: usize, span: HeadSpan, table: &[f32], pairs: usize) {
    let isa = exec.isa;
    assert!(2 * pairs <= span.head_dim, "{pairs} pairs in a head of {}", span.head_dim);
    assert!(span.first_col + span.heads * span.head_dim <= cols, "heads lie in the columns");
    if pairs == 0 || span.heads == 0 {
        return;
    }
    exec.pool.split_mut(x, cols, grain(span.heads * span.head_dim), |first, rows| {
        isa.run(Rotate { rows, cols, span, table: &table[first * 2 * pairs..], pairs });
    });
}

struct Rotate<'a> {
    rows: &'a mut [f32],
    cols: usize,
    span: HeadSpan,
    table: &'a [f32],
    pairs: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let HeadSpan { first_col, heads, head_dim } = self.span;
        for (row, table) in self.rows.chunks_exact_mut(self.cols).zip(self.table.chunks_exact(2 * self.pairs))
        {
            let (cos, sin) = table.split_at(self.pairs);
            for head in row[first_col..][..heads * head_dim].chunks_exact_mut(head_dim) {
                let (a, b) = head[..2 * self.pairs].split_at_mut(self.pairs);
                head_pairs::<V>(a, b, cos, sin);
            }
        }
    }
}

#[inline(always)]
fn head_pairs<V: F32x16>(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, a_tail) = a.as_chunks_mut::<LANES>();
    let (b, b_tail) = b.as_chunks_mut::<LANES>();
    let (cos, cos_tail) = cos.as_chunks::<LANES>();
    let (sin, sin_tail) = sin.as_chunks::<LANES>();
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (x, y) = pair(V::load(a), V::load(b), V::load(cos), V::load(sin));
        x.store(a);
        y.store(b);
    }
    for (((a, b), cos), sin) in a_tail.iter_mut().zip(b_tail).zip(cos_tail).zip(sin_tail) {
        (*a, *b) = pair(*a, *b, *cos, *sin);
    }
}

/// Columns i and i + pairs of a head, rotated.
#[inline(always)]
pub(super) fn pair<L: Lanes>(a: L, b: L, cos: L, sin: L) -> (L, L) {
    (a.fma(cos, b.mul(sin).mul(L::splat(-1.0))), b.fma(cos, a.mul(sin)))
}
