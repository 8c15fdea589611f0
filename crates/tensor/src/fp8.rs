//! Eight-bit floats of the kind e4m3: a sign, four bits of exponent, three of mantissa, no infinity, one NaN (OCP's
//! E4M3, 8-bit Floating Point Specification, revision 1.0). Their range is small, so those that belong together have a
//! scale: a power of two, so that element · scale is exact.

/// The largest value.
pub const MAX: f32 = 448.0;

/// The bits of the value nearest to `x`, ties to even; what is beyond [`MAX`] becomes that, or NaN if it is NaN.
#[inline]
pub fn from_f32(x: f32) -> u8 {
    // Where the steps are even, below the smallest normal value, adding a number whose own steps are as large rounds.
    const STEPS: f32 = 16384.0;
    let magnitude = x.abs();
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_FFFF + (bits >> 20 & 1);
    let code = match magnitude < 1.0 / 64.0 {
        true => (magnitude + STEPS).to_bits() - STEPS.to_bits(),
        false => ((rounded >> 20).saturating_sub(120 << 3)).min(0x7E),
    };
    let code = if x.is_nan() { 0x7F } else { code };
    code as u8 | (x.to_bits() >> 24) as u8 & 0x80
}

/// The value, exactly.
#[inline]
pub fn to_f32(code: u8) -> f32 {
    // As the bits of a float32 it has the wrong bias only, also below the smallest normal value.
    const BIAS: f32 = f32::from_bits((127 + 120) << 23);
    let magnitude = f32::from_bits(u32::from(code & 0x7F) << 20) * BIAS;
    let magnitude = if code & 0x7F == 0x7F { f32::NAN } else { magnitude };
    f32::from_bits(magnitude.to_bits() | u32::from(code & 0x80) << 24)
}

/// What values that share a scale are divided by: the smallest power of two, from 2⁻¹²⁶ on, that brings all of them to
/// [`MAX`] at most. NaN if one of them is infinite or NaN: then all that is made of them is NaN.
pub fn scale_of(values: &[f32]) -> f32 {
    const INFINITE: u32 = f32::INFINITY.to_bits();
    /// Of the 23 bits of mantissa, what is missing from MAX's 1.75 to 2, less one.
    const BEYOND: u32 = (1 << 21) - 1;
    const MAX_EXPONENT: u32 = 8;
    // The bits of magnitudes are ordered as they are, and those of NaN come last.
    match values.iter().fold(0, |most, x| most.max(x.to_bits() & !(1 << 31))) {
        INFINITE.. => f32::NAN,
        most => f32::from_bits(((most + BEYOND) >> 23).saturating_sub(MAX_EXPONENT).max(1) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the bits mean by definition.
    fn by_definition(code: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f64.powi(-6),
            15 if mantissa == 7.0 => f64::NAN,
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if code < 128 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_code_is_the_value_of_the_definition_and_comes_back() {
        for code in 0..=255 {
            let (value, expected) = (to_f32(code), by_definition(code));
            assert!(
                f64::from(value) == expected || value.is_nan() && expected.is_nan(),
                "{code:#x}: {value}"
            );
            assert_eq!(from_f32(value), code, "{value}");
        }
    }

    #[test]
    fn every_number_becomes_its_nearest_value_and_ties_the_even_one() {
        for code in 0..0x7E_u8 {
            let (low, high) = (to_f32(code), to_f32(code + 1));
            let middle = (low + high) / 2.0;
            let even = code + code % 2;
            for (x, expected) in [
                (middle, even),
                (middle.next_down(), code),
                (middle.next_up(), code + 1),
                (low.next_up(), code),
                (high.next_down(), code + 1),
            ] {
                assert_eq!(from_f32(x), expected, "{x}");
                assert_eq!(from_f32(-x), expected | 0x80, "-{x}");
            }
        }
        for x in [MAX, 449.0, 464.0, 500.0, f32::MAX, f32::INFINITY] {
            assert_eq!((from_f32(x), from_f32(-x)), (0x7E, 0xFE), "{x}");
        }
    }

    #[test]
    fn a_scale_is_the_smallest_power_of_two_that_saturates_nothing() {
        let sizes = (-149..128).map(|e| 2f64.powi(e) as f32);
        let numbers = sizes.flat_map(|x| [x, x * 1.5, x * 1.75, (x * 1.75).next_up(), x * 1.999]);
        for x in numbers.filter(|x| x.is_finite()).chain([f32::MAX, 448.0, 448.0_f32.next_up()]) {
            let scale = scale_of(&[0.0, -x, x / 3.0]);
            assert_eq!(scale.to_bits() & 0x7F_FFFF, 0, "{scale} is a power of two");
            let fits = |scale: f32| f64::from(x) <= f64::from(MAX) * f64::from(scale);
            assert!(scale.is_normal() && fits(scale), "{x} / {scale}");
            assert!(scale == f32::MIN_POSITIVE || !fits(scale / 2.0), "{x} / {}", scale / 2.0);
        }
        assert_eq!((scale_of(&[]), scale_of(&[0.0, -0.0])), (f32::MIN_POSITIVE, f32::MIN_POSITIVE));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(scale_of(&[1.0, bad, 0.0]).is_nan());
        }
    }

    #[test]
    fn what_a_scale_brings_into_range_is_off_by_a_sixteenth_or_a_small_part_of_the_largest() {
        for seed in 0..50u32 {
            let number = |i: u32| {
                let h = (i ^ seed << 20).wrapping_mul(0x9E37_79B9).rotate_left(13).wrapping_mul(0x85EB_CA6B);
                (h as f32 / u32::MAX as f32 - 0.5) * 2f32.powi(seed as i32 * 4 - 100) / (1 + h % 9) as f32
            };
            let values: Vec<f32> = (0..64).map(number).collect();
            let scale = scale_of(&values);
            let most = values.iter().fold(0f32, |most, x| most.max(x.abs()));
            for x in values {
                let back = to_f32(from_f32(x / scale)) * scale;
                assert!((back - x).abs() <= (x.abs() / 16.0).max(most / 200_000.0), "{x} came as {back}");
            }
        }
    }
}
