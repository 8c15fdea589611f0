//! What every machine has.

use super::super::portable::Portable;
use super::{Group, ProductKernel, Products, add_scaled};
use crate::simd::LANES;

#[inline(never)]
pub(super) fn run<K: ProductKernel>(kernel: K) {
    kernel.run::<Portable>();
}

/// Adds up one chunk of 16 outputs times one row.
#[inline(always)]
fn add_chunk(sums: &mut [i32; LANES], w: impl Fn(usize) -> i32, x: [u8; 4]) {
    for lane in 0..LANES {
        for i in 0..4 {
            sums[lane] += w(lane * 4 + i) * i32::from(x[i] as i8);
        }
    }
}

impl Products for Portable {
    const ROWS: [usize; 3] = [1; 3];
    const INT8_WANTS_WORDS: bool = false;

    #[inline(always)]
    fn call_products<K: ProductKernel>(kernel: K) {
        run(kernel);
    }

    #[inline(always)]
    unsafe fn add_int8<const R: usize>(sums: &mut [Self; R], group: Group) {
        let Group { w, x, starts, .. } = group;
        let mut products = [Portable([0.0; LANES]); R];
        for r in 0..R {
            // SAFETY: readable, by the caller's word.
            let mut whole = [unsafe { starts.add(r).read() }; LANES];
            for chunk in 0..8 {
                // SAFETY: as above.
                let (w, x) = unsafe {
                    (&*w.add(chunk * 64).cast::<[u8; 64]>(), *x.add((chunk * R + r) * 4).cast::<[u8; 4]>())
                };
                add_chunk(&mut whole, |i| i32::from(w[i]), x);
            }
            products[r] = Portable(whole.map(|sum| sum as f32));
        }
        // SAFETY: the scales are readable, by the caller's word.
        unsafe { add_scaled(sums, products, group) };
    }

    #[inline(always)]
    unsafe fn add_int4<const R: usize>(sums: &mut [Self; R], group: Group) {
        let Group { w, zeros, x, starts, .. } = group;
        let mut products = [Portable([0.0; LANES]); R];
        // SAFETY: readable, by the caller's word.
        let zeros = unsafe { *zeros.cast::<[u8; LANES]>() };
        for r in 0..R {
            let mut whole = [0; LANES];
            for pair in 0..4 {
                // SAFETY: as above.
                let (w, low, high) = unsafe {
                    let at = x.add((2 * pair * R + r) * 4);
                    (
                        &*w.add(pair * 64).cast::<[u8; 64]>(),
                        *at.cast::<[u8; 4]>(),
                        *at.add(4 * R).cast::<[u8; 4]>(),
                    )
                };
                add_chunk(&mut whole, |i| i32::from(w[i] & 15), low);
                add_chunk(&mut whole, |i| i32::from(w[i] >> 4), high);
            }
            // SAFETY: as above.
            let start = unsafe { starts.add(r).read() };
            for lane in 0..LANES {
                products[r].0[lane] = (16 * whole[lane] + i32::from(zeros[lane]) * start) as f32;
            }
        }
        // SAFETY: the scales are readable, by the caller's word.
        unsafe { add_scaled(sums, products, group) };
    }

    #[inline(always)]
    unsafe fn fp8(w: *const u8) -> [Self; 4] {
        // SAFETY: readable, by the caller's word.
        let w = unsafe { &*w.cast::<[u8; 64]>() };
        std::array::from_fn(|i| {
            Portable(std::array::from_fn(|lane| {
                let bits = u32::from(w[lane * 4 + i]);
                f32::from_bits((bits & 0x80) << 24 | (bits & 0x7F) << 20)
            }))
        })
    }

    #[inline(always)]
    unsafe fn fp8_scales(exponents: *const u8) -> (Self, Self, bool) {
        // SAFETY: readable, by the caller's word.
        let exponents = unsafe { *exponents.cast::<[u8; LANES]>() }.map(u32::from);
        let power = |exponent: u32| f32::from_bits(exponent << 23);
        let first = exponents.map(|e| power(e.min(134) + 120));
        let second = exponents.map(|e| power(e.max(134) - 134 + 127));
        (Portable(first), Portable(second), exponents.iter().any(|&e| e > 134))
    }
}
