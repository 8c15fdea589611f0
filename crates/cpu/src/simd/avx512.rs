//! Vectors as AVX-512 registers.
//!
//! As in `avx2.rs`, a value of [`Avx512`] exists only inside [`run`], because only `run` names the type to a kernel:
//! that the machine has the instructions is what every SAFETY comment here rests on.

use std::arch::x86_64::*;

use tensor::lanes::Lanes;

use super::{F32x16, Kernel, LANES};
use crate::kernels::tile::TALL_ROWS;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(super) __m512);

/// Whether this machine has all that [`run`] needs.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Runs a kernel with AVX-512.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

/// An intrinsic on vectors.
macro_rules! on {
    ($f:ident($($x:expr),+)) => {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe { Avx512($f($($x.0),+)) }
    };
}

impl Lanes for Avx512 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the machine has AVX-512, see the module.
        Avx512(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        on!(_mm512_add_ps(self, other))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        on!(_mm512_sub_ps(self, other))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        on!(_mm512_mul_ps(self, other))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        on!(_mm512_div_ps(self, other))
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        on!(_mm512_fmadd_ps(self, a, b))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        on!(_mm512_max_ps(self, other))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        on!(_mm512_min_ps(self, other))
    }
    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: the machine has AVX-512, see the module.
        Avx512(unsafe { _mm512_roundscale_ps::<NEAREST>(self.0) })
    }
    #[inline(always)]
    fn exp2_int(self) -> Self {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvttps_epi32(self.0), _mm512_set1_epi32(127));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        on!(_mm512_andnot_ps(Self::splat(-0.0), self))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        let mask = Self::splat(-0.0);
        let magnitude = on!(_mm512_andnot_ps(mask, self));
        let sign = on!(_mm512_and_ps(mask, sign));
        on!(_mm512_or_ps(magnitude, sign))
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0);
            Avx512(_mm512_mask_blend_ps(less, no.0, yes.0))
        }
    }
}

/// The lanes `0..count`.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

impl F32x16 for Avx512 {
    const TILED: bool = true;
    const TILE_ROWS: usize = TALL_ROWS;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe { run(kernel) }
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: the machine has AVX-512, see the module; 16 floats lie there.
        Avx512(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: the machine has AVX-512, see the module; 16 floats lie there.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        // SAFETY: the machine has AVX-512, see the module; 32 bytes lie there, and no index is beyond them.
        unsafe {
            // Upper half-word l of the result is half-word 2 l of `from` for l < 8, 2 (l - 8) + 1 for the others;
            // indices of lower half-words do not matter, zeros take their place.
            let index = _mm512_set_epi32(
                15 << 16,
                13 << 16,
                11 << 16,
                9 << 16,
                7 << 16,
                5 << 16,
                3 << 16,
                1 << 16,
                14 << 16,
                12 << 16,
                10 << 16,
                8 << 16,
                6 << 16,
                4 << 16,
                2 << 16,
                0,
            );
            let bits = _mm512_castsi256_si512(_mm256_loadu_si256(from.as_ptr().cast()));
            Avx512(_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAA_AAAA, index, bits)))
        }
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        // SAFETY: the machine has AVX-512, see the module; 32 bytes lie there.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_fp8(from: &[u8; LANES]) -> Self {
        const BIAS: f32 = f32::from_bits((127 + 120) << 23);
        // SAFETY: the machine has AVX-512, see the module; 16 bytes lie there.
        unsafe {
            // Moved to where f32 has sign, exponent and mantissa, only the exponent's bias is wrong.
            let codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let kept = _mm512_set1_epi32(0x87F0_0000_u32 as i32);
            let bits = _mm512_and_si512(_mm512_slli_epi32::<20>(codes), kept);
            Avx512(_mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(BIAS)))
        }
    }
    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of a bad address does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[inline(always)]
    fn prefetch_far(at: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe { _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(self.0, limit.0) != 0 }
    }
    #[inline(always)]
    fn load_first(from: &[f32]) -> Self {
        // SAFETY: the machine has AVX-512, see the module; what the mask leaves out is not read.
        Avx512(unsafe { _mm512_maskz_loadu_ps(first(from.len()), from.as_ptr()) })
    }
    #[inline(always)]
    fn store_first(self, to: &mut [f32]) {
        // SAFETY: the machine has AVX-512, see the module; what the mask leaves out is not written.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first(to.len()), self.0) }
    }
    #[inline(always)]
    fn keep(self, from: usize, to: usize, fill: Self) -> Self {
        // SAFETY: the machine has AVX-512, see the module.
        Avx512(unsafe { _mm512_mask_blend_ps(first(to) & !first(from), fill.0, self.0) })
    }
    #[inline(always)]
    fn low_bytes(self) -> [u8; LANES] {
        let mut bytes = [0; LANES];
        // SAFETY: the machine has AVX-512, see the module; 16 bytes are written.
        unsafe {
            let all = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), all);
        }
        bytes
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let eight = _mm256_max_ps(high, _mm512_castps512_ps256(self.0));
            let four = _mm_max_ps(_mm256_extractf128_ps::<1>(eight), _mm256_castps256_ps128(eight));
            let two = _mm_max_ps(_mm_movehl_ps(four, four), four);
            _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(two), two))
        }
    }
    #[inline(always)]
    fn sum_by_halves(self) -> f32 {
        // SAFETY: the machine has AVX-512, see the module.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), high);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
