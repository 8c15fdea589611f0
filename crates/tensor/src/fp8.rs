//! Eight-bit floats of the kind e4m3 (OCP FP8): a sign, four bits of exponent, three of mantissa, no infinity, one NaN.

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
}
