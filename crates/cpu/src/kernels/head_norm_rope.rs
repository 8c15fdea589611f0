//! Norm and rotation of heads: an element is normed and rotated in registers. Threads share rows.

use tensor::{HeadSpan, NormSpec};

use super::norm::Scaling;
use super::rope::pair;
use super::{Exec, grain};
use crate::simd::{F32x16, Kernel, LANES};

/// Heads that lie side by side, and the weights of their norm.
#[derive(Clone, Copy)]
pub(crate) struct NormedHeads<'a> {
    pub(crate) span: HeadSpan,
    pub(crate) weight: &'a [f32],
}

/// Norms the heads in every row of `x [rows, cols]` and rotates them by `table [rows, 2 · pairs]`.
pub(crate) fn head_norm_rope(
    exec: &Exec,
    x: &mut [f32],
    cols: usize,
    heads: [NormedHeads<'_>; 2],
    spec: NormSpec,
    table: &[f32],
    pairs: usize,
) {
    let isa = exec.isa;
    for NormedHeads { span, weight } in heads {
        assert_eq!(weight.len(), span.head_dim, "a head's norm has head_dim weights");
        assert!(2 * pairs <= span.head_dim, "{pairs} pairs in a head of {}", span.head_dim);
        assert!(span.first_col + span.heads * span.head_dim <= cols, "heads lie in the columns");
    }
    let elements: usize = heads.iter().map(|of| of.span.heads * of.span.head_dim).sum();
    exec.pool.split_mut(x, cols, grain(2 * elements), |first, rows| {
        isa.run(Rows { rows, cols, heads, spec, table: &table[first * 2 * pairs..], pairs });
    });
}

struct Rows<'a> {
    rows: &'a mut [f32],
    cols: usize,
    heads: [NormedHeads<'a>; 2],
    spec: NormSpec,
    table: &'a [f32],
    pairs: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        for (i, row) in self.rows.chunks_exact_mut(self.cols).enumerate() {
            let (cos, sin) = self.table[i * 2 * self.pairs..][..2 * self.pairs].split_at(self.pairs);
            for NormedHeads { span, weight } in self.heads {
                let HeadSpan { first_col, heads, head_dim } = span;
                if head_dim == 0 {
                    continue;
                }
                for head in row[first_col..][..heads * head_dim].chunks_exact_mut(head_dim) {
                    let scaling = Scaling::<V>::of(head, self.spec);
                    let (rotated, rest) = head.split_at_mut(2 * self.pairs);
                    let (of_rotated, of_rest) = weight.split_at(2 * self.pairs);
                    norm_and_rotate(scaling, rotated, of_rotated, cos, sin);
                    scaling.apply_in_place(rest, of_rest);
                }
            }
        }
    }
}

#[inline(always)]
fn norm_and_rotate<V: F32x16>(
    scaling: Scaling<V>,
    head: &mut [f32],
    weight: &[f32],
    cos: &[f32],
    sin: &[f32],
) {
    let (a, b) = head.split_at_mut(cos.len());
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks_mut::<LANES>(), b.as_chunks_mut::<LANES>());
    let (of_a, of_b) = weight.split_at(cos.len());
    let ((of_a, of_a_tail), (of_b, of_b_tail)) = (of_a.as_chunks::<LANES>(), of_b.as_chunks::<LANES>());
    let ((cos, cos_tail), (sin, sin_tail)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
        let x = scaling.scale(V::load(a), V::load(&of_a[i]));
        let y = scaling.scale(V::load(b), V::load(&of_b[i]));
        let (x, y) = pair(x, y, V::load(&cos[i]), V::load(&sin[i]));
        x.store(a);
        y.store(b);
    }
    if !a_tail.is_empty() {
        let x = scaling.scale(V::load_first(a_tail), V::load_first(of_a_tail));
        let y = scaling.scale(V::load_first(b_tail), V::load_first(of_b_tail));
        let (x, y) = pair(x, y, V::load_first(cos_tail), V::load_first(sin_tail));
        x.store_first(a_tail);
        y.store_first(b_tail);
    }
}
