//! Vectors as pairs of AVX registers.
//!
//! A value of [`Avx2`] exists only inside [`run`], because only `run` names the type to a kernel: that the
//! machine has the instructions is what every SAFETY comment here rests on. All methods are inlined into
//! `run`, which may use the instructions; outside it they would be calls.

use std::arch::x86_64::*;

use tensor::lanes::Lanes;

use super::{F32x16, Kernel, LANES};
use crate::kernels::tile::MAX_ROWS;

/// The first eight numbers, then the others, also in memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Avx2(pub(super) __m256, pub(super) __m256);

/// Whether this machine has all that [`run`] needs.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs a kernel with AVX2.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// One intrinsic on both halves.
macro_rules! halves {
    ($f:ident($($x:expr),+)) => {
        // SAFETY: the machine has AVX2 and FMA, see the module.
        unsafe { Avx2($f($($x.0),+), $f($($x.1),+)) }
    };
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the machine has AVX2, see the module.
        let both = unsafe { _mm256_set1_ps(x) };
        Avx2(both, both)
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        halves!(_mm256_add_ps(self, other))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        halves!(_mm256_sub_ps(self, other))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        halves!(_mm256_mul_ps(self, other))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        halves!(_mm256_div_ps(self, other))
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        halves!(_mm256_fmadd_ps(self, a, b))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        halves!(_mm256_max_ps(self, other))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        halves!(_mm256_min_ps(self, other))
    }
    #[inline(always)]
    fn round(self) -> Self {
        #[inline(always)]
        unsafe fn nearest(x: __m256) -> __m256 {
            // SAFETY: the caller's.
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
        }
        halves!(nearest(self))
    }
    #[inline(always)]
    fn exp2_int(self) -> Self {
        #[inline(always)]
        unsafe fn power(x: __m256) -> __m256 {
            // SAFETY: the caller's.
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvttps_epi32(x), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
        halves!(power(self))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        let sign = Self::splat(-0.0);
        halves!(_mm256_andnot_ps(sign, self))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        let mask = Self::splat(-0.0);
        let magnitude = halves!(_mm256_andnot_ps(mask, self));
        let sign = halves!(_mm256_and_ps(mask, sign));
        halves!(_mm256_or_ps(magnitude, sign))
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        #[inline(always)]
        unsafe fn select(a: __m256, limit: __m256, yes: __m256, no: __m256) -> __m256 {
            // SAFETY: the caller's.
            unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, limit)) }
        }
        halves!(select(self, limit, yes, no))
    }
}

impl F32x16 for Avx2 {
    const TILED: bool = true;
    const TILE_ROWS: usize = MAX_ROWS;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the machine has AVX2, see the module.
        unsafe { run(kernel) }
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let from = from.as_ptr();
        // SAFETY: the machine has AVX2, see the module; 16 floats lie there.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        // SAFETY: the machine has AVX2, see the module; 16 floats lie there.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        // SAFETY: the machine has AVX2, see the module; 32 bytes lie there.
        unsafe {
            let pairs = _mm256_loadu_si256(from.as_ptr().cast());
            let low = _mm256_slli_epi32::<16>(pairs);
            let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
            Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        let from = from.as_ptr();
        // SAFETY: the machine has F16C, see the module; 32 bytes lie there.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()));
            Avx2(low, high)
        }
    }
    #[inline(always)]
    fn load_fp8(from: &[u8; LANES]) -> Self {
        /// Eight codes: moved to where f32 has sign, exponent and mantissa, only the exponent's bias is wrong.
        #[inline(always)]
        unsafe fn eight(from: *const u8) -> __m256 {
            const BIAS: f32 = f32::from_bits((127 + 120) << 23);
            // SAFETY: the caller's.
            unsafe {
                let codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
                let signs = _mm256_set1_epi32(0x87F0_0000_u32 as i32);
                let bits = _mm256_and_si256(_mm256_slli_epi32::<20>(codes), signs);
                _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(BIAS))
            }
        }
        let from = from.as_ptr();
        // SAFETY: the machine has AVX2, see the module; 16 bytes lie there.
        unsafe { Avx2(eight(from), eight(from.add(8))) }
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
        // SAFETY: the machine has AVX2, see the module.
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_NLE_UQ>(self.0, limit.0);
            let high = _mm256_cmp_ps::<_CMP_NLE_UQ>(self.1, limit.1);
            _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
        }
    }
    #[inline(always)]
    fn low_bytes(self) -> [u8; LANES] {
        let mut bytes = [0; LANES];
        // SAFETY: the machine has AVX2, see the module; 16 bytes are written.
        unsafe {
            // Numbers 0 to 3 and 8 to 11, then 4 to 7 and 12 to 15.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words = _mm256_and_si256(words, _mm256_set1_epi16(0xFF));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let all = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), all);
        }
        bytes
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // `if a > b`, as this instruction has it, of the upper half and the lower.
        // SAFETY: the machine has AVX2, see the module.
        unsafe {
            let eight = _mm256_max_ps(self.1, self.0);
            let four = _mm_max_ps(_mm256_extractf128_ps::<1>(eight), _mm256_castps256_ps128(eight));
            let two = _mm_max_ps(_mm_movehl_ps(four, four), four);
            _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(two), two))
        }
    }
    #[inline(always)]
    fn sum_by_halves(self) -> f32 {
        // SAFETY: the machine has AVX2, see the module.
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
