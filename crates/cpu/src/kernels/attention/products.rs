//! The two products of attention: queries by keys, weights by values.

use std::ops::Range;

use tensor::KV_BLOCK;

use super::{BLOCKS, TILE};
use crate::simd::{Element, F32x16, Kernel, LANES};

/// The scores of R queries for P blocks.
pub(super) struct Scores<'a, E: Element, const R: usize, const P: usize> {
    /// `[head_dim, x_stride]`, of which columns `r..r + R` are meant.
    pub(super) x: &'a [f32],
    pub(super) x_stride: usize,
    pub(super) r: usize,
    pub(super) keys: [&'a [E::Bits]; P],
    /// The keys of the same blocks of the next tile, needed soon.
    pub(super) next: [&'a [E::Bits]; P],
    /// From the first query's first block on; rows of `TILE`.
    pub(super) scores: &'a mut [f32],
}

impl<E: Element, const R: usize, const P: usize> Kernel for Scores<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let head_dim = self.x.len() / self.x_stride;
        assert!(self.r + R <= self.x_stride);
        // All queries of a tile are a constant stride apart, which the compiler should know.
        let x_stride = if V::TILED { R } else { self.x_stride };
        let mut x = [std::ptr::null(); R];
        for r in 0..R {
            x[r] = self.x.as_ptr().wrapping_add(self.r + r);
        }
        let w = self.keys.map(|keys| keys[..head_dim * LANES].as_ptr());
        let ahead = self.next.map(<[_]>::as_ptr);
        let mut acc = [[V::splat(0.0); P]; R];
        // SAFETY: each query is head_dim long, each panel of keys head_dim groups of 16.
        unsafe { accumulate::<V, E, R, P>(&mut acc, x, x_stride, w, LANES, ahead, 0..head_dim) };
        for r in 0..R {
            for p in 0..P {
                acc[r][p].store(
                    self.scores[r * TILE + p * KV_BLOCK..].first_chunk_mut().expect("a block of scores"),
                );
            }
        }
    }
}

/// Adds the weighted values of a tile to R queries, P · 16 elements of them.
pub(super) struct Values<'a, E: Element, const R: usize, const P: usize> {
    /// `[R, TILE]`
    pub(super) weights: &'a [f32],
    pub(super) shrink: &'a [f32],
    /// `[16, width]` each.
    pub(super) values: [&'a [E::Bits]; BLOCKS],
    /// The values of the same blocks of the next tile, needed soon.
    pub(super) next: [&'a [E::Bits]; BLOCKS],
    pub(super) width: usize,
    /// First of the elements.
    pub(super) first: usize,
    pub(super) seen: Range<usize>,
    /// `[R, width]`
    pub(super) o: &'a mut [f32],
}

impl<E: Element, const R: usize, const P: usize> Kernel for Values<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let (first, width, seen) = (self.first, self.width, self.seen);
        assert!(first + P * LANES <= width && self.weights.len() == R * TILE && seen.end <= TILE);
        let mut acc = [[V::splat(0.0); P]; R];
        for r in 0..R {
            for p in 0..P {
                let o = self.o[r * width + first + p * LANES..].first_chunk().expect("a group");
                acc[r][p] = V::load(o).mul(V::splat(self.shrink[r]));
            }
        }
        for block in seen.start / KV_BLOCK..seen.end.div_ceil(KV_BLOCK) {
            let values = &self.values[block][..KV_BLOCK * width];
            let (mut x, mut w, mut ahead) =
                ([std::ptr::null(); R], [std::ptr::null(); P], [std::ptr::null(); P]);
            for r in 0..R {
                x[r] = self.weights[r * TILE + block * KV_BLOCK..].as_ptr();
            }
            for p in 0..P {
                w[p] = values[first + p * LANES..].as_ptr();
                // What all groups of a block ask for is, in order, all that the next one holds.
                ahead[p] = self.next[block].as_ptr().wrapping_add((first + p * LANES) * KV_BLOCK);
            }
            let from = seen.start.saturating_sub(block * KV_BLOCK);
            let to = (seen.end - block * KV_BLOCK).min(KV_BLOCK);
            // SAFETY: 16 weights per query and block; 16 rows of values, `width` apart, with P groups from
            // `first` on in each.
            unsafe { accumulate::<V, E, R, P>(&mut acc, x, 1, w, width, ahead, from..to) };
        }
        for r in 0..R {
            for p in 0..P {
                acc[r][p].store(self.o[r * width + first + p * LANES..].first_chunk_mut().expect("a group"));
            }
        }
    }
}

/// `acc[r][p] += Σ x(r, i) · w(p, i)`, i ascending. `x(r, i)` lies at `x[r] + i · x_stride`, `w(p, i)` is a group of 16
/// elements at `w[p] + i · w_stride`. The line of the i-th group from `ahead[p]` on is fetched to the cache.
///
/// # Safety
/// All of these must be readable, but for what is fetched.
#[inline(always)]
unsafe fn accumulate<V: F32x16, E: Element, const R: usize, const P: usize>(
    acc: &mut [[V; P]; R],
    x: [*const f32; R],
    x_stride: usize,
    w: [*const E::Bits; P],
    w_stride: usize,
    ahead: [*const E::Bits; P],
    inputs: Range<usize>,
) {
    // Groups in a cache line, of which each is asked for once.
    let step = const { 64 / (LANES * size_of::<E::Bits>()) };
    let mut i = inputs.start;
    while i + step <= inputs.end {
        for p in 0..P {
            V::prefetch_far(ahead[p].wrapping_add(i * LANES).cast());
        }
        for j in 0..step {
            // SAFETY: the caller's.
            unsafe { add_product::<V, E, R, P>(acc, x, x_stride, w, w_stride, i + j) };
        }
        i += step;
    }
    for i in i..inputs.end {
        // SAFETY: the caller's.
        unsafe { add_product::<V, E, R, P>(acc, x, x_stride, w, w_stride, i) };
    }
}

/// Step i of [`accumulate`].
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn add_product<V: F32x16, E: Element, const R: usize, const P: usize>(
    acc: &mut [[V; P]; R],
    x: [*const f32; R],
    x_stride: usize,
    w: [*const E::Bits; P],
    w_stride: usize,
    i: usize,
) {
    let mut weights = [V::splat(0.0); P];
    for p in 0..P {
        // SAFETY: readable, by the caller's word.
        weights[p] = E::widen(unsafe { &*w[p].add(i * w_stride).cast::<[E::Bits; LANES]>() });
    }
    for r in 0..R {
        // SAFETY: readable, by the caller's word.
        let x = V::splat(unsafe { *x[r].add(i * x_stride) });
        for p in 0..P {
            acc[r][p] = weights[p].fma(x, acc[r][p]);
        }
    }
}
