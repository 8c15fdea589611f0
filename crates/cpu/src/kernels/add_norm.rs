//! A sum and its norm. A row is read once from memory: the sum is written and its squares are summed while it is in
//! registers, and it is in the first-level cache when it is scaled. Threads share rows.

use super::norm::{Norm, Scaling};
use super::{Exec, grain};
use crate::buffer::Disjoint;
use crate::simd::{F32x16, Kernel};

/// `x = x + y`, or `x + post(y)`; `out = norm(x)`. All are matrices of as many columns as the norms.
pub(crate) fn add_norm(
    exec: &Exec,
    x: &mut [f32],
    y: &[f32],
    post: Option<Norm<'_>>,
    norm: Norm<'_>,
    out: &mut [f32],
) {
    let (isa, cols) = (exec.isa, norm.weight.len());
    for norm in post.iter().chain([&norm]) {
        assert_eq!(norm.weight.len(), cols, "norms of the same rows");
        assert!(norm.bias.is_none_or(|b| b.len() == cols), "a norm's bias is as long as its weight");
    }
    let rows = x.len().checked_div(cols).unwrap_or(0);
    let (x, out) = (Disjoint::new(x), Disjoint::new(out));
    exec.pool.split(rows, grain(2 * cols), |rows| {
        let part = rows.start * cols..rows.end * cols;
        // SAFETY: the ranges of `split` do not overlap.
        let (x, out) = unsafe { (x.part(part.clone()), out.part(part.clone())) };
        isa.run(AddNorm { x, y: &y[part], post, norm, out });
    });
}

struct AddNorm<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    post: Option<Norm<'a>>,
    norm: Norm<'a>,
    out: &'a mut [f32],
}

impl Kernel for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let AddNorm { x, y, post, norm, out } = self;
        let cols = norm.weight.len();
        let rows = x.chunks_exact_mut(cols).zip(y.chunks_exact(cols)).zip(out.chunks_exact_mut(cols));
        for ((x, y), out) in rows {
            let scaling = match post {
                None => Scaling::<V>::of_sum(x, y, norm.spec),
                Some(post) => {
                    // The row of the result is a place for what is added.
                    Scaling::<V>::of(y, post.spec).apply(y, post, out);
                    Scaling::<V>::of_sum(x, out, norm.spec)
                }
            };
            scaling.apply(x, norm, out);
        }
    }
}
