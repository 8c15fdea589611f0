//! Vectors as arrays, with operations that every machine has.

use half::{bf16, f16};
use tensor::fp8;
use tensor::lanes::Lanes;

use super::{F32x16, Kernel, LANES};
use crate::kernels::tile::MAX_ROWS;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Portable(pub(super) [f32; LANES]);

/// Runs a kernel.
#[inline(never)]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Portable>()
}

/// Applies `f` to every lane. A plain loop: the compiler turns it into whatever vectors it may use.
#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Portable {
    let mut out = [0.0; LANES];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = f(lane);
    }
    Portable(out)
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        each(|l| self.0[l] + other.0[l])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        each(|l| self.0[l] - other.0[l])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        each(|l| self.0[l] * other.0[l])
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        each(|l| self.0[l] / other.0[l])
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        each(|l| self.0[l].mul_add(a.0[l], b.0[l]))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        each(|l| Lanes::max(self.0[l], other.0[l]))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        each(|l| Lanes::min(self.0[l], other.0[l]))
    }
    #[inline(always)]
    fn round(self) -> Self {
        each(|l| self.0[l].round_ties_even())
    }
    #[inline(always)]
    fn exp2_int(self) -> Self {
        each(|l| Lanes::exp2_int(self.0[l]))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        each(|l| self.0[l].abs())
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        each(|l| self.0[l].copysign(sign.0[l]))
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        each(|l| Lanes::select_lt(self.0[l], limit.0[l], yes.0[l], no.0[l]))
    }
}

impl F32x16 for Portable {
    const TILED: bool = false;
    const TILE_ROWS: usize = MAX_ROWS;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        run(kernel)
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Portable(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        each(|l| bf16::from_bits(from[2 * (l % 8) + l / 8]).to_f32())
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        each(|l| f16::from_bits(from[l]).to_f32_const())
    }
    #[inline(always)]
    fn load_fp8(from: &[u8; LANES]) -> Self {
        each(|l| fp8::to_f32(from[l]))
    }
    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        (0..LANES).any(|l| self.0[l].partial_cmp(&limit.0[l]).is_none_or(std::cmp::Ordering::is_gt))
    }
}
