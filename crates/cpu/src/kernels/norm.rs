//! Norms of rows and of heads.

use tensor::{HeadSpan, NormKind, NormSpec};

use super::{Exec, grain};
use crate::simd::{F32x16, Kernel, LANES};

/// Weights of a norm, one per column.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) spec: NormSpec,
}

/// `out = norm(x)`, row by row.
pub(crate) fn norm(exec: &Exec, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    let isa = exec.isa;
    let cols = norm.weight.len();
    assert!(norm.bias.is_none_or(|b| b.len() == cols), "a norm's bias is as long as its weight");
    exec.pool.split_mut(out, cols, grain(cols), |first, out| {
        out.copy_from_slice(&x[first * cols..][..out.len()]);
        isa.run(Rows { rows: out, row_len: cols, first_col: 0, heads: 1, norm });
    });
}

/// Each head of each row becomes its norm.
pub(crate) fn head_norm(exec: &Exec, x: &mut [f32], cols: usize, span: HeadSpan, norm: Norm<'_>) {
    let isa = exec.isa;
    assert_eq!(norm.weight.len(), span.head_dim, "a head's norm has head_dim weights");
    assert!(span.first_col + span.heads * span.head_dim <= cols, "heads lie in the columns");
    exec.pool.split_mut(x, cols, grain(span.heads * span.head_dim), |_, rows| {
        isa.run(Rows { rows, row_len: cols, first_col: span.first_col, heads: span.heads, norm });
    });
}

/// Rows with some heads side by side.
struct Rows<'a> {
    rows: &'a mut [f32],
    row_len: usize,
    first_col: usize,
    heads: usize,
    norm: Norm<'a>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let head_dim = self.norm.weight.len();
        if head_dim == 0 {
            return;
        }
        for row in self.rows.chunks_exact_mut(self.row_len) {
            for head in row[self.first_col..][..self.heads * head_dim].chunks_exact_mut(head_dim) {
                one::<V>(head, self.norm);
            }
        }
    }
}

#[inline(always)]
fn one<V: F32x16>(x: &mut [f32], norm: Norm<'_>) {
    let count = x.len() as f32;
    let eps = norm.spec.eps;
    match norm.spec.kind {
        NormKind::Rms { weight_offset } => {
            let r = 1.0 / (squares::<V>(x, 0.0) / count + eps).sqrt();
            let (r, offset) = (V::splat(r), V::splat(weight_offset));
            in_place(x, norm, |x: V, w, _| x.mul(r).mul(w.add(offset)));
        }
        NormKind::Layer => {
            let mean = sum::<V>(x) / count;
            let r = 1.0 / (squares::<V>(x, mean) / count + eps).sqrt();
            let (r, mean) = (V::splat(r), V::splat(mean));
            in_place(x, norm, |x: V, w, bias| x.sub(mean).mul(r).fma(w, bias));
        }
    }
}

#[inline(always)]
fn sum<V: F32x16>(x: &[f32]) -> f32 {
    let (groups, tail) = x.as_chunks::<LANES>();
    let mut acc = V::splat(0.0);
    for x in groups {
        acc = acc.add(V::load(x));
    }
    acc.add(V::load_first(tail)).sum_by_halves()
}

/// Σ (x − mean)².
#[inline(always)]
fn squares<V: F32x16>(x: &[f32], mean: f32) -> f32 {
    let (groups, tail) = x.as_chunks::<LANES>();
    let mean = V::splat(mean);
    let mut acc = V::splat(0.0);
    for x in groups {
        let d = V::load(x).sub(mean);
        acc = d.fma(d, acc);
    }
    let zero = V::splat(0.0);
    let d = V::load_first(tail).sub(mean).keep(0, tail.len(), zero);
    d.fma(d, acc).sum_by_halves()
}

/// `x = f(x, weight, bias)`.
#[inline(always)]
fn in_place<V: F32x16>(x: &mut [f32], norm: Norm<'_>, f: impl Fn(V, V, V) -> V) {
    let mut at = 0;
    while at < x.len() {
        let end = (at + LANES).min(x.len());
        let bias = norm.bias.map_or(V::splat(0.0), |b| load(&b[at..end]));
        let y = f(load(&x[at..end]), load(&norm.weight[at..end]), bias);
        store(y, &mut x[at..end]);
        at = end;
    }
}

/// Sixteen numbers, or what is left.
#[inline(always)]
fn load<V: F32x16>(from: &[f32]) -> V {
    from.first_chunk().map_or_else(|| V::load_first(from), |full| V::load(full))
}

#[inline(always)]
fn store<V: F32x16>(v: V, to: &mut [f32]) {
    match to.first_chunk_mut() {
        Some(full) => v.store(full),
        None => v.store_first(to),
    }
}
