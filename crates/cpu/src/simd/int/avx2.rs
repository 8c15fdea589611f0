//! Products of bytes and half-words in AVX2. As in `simd/avx2.rs`, what every SAFETY comment rests on is that only
//! [`run`] names the type to a kernel.
//!
//! Nothing saturates. Int8: weights `q + 128` are split into the even and the odd bytes of pairs, as half-words
//! without a sign, and multiplied by half-words; two products fit 32 bits. (Products of bytes would need weights
//! without a sign below 128: the sign could be moved to `x`, but that costs a third instruction on the two units that
//! multiply.) Int4: 15 · 127 · 2 · 8 products fit 16 bits, so a whole group is summed before it is widened.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::avx2::Avx2;
use super::{ProductKernel, Products};

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: ProductKernel>(kernel: K) {
    kernel.run::<Avx2>();
}

/// Hides from the compiler where a sum comes from. Otherwise it turns the sums of a group into trees of products, which
/// need more registers than there are.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(mut sum: __m256i) -> __m256i {
    // SAFETY: a comment.
    unsafe { asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags)) };
    sum
}

/// Four bytes of a row, eight times.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast(x: *const u8) -> __m256i {
    // SAFETY: readable, by the caller's word.
    _mm256_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(w: *const u8) -> __m256i {
    // SAFETY: readable, by the caller's word.
    unsafe { _mm256_loadu_si256(w.cast()) }
}

/// The upper bytes as e4m3: the sign goes to bit 31 and, shifted along, to bits that the mask clears; the rest goes to
/// bits 20 to 26.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(w: __m256i) -> __m256 {
    let mask = _mm256_set1_epi32(0x87F0_0000_u32 as i32);
    _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32::<4>(w), mask))
}

/// `2^(exponent + by - 127)`.
#[inline]
#[target_feature(enable = "avx2")]
fn power(exponent: __m256i, by: i32) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(exponent, _mm256_set1_epi32(by))))
}

impl Products for Avx2 {
    const ROWS: [usize; 3] = [5, 6, 6];
    const INT8_WANTS_WORDS: bool = true;

    #[inline(always)]
    fn call_products<K: ProductKernel>(kernel: K) {
        // SAFETY: the machine has AVX2, see the module.
        unsafe { run(kernel) };
    }

    #[inline(always)]
    unsafe fn int8<const R: usize>(w: *const u8, x: *const u8, starts: *const i32) -> [Self; R] {
        // SAFETY: the machine has AVX2, see the module; all is readable, by the caller's word.
        unsafe {
            let even = _mm256_set1_epi16(0xFF);
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            for r in 0..R {
                sums[r] = [broadcast(starts.add(r).cast()); 2];
            }
            for chunk in 0..8 {
                let w = [load(w.add(chunk * 64)), load(w.add(chunk * 64 + 32))];
                let evens = [_mm256_and_si256(w[0], even), _mm256_and_si256(w[1], even)];
                let odds = [_mm256_srli_epi16::<8>(w[0]), _mm256_srli_epi16::<8>(w[1])];
                for r in 0..R {
                    let x = x.add((chunk * R + r) * 8);
                    let (x_even, x_odd) = (broadcast(x), broadcast(x.add(4)));
                    for half in 0..2 {
                        let sum = _mm256_add_epi32(sums[r][half], _mm256_madd_epi16(evens[half], x_even));
                        sums[r][half] = in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(odds[half], x_odd)));
                    }
                }
            }
            let mut out = [Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()); R];
            for r in 0..R {
                out[r] = Avx2(_mm256_cvtepi32_ps(sums[r][0]), _mm256_cvtepi32_ps(sums[r][1]));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn int4<const R: usize>(
        w: *const u8,
        zeros: *const u8,
        x: *const u8,
        starts: *const i32,
    ) -> [Self; R] {
        // SAFETY: the machine has AVX2, see the module; all is readable, by the caller's word.
        unsafe {
            let low = _mm256_set1_epi8(15);
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            for pair in 0..4 {
                let w = [load(w.add(pair * 64)), load(w.add(pair * 64 + 32))];
                let lows = [_mm256_and_si256(w[0], low), _mm256_and_si256(w[1], low)];
                let highs = [
                    _mm256_and_si256(_mm256_srli_epi16::<4>(w[0]), low),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(w[1]), low),
                ];
                for r in 0..R {
                    let x = x.add((2 * pair * R + r) * 4);
                    let (x_low, x_high) = (broadcast(x), broadcast(x.add(4 * R)));
                    for half in 0..2 {
                        let sum = _mm256_add_epi16(sums[r][half], _mm256_maddubs_epi16(lows[half], x_low));
                        sums[r][half] =
                            in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(highs[half], x_high)));
                    }
                }
            }
            let sixteen = _mm256_set1_epi16(16);
            let zeros = [
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(zeros.cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(zeros.add(8).cast())),
            ];
            let mut out = [Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()); R];
            for r in 0..R {
                // −Σ x fits the lower half-word; the upper one meets a zero.
                let start = broadcast(starts.add(r).cast());
                for half in 0..2 {
                    let sum = _mm256_madd_epi16(sums[r][half], sixteen);
                    sums[r][half] = _mm256_add_epi32(sum, _mm256_madd_epi16(zeros[half], start));
                }
                out[r] = Avx2(_mm256_cvtepi32_ps(sums[r][0]), _mm256_cvtepi32_ps(sums[r][1]));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn fp8(w: *const u8) -> [Self; 4] {
        // SAFETY: the machine has AVX2, see the module; all is readable, by the caller's word.
        unsafe {
            let (a, b) = (load(w), load(w.add(32)));
            [
                Avx2(widen(_mm256_slli_epi32::<24>(a)), widen(_mm256_slli_epi32::<24>(b))),
                Avx2(widen(_mm256_slli_epi32::<16>(a)), widen(_mm256_slli_epi32::<16>(b))),
                Avx2(widen(_mm256_slli_epi32::<8>(a)), widen(_mm256_slli_epi32::<8>(b))),
                Avx2(widen(a), widen(b)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn fp8_scales(exponents: *const u8) -> (Self, Self, bool) {
        // SAFETY: the machine has AVX2, see the module; all is readable, by the caller's word.
        unsafe {
            let limit = _mm256_set1_epi32(134);
            let a = _mm256_cvtepu8_epi32(_mm_loadl_epi64(exponents.cast()));
            let b = _mm256_cvtepu8_epi32(_mm_loadl_epi64(exponents.add(8).cast()));
            let first = Avx2(power(_mm256_min_epi32(a, limit), 120), power(_mm256_min_epi32(b, limit), 120));
            let second = Avx2(
                power(_mm256_max_epi32(a, limit), 127 - 134),
                power(_mm256_max_epi32(b, limit), 127 - 134),
            );
            let large = _mm256_or_si256(_mm256_cmpgt_epi32(a, limit), _mm256_cmpgt_epi32(b, limit));
            (first, second, _mm256_movemask_epi8(large) != 0)
        }
    }
}
