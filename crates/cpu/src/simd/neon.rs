//! Vectors as four NEON registers.
//!
//! Every processor of this architecture has NEON with fused multiply-adds, so unlike its siblings this set needs no
//! detection: that is what every SAFETY comment here rests on.

use std::arch::aarch64::*;

use tensor::lanes::Lanes;

use super::{F32x16, Kernel, LANES};
use crate::kernels::tile::MAX_ROWS;

#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 4]);

/// Runs a kernel with NEON.
#[inline(never)]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon>()
}

/// An expression for each of the four registers.
macro_rules! quarters {
    (|$q:ident| $x:expr) => {
        // SAFETY: the machine has NEON, see the module.
        unsafe {
            Neon([
                {
                    const $q: usize = 0;
                    $x
                },
                {
                    const $q: usize = 1;
                    $x
                },
                {
                    const $q: usize = 2;
                    $x
                },
                {
                    const $q: usize = 3;
                    $x
                },
            ])
        }
    };
}

impl Lanes for Neon {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the machine has NEON, see the module.
        Neon([unsafe { vdupq_n_f32(x) }; 4])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        quarters!(|Q| vaddq_f32(self.0[Q], other.0[Q]))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        quarters!(|Q| vsubq_f32(self.0[Q], other.0[Q]))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        quarters!(|Q| vmulq_f32(self.0[Q], other.0[Q]))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        quarters!(|Q| vdivq_f32(self.0[Q], other.0[Q]))
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        quarters!(|Q| vfmaq_f32(b.0[Q], self.0[Q], a.0[Q]))
    }
    // NEON's own maximum and minimum treat NaN in another way.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        quarters!(|Q| vbslq_f32(vcgtq_f32(self.0[Q], other.0[Q]), self.0[Q], other.0[Q]))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        quarters!(|Q| vbslq_f32(vcltq_f32(self.0[Q], other.0[Q]), self.0[Q], other.0[Q]))
    }
    #[inline(always)]
    fn round(self) -> Self {
        quarters!(|Q| vrndnq_f32(self.0[Q]))
    }
    #[inline(always)]
    fn exp2_int(self) -> Self {
        quarters!(|Q| {
            let exponent = vaddq_s32(vcvtq_s32_f32(self.0[Q]), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        quarters!(|Q| vabsq_f32(self.0[Q]))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        quarters!(|Q| vbslq_f32(vdupq_n_u32(1 << 31), sign.0[Q], self.0[Q]))
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        quarters!(|Q| vbslq_f32(vcltq_f32(self.0[Q], limit.0[Q]), yes.0[Q], no.0[Q]))
    }
}

impl F32x16 for Neon {
    const TILED: bool = true;
    // 24 accumulators of 32 registers.
    const TILE_ROWS: usize = MAX_ROWS;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        run(kernel)
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let from = from.as_ptr();
        // 16 floats lie there.
        quarters!(|Q| vld1q_f32(from.add(4 * Q)))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        for q in 0..4 {
            // SAFETY: the machine has NEON, see the module; 16 floats lie there.
            unsafe { vst1q_f32(to.add(4 * q), self.0[q]) };
        }
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        // SAFETY: the machine has NEON, see the module; 32 bytes lie there.
        unsafe {
            let pairs = [vld1q_u16(from.as_ptr()), vld1q_u16(from.as_ptr().add(8))];
            let pairs = pairs.map(|pairs| vreinterpretq_u32_u16(pairs));
            let low = |pairs| vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs));
            let high = |pairs| vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF_0000)));
            Neon([low(pairs[0]), low(pairs[1]), high(pairs[0]), high(pairs[1])])
        }
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        let from = from.as_ptr();
        // 32 bytes lie there.
        quarters!(|Q| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.add(4 * Q)))))
    }
    #[inline(always)]
    fn load_fp8(from: &[u8; LANES]) -> Self {
        Self::load(&from.map(tensor::fp8::to_f32))
    }
    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of a bad address does nothing.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, readonly, preserves_flags));
        }
    }
    #[inline(always)]
    fn prefetch_far(at: *const u8) {
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(nostack, readonly, preserves_flags));
        }
    }
    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        // SAFETY: the machine has NEON, see the module.
        unsafe {
            let at_most = |q: usize| vcleq_f32(self.0[q], limit.0[q]);
            let all = vandq_u32(vandq_u32(at_most(0), at_most(1)), vandq_u32(at_most(2), at_most(3)));
            vminvq_u32(all) == 0
        }
    }
    #[inline(always)]
    fn sum_by_halves(self) -> f32 {
        // SAFETY: the machine has NEON, see the module.
        unsafe {
            let eight = [vaddq_f32(self.0[0], self.0[2]), vaddq_f32(self.0[1], self.0[3])];
            let four = vaddq_f32(eight[0], eight[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
}
