//! The types in which weights, keys and values are kept.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use tensor::fp8;

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

/// A type in which keys and values are kept.
pub(crate) trait KvElement: Element {
    /// Whether elements are kept divided by a scale of their head.
    const SCALED: bool = false;

    /// Rounds a head's elements, and gives their scale: the bytes of a bf16. `divided` is room for as many.
    fn narrow_head(from: &[f32], _divided: &mut [f32], to: &mut [Self::Bits]) -> Option<[Self::Bits; 2]> {
        Self::narrow(from, to);
        None
    }
}

impl KvElement for F32 {}
impl KvElement for F16 {}
impl KvElement for Bf16 {}

impl KvElement for Fp8 {
    const SCALED: bool = true;

    fn narrow_head(from: &[f32], divided: &mut [f32], to: &mut [u8]) -> Option<[u8; 2]> {
        let scale = fp8::scale_of(from);
        divided.iter_mut().zip(from).for_each(|(to, x)| *to = x / scale);
        Self::narrow(divided, to);
        Some(bf16::from_f32(scale).to_bits().to_ne_bytes())
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
/// Half-word 2 l is element l, half-word 2 l + 1 element l + 8: a shift widens one half, a mask the other.
pub(crate) struct Bf16;

/// e4m3.
pub(crate) struct Fp8;

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

impl Element for Fp8 {
    type Bits = u8;
    #[inline(always)]
    fn place(lane: usize) -> usize {
        lane
    }
    fn narrow(from: &[f32], to: &mut [u8]) {
        from.iter().zip(to).for_each(|(&from, to)| *to = fp8::from_f32(from));
    }
    #[inline(always)]
    fn widen_one(bits: u8) -> f32 {
        fp8::to_f32(bits)
    }
    #[inline(always)]
    fn widen<V: F32x16>(from: &[u8; LANES]) -> V {
        V::load_fp8(from)
    }
}

/// Runs `$body` with `$E` naming the element type of a `KvDType`.
macro_rules! with_kv_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            tensor::KvDType::Float(dtype) => $crate::simd::with_element!(dtype, $E => $body),
            tensor::KvDType::Fp8 => {
                type $E = $crate::simd::Fp8;
                $body
            }
        }
    };
}
pub(crate) use with_kv_element;

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
