//! The types in which weights, keys and values are kept.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{F32x16, LANES};
use crate::buffer::Plain;

/// A stored type of elements, in groups of 16 that fill a vector.
pub(crate) trait Element: 'static {
    type Bits: Plain;
    /// Where element `lane` of a group of 16 lies.
    fn place(lane: usize) -> usize;
    /// Rounds to nearest, ties to even.
    fn narrow(from: &[f32], to: &mut [Self::Bits]);
    fn widen_one(bits: Self::Bits) -> f32;
    fn widen<V: F32x16>(from: &[Self::Bits; LANES]) -> V;
}

pub(crate) struct F32;
pub(crate) struct F16;
/// Half-word 2 l is element l, half-word 2 l + 1 element l + 8: a shift widens one half, a mask the other.
pub(crate) struct Bf16;

impl Element for F32 {
    type Bits = f32;
    #[inline(always)]
    fn place(lane: usize) -> usize {
        lane
    }
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    #[inline(always)]
    fn widen_one(bits: f32) -> f32 {
        bits
    }
    #[inline(always)]
    fn widen<V: F32x16>(from: &[f32; LANES]) -> V {
        V::load(from)
    }
}

impl Element for F16 {
    type Bits = u16;
    #[inline(always)]
    fn place(lane: usize) -> usize {
        lane
    }
    fn narrow(from: &[f32], to: &mut [u16]) {
        use half::slice::HalfBitsSliceExt;
        to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from);
    }
    #[inline(always)]
    fn widen_one(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }
    #[inline(always)]
    fn widen<V: F32x16>(from: &[u16; LANES]) -> V {
        V::load_f16(from)
    }
}

impl Element for Bf16 {
    type Bits = u16;
    #[inline(always)]
    fn place(lane: usize) -> usize {
        2 * (lane % 8) + lane / 8
    }
    fn narrow(from: &[f32], to: &mut [u16]) {
        for (from, to) in from.iter().zip(to) {
            // Without branches, so that it becomes vectors. A NaN stays one.
            let bits = from.to_bits();
            let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *to = if from.is_nan() { quiet } else { rounded } as u16;
        }
    }
    #[inline(always)]
    fn widen_one(bits: u16) -> f32 {
        bf16::from_bits(bits).to_f32()
    }
    #[inline(always)]
    fn widen<V: F32x16>(from: &[u16; LANES]) -> V {
        V::load_bf16(from)
    }
}

/// Runs `$body` with `$E` naming the element type of a `DType`.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            tensor::DType::F32 => {
                type $E = $crate::simd::F32;
                $body
            }
            tensor::DType::F16 => {
                type $E = $crate::simd::F16;
                $body
            }
            tensor::DType::BF16 => {
                type $E = $crate::simd::Bf16;
                $body
            }
        }
    };
}
pub(crate) use with_element;
