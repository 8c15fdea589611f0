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
        isa.run(Rows { x: &x[first * cols..][..out.len()], norm, out });
    });
}

/// Each head of each row becomes its norm.
pub(crate) fn head_norm(exec: &Exec, x: &mut [f32], cols: usize, span: HeadSpan, norm: Norm<'_>) {
    let isa = exec.isa;
    assert_eq!(norm.weight.len(), span.head_dim, "a head's norm has head_dim weights");
    assert!(span.first_col + span.heads * span.head_dim <= cols, "heads lie in the columns");
    exec.pool.split_mut(x, cols, grain(span.heads * span.head_dim), |_, rows| {
        isa.run(Heads { rows, cols, span, norm });
    });
}

struct Rows<'a> {
    x: &'a [f32],
    norm: Norm<'a>,
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let cols = self.norm.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            Scaling::<V>::of(x, self.norm.spec).apply(x, self.norm, out);
        }
    }
}

/// Rows with some heads side by side.
struct Heads<'a> {
    rows: &'a mut [f32],
    cols: usize,
    span: HeadSpan,
    norm: Norm<'a>,
}

impl Kernel for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let HeadSpan { first_col, heads, head_dim } = self.span;
        if head_dim == 0 {
            return;
        }
        for row in self.rows.chunks_exact_mut(self.cols) {
            for head in row[first_col..][..heads * head_dim].chunks_exact_mut(head_dim) {
                Scaling::<V>::of(head, self.norm.spec).apply_in_place(head, self.norm.weight);
            }
        }
    }
}

/// What the sums of a row say of its elements: `y = fma((x − mean) · r, weight + offset, bias)`.
///
/// An RMS norm has 0 as its mean and −0 as its bias, neither of which changes a bit of any number; the offset of a
/// LayerNorm is −0, too.
#[derive(Clone, Copy)]
pub(super) struct Scaling<V> {
    mean: V,
    r: V,
    offset: V,
    no_bias: V,
}

impl<V: F32x16> Scaling<V> {
    #[inline(always)]
    pub(super) fn of(x: &[f32], spec: NormSpec) -> Self {
        match spec.kind {
            NormKind::Rms { weight_offset } => {
                Self::rms(squares::<V>(x, 0.0), x.len(), weight_offset, spec.eps)
            }
            NormKind::Layer => Self::layer(sum::<V>(x), x, spec.eps),
        }
    }

    /// Of `x + y`, which takes the place of `x`.
    #[inline(always)]
    pub(super) fn of_sum(x: &mut [f32], y: &[f32], spec: NormSpec) -> Self {
        match spec.kind {
            NormKind::Rms { weight_offset } => {
                let squares = add::<V>(x, y, |x, acc| x.fma(x, acc));
                Self::rms(squares, x.len(), weight_offset, spec.eps)
            }
            NormKind::Layer => {
                let sum = add::<V>(x, y, |x, acc| acc.add(x));
                Self::layer(sum, x, spec.eps)
            }
        }
    }

    #[inline(always)]
    fn rms(squares: f32, len: usize, weight_offset: f32, eps: f32) -> Self {
        let r = 1.0 / (squares / len as f32 + eps).sqrt();
        Scaling {
            mean: V::splat(0.0),
            r: V::splat(r),
            offset: V::splat(weight_offset),
            no_bias: V::splat(-0.0),
        }
    }

    #[inline(always)]
    fn layer(sum: f32, x: &[f32], eps: f32) -> Self {
        let count = x.len() as f32;
        let mean = sum / count;
        let r = 1.0 / (squares::<V>(x, mean) / count + eps).sqrt();
        Scaling { mean: V::splat(mean), r: V::splat(r), offset: V::splat(-0.0), no_bias: V::splat(0.0) }
    }

    /// Elements of a norm without a bias.
    #[inline(always)]
    pub(super) fn scale(self, x: V, weight: V) -> V {
        self.scale_and_shift(x, weight, self.no_bias)
    }

    #[inline(always)]
    fn scale_and_shift(self, x: V, weight: V, bias: V) -> V {
        x.sub(self.mean).mul(self.r).fma(weight.add(self.offset), bias)
    }

    /// `out = norm(x)`, of one row.
    #[inline(always)]
    pub(super) fn apply(self, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
        let (xs, x_tail) = x.as_chunks::<LANES>();
        let (weights, weight_tail) = norm.weight.as_chunks::<LANES>();
        let (outs, out_tail) = out.as_chunks_mut::<LANES>();
        let bias = norm.bias.map(|bias| bias.as_chunks::<LANES>());
        for (i, ((x, weight), out)) in xs.iter().zip(weights).zip(outs).enumerate() {
            let bias = bias.map_or(self.no_bias, |(bias, _)| V::load(&bias[i]));
            self.scale_and_shift(V::load(x), V::load(weight), bias).store(out);
        }
        if !out_tail.is_empty() {
            let bias = bias.map_or(self.no_bias, |(_, tail)| V::load_first(tail));
            let (x, weight) = (V::load_first(x_tail), V::load_first(weight_tail));
            self.scale_and_shift(x, weight, bias).store_first(out_tail);
        }
    }

    /// `x = norm(x)`, of one head or a part of it.
    #[inline(always)]
    pub(super) fn apply_in_place(self, x: &mut [f32], weight: &[f32]) {
        let (xs, x_tail) = x.as_chunks_mut::<LANES>();
        let (weights, weight_tail) = weight.as_chunks::<LANES>();
        for (x, weight) in xs.iter_mut().zip(weights) {
            self.scale(V::load(x), V::load(weight)).store(x);
        }
        if !x_tail.is_empty() {
            self.scale(V::load_first(x_tail), V::load_first(weight_tail)).store_first(x_tail);
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
    if !tail.is_empty() {
        acc = acc.add(V::load_first(tail));
    }
    acc.sum_by_halves()
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
    if !tail.is_empty() {
        let d = V::load_first(tail).sub(mean).keep(0, tail.len(), V::splat(0.0));
        acc = d.fma(d, acc);
    }
    acc.sum_by_halves()
}

/// `x = x + y`. What `fold` makes of the sums and of 16 lanes from +0 on, by halves; a sum of +0 must not change them.
#[inline(always)]
fn add<V: F32x16>(x: &mut [f32], y: &[f32], fold: impl Fn(V, V) -> V) -> f32 {
    let (xs, x_tail) = x.as_chunks_mut::<LANES>();
    let (ys, y_tail) = y.as_chunks::<LANES>();
    let mut acc = V::splat(0.0);
    for (x, y) in xs.iter_mut().zip(ys) {
        let sum = V::load(x).add(V::load(y));
        sum.store(x);
        acc = fold(sum, acc);
    }
    if !x_tail.is_empty() {
        let sum = V::load_first(x_tail).add(V::load_first(y_tail));
        sum.store_first(x_tail);
        acc = fold(sum, acc);
    }
    acc.sum_by_halves()
}
