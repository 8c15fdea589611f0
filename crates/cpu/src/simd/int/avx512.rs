//! Products of bytes by VNNI. As in `simd/avx512.rs`, what every SAFETY comment rests on is that only [`run`] names the
//! type to a kernel.
//!
//! One instruction adds four products of a byte without a sign and one with a sign to 32 bits, exactly.

use std::arch::x86_64::*;

use super::super::avx512::Avx512;
use super::{Group, ProductKernel, Products, add_scaled};

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run<K: ProductKernel>(kernel: K) {
    kernel.run::<Avx512>();
}

/// Four bytes of a row, 16 times.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn broadcast(x: *const u8) -> __m512i {
    // SAFETY: readable, by the caller's word.
    _mm512_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}

/// The upper bytes as e4m3: the sign goes to bit 31 and, shifted along, to bits that the mask clears; the rest goes to
/// bits 20 to 26.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(w: __m512i) -> Avx512 {
    let mask = _mm512_set1_epi32(0x87F0_0000_u32 as i32);
    Avx512(_mm512_castsi512_ps(_mm512_and_si512(_mm512_srai_epi32::<4>(w), mask)))
}

/// `2^(exponent + by - 127)`.
#[inline]
#[target_feature(enable = "avx512f")]
fn power(exponent: __m512i, by: i32) -> Avx512 {
    Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(exponent, _mm512_set1_epi32(by)))))
}

impl Products for Avx512 {
    const ROWS: [usize; 3] = [8; 3];
    const INT8_WANTS_WORDS: bool = false;

    #[inline(always)]
    fn call_products<K: ProductKernel>(kernel: K) {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe { run(kernel) };
    }

    #[inline(always)]
    unsafe fn add_int8<const R: usize>(sums: &mut [Self; R], group: Group) {
        let Group { w, x, starts, .. } = group;
        // SAFETY: the machine has AVX-512, see the module; all is readable, by the caller's word.
        unsafe {
            let mut whole = [_mm512_setzero_si512(); R];
            for r in 0..R {
                whole[r] = broadcast(starts.add(r).cast());
            }
            for chunk in 0..8 {
                let w = _mm512_loadu_si512(w.add(chunk * 64).cast());
                for r in 0..R {
                    whole[r] = _mm512_dpbusd_epi32(whole[r], w, broadcast(x.add((chunk * R + r) * 4)));
                }
            }
            let mut products = [Avx512(_mm512_setzero_ps()); R];
            for r in 0..R {
                products[r] = Avx512(_mm512_cvtepi32_ps(whole[r]));
            }
            add_scaled(sums, products, group);
        }
    }

    #[inline(always)]
    unsafe fn add_int4<const R: usize>(sums: &mut [Self; R], group: Group) {
        let Group { w, zeros, x, starts, .. } = group;
        // SAFETY: the machine has AVX-512, see the module; all is readable, by the caller's word.
        unsafe {
            // 16 q is what lies in a byte's upper half.
            let upper = _mm512_set1_epi8(0xF0_u8 as i8);
            let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.cast()));
            let mut whole = [_mm512_setzero_si512(); R];
            for r in 0..R {
                // −Σ x fits the lower half-word; the upper one meets a zero.
                whole[r] = _mm512_madd_epi16(zeros, broadcast(starts.add(r).cast()));
            }
            for pair in 0..4 {
                let w = _mm512_loadu_si512(w.add(pair * 64).cast());
                let low = _mm512_and_si512(_mm512_slli_epi16::<4>(w), upper);
                let high = _mm512_and_si512(w, upper);
                for r in 0..R {
                    let x = x.add((2 * pair * R + r) * 4);
                    whole[r] = _mm512_dpbusd_epi32(whole[r], low, broadcast(x));
                    whole[r] = _mm512_dpbusd_epi32(whole[r], high, broadcast(x.add(4 * R)));
                }
            }
            let mut products = [Avx512(_mm512_setzero_ps()); R];
            for r in 0..R {
                products[r] = Avx512(_mm512_cvtepi32_ps(whole[r]));
            }
            add_scaled(sums, products, group);
        }
    }

    #[inline(always)]
    unsafe fn fp8(w: *const u8) -> [Self; 4] {
        // SAFETY: the machine has AVX-512, see the module; all is readable, by the caller's word.
        unsafe {
            let w = _mm512_loadu_si512(w.cast());
            [
                widen(_mm512_slli_epi32::<24>(w)),
                widen(_mm512_slli_epi32::<16>(w)),
                widen(_mm512_slli_epi32::<8>(w)),
                widen(w),
            ]
        }
    }

    #[inline(always)]
    unsafe fn fp8_scales(exponents: *const u8) -> (Self, Self, bool) {
        // SAFETY: the machine has AVX-512, see the module; all is readable, by the caller's word.
        unsafe {
            let limit = _mm512_set1_epi32(134);
            let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(exponents.cast()));
            (
                power(_mm512_min_epi32(e, limit), 120),
                power(_mm512_max_epi32(e, limit), 127 - 134),
                _mm512_cmpgt_epi32_mask(e, limit) != 0,
            )
        }
    }
}
