//! Products of whole numbers, 16 outputs at a time. Sums of a group are exact, so all sets of instructions agree.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::{F32x16, Isa};

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

    /// `Σ q x` of one group of int8 weights, where `starts` are `−128 Σ x` of each row.
    ///
    /// # Safety
    /// 512 bytes of weights, a group of R rows, and R starts must be readable.
    unsafe fn int8<const R: usize>(w: *const u8, x: *const u8, starts: *const i32) -> [Self; R];

    /// `Σ (16 q − zero) x` of one group of int4 weights, where `starts` are `−Σ x` of each row.
    ///
    /// # Safety
    /// 256 bytes of weights, 16 zero points, a group of R rows as bytes, and R starts must be readable.
    unsafe fn int4<const R: usize>(
        w: *const u8,
        zeros: *const u8,
        x: *const u8,
        starts: *const i32,
    ) -> [Self; R];

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
