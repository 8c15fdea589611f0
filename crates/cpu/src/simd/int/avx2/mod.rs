//! Products of bytes and half-words in AVX2. As in `simd/avx2.rs`, what every SAFETY comment rests on is that only
//! [`run`] names the type to a kernel.
//!
//! Nothing saturates. Int8: weights `q + 128` are split into the even and the odd bytes of pairs, as half-words
//! without a sign, and multiplied by half-words; two products fit 32 bits. (Products of bytes would need weights
//! without a sign below 128: the sign could be moved to `x`, but that costs a third instruction on the two units that
//! multiply.) Int4: 15 · 127 · 2 · 8 products fit 16 bits, so a whole group is summed before it is widened.

mod tiles;

use std::arch::x86_64::*;

use super::super::avx2::Avx2;
use super::{Group, ProductKernel, Products};

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: ProductKernel>(kernel: K) {
    kernel.run::<Avx2>();
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
    const ROWS: [usize; 3] = [6; 3];
    const INT8_WANTS_WORDS: bool = true;

    #[inline(always)]
    fn call_products<K: ProductKernel>(kernel: K) {
        // SAFETY: the machine has AVX2, see the module.
        unsafe { run(kernel) };
    }

    #[inline(always)]
    unsafe fn add_int8<const R: usize>(sums: &mut [Self; R], group: Group) {
        let sums = sums.as_mut_ptr();
        // SAFETY: the machine has AVX2, see the module; all is readable, by the caller's word, and there are R sums.
        unsafe {
            match R {
                1 => tiles::int8_1(sums, group),
                2 => tiles::int8_2(sums, group),
                3 => tiles::int8_3(sums, group),
                4 => tiles::int8_4(sums, group),
                5 => tiles::int8_5(sums, group),
                6 => tiles::int8_6(sums, group),
                _ => unreachable!("tiles have at most 6 rows"),
            }
        }
    }

    #[inline(always)]
    unsafe fn add_int4<const R: usize>(sums: &mut [Self; R], group: Group) {
        let sums = sums.as_mut_ptr();
        // SAFETY: the machine has AVX2, see the module; all is readable, by the caller's word, and there are R sums.
        unsafe {
            match R {
                1 => tiles::int4_1(sums, group),
                2 => tiles::int4_2(sums, group),
                3 => tiles::int4_3(sums, group),
                4 => tiles::int4_4(sums, group),
                5 => tiles::int4_5(sums, group),
                6 => tiles::int4_6(sums, group),
                _ => unreachable!("tiles have at most 6 rows"),
            }
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
