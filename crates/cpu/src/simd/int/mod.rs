//! Products of whole numbers, 16 outputs at a time. Sums of a group are exact, so all sets of instructions agree.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::{F32x16, Isa, LANES};

/// A group of inputs: of a panel's weights, and of the rows of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) w: *const u8,
    pub(crate) w_scales: *const [u16; LANES],
    /// Int4 has them.
    pub(crate) zeros: *const u8,
    pub(crate) x: *const u8,
    pub(crate) x_scales: *const f32,
    /// What the products of each row start from: `−128 Σ x` for int8, `−Σ x` for int4.
    pub(crate) starts: *const i32,
}

/// `sums[r] = fma(products[r], w_scale · x_scale[r], sums[r])`.
///
/// # Safety
/// The scales must be readable.
#[inline(always)]
unsafe fn add_scaled<V: F32x16, const R: usize>(sums: &mut [V; R], products: [V; R], group: Group) {
    // SAFETY: readable, by the caller's word.
    let w_scale = V::load_bf16(unsafe { &*group.w_scales });
    for r in 0..R {
        // SAFETY: as above.
        let x_scale = V::splat(unsafe { group.x_scales.add(r).read() });
        sums[r] = products[r].fma(w_scale.mul(x_scale), sums[r]);
    }
}

/// Vectors that can multiply the elements of a group of 32 inputs as `pack/grouped.rs` lays them out.
///
/// Rows lie interleaved: `x` is `[chunk 8][row R][input 4]`, as bytes or half-words.
pub(crate) trait Products: F32x16 {
    /// Rows of the tallest tiles with int8, int4 and fp8 weights.
    const ROWS: [usize; 3];
    /// Whether int8 weights want rows as half-words, inputs 0, 2, 1, 3 of each chunk, instead of bytes.
    const INT8_WANTS_WORDS: bool;

    /// Runs a part of a kernel as a function of its own.
    fn call_products<K: ProductKernel>(kernel: K);

    /// Adds one group of int8 weights times R rows to their sums: `Σ q x`, exact, times both scales.
    ///
    /// # Safety
    /// 512 bytes of weights, their scales, a group of R rows, and R scales and starts must be readable.
    unsafe fn add_int8<const R: usize>(sums: &mut [Self; R], group: Group);

    /// Adds one group of int4 weights times R rows to their sums: `Σ (16 q − zero) x`, exact, times both scales.
    ///
    /// # Safety
    /// 256 bytes of weights, their scales and zero points, a group of R rows as bytes, and R scales and starts must be
    /// readable.
    unsafe fn add_int4<const R: usize>(sums: &mut [Self; R], group: Group);

    /// One chunk of fp8 weights, each `2⁻¹²⁰` of its value. The one NaN that e4m3 has is not known.
    ///
    /// # Safety
    /// 64 bytes of weights must be readable.
    unsafe fn fp8(w: *const u8) -> [Self; 4];

    /// `2^(min(e, 134) − 7)` and `2^max(e − 134, 0)` for each exponent e, and whether any of the latter is not 1. The
    /// product of both and of what [`Products::fp8`] gives is the weight, without any rounding on the way.
    ///
    /// # Safety
    /// 16 exponents must be readable.
    unsafe fn fp8_scales(exponents: *const u8) -> (Self, Self, bool);
}

/// Like [`super::Kernel`], for kernels that multiply whole numbers.
pub(crate) trait ProductKernel {
    /// Must be `#[inline(always)]`, like all that it calls with vectors.
    fn run<V: Products>(self);
}

impl Isa {
    /// Like [`Isa::run`].
    #[inline]
    pub(crate) fn run_products<K: ProductKernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: nobody gets to run kernels for a set that `is_available` denies.
            Isa::Avx2 => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { avx512::run(kernel) },
            _ => portable::run(kernel),
        }
    }
}
