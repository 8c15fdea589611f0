//! The project's own transcendental functions (NUMERICS.md, rule 5).
//!
//! The f32 functions are generic over [`Lanes`], so that a scalar and a vector give the same bits. The
//! f64 functions are for tables and for the last step of a log-probability; they use only operations
//! that IEEE rounds exactly, in the order in which they stand here.

// Constants are written as their sources print them.
#![expect(clippy::excessive_precision)]

use crate::lanes::Lanes;

/// e to the power x. Relative error below 2 ulp; 0 below -104, finite above 88.7 by clamping.
#[inline(always)]
pub fn exp<L: Lanes>(x: L) -> L {
    let x = L::splat(88.7).min(L::splat(-105.0).max(x));
    let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts, the first with few bits, so that n * LN2_HI is exact.
    let r = n.fma(L::splat(-0.693_359_4), x);
    let r = n.fma(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.fma(r, L::splat(c));
    }
    // Two factors, because 2^n alone may be below the normal numbers.
    let half = n.mul(L::splat(0.5)).round();
    p.mul(half.exp2_int()).mul(n.sub(half).exp2_int())
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh<L: Lanes>(x: L) -> L {
    let a = x.abs();
    // Near zero a polynomial, because 1 - e^-2a would cancel.
    let z = x.mul(x);
    let mut p = L::splat(-5.704_988_7e-3);
    for c in [2.063_908_9e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328_2e-1] {
        p = p.fma(z, L::splat(c));
    }
    let small = x.mul(z).fma(p, x);
    let t = exp(a.mul(L::splat(-2.0)));
    let large = L::splat(1.0).sub(t).div(L::splat(1.0).add(t)).copysign(x);
    a.select_lt(L::splat(0.625), small, large)
}

/// x · sigmoid(x).
#[inline(always)]
pub fn silu<L: Lanes>(x: L) -> L {
    x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(x))))
}

/// GELU by the tanh formula (PyTorch's `gelu(approximate="tanh")`).
#[inline(always)]
pub fn gelu_tanh<L: Lanes>(x: L) -> L {
    let cube = x.mul(x).mul(x);
    let inner = cube.fma(L::splat(0.044715), x).mul(L::splat(0.797_884_6));
    x.mul(L::splat(0.5)).mul(L::splat(1.0).add(tanh(inner)))
}

/// GELU by the error function, which is Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
#[inline(always)]
pub fn gelu_erf<L: Lanes>(x: L) -> L {
    let z = x.abs().mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = L::splat(1.0).div(z.fma(L::splat(0.327_591_1), L::splat(1.0)));
    let mut p = L::splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        p = p.fma(t, L::splat(c));
    }
    let tail = p.mul(t).mul(exp(L::splat(0.0).sub(z.mul(z))));
    let erf = L::splat(1.0).sub(tail).copysign(x);
    x.mul(L::splat(0.5)).mul(L::splat(1.0).add(erf))
}

/// max(x, 0).
#[inline(always)]
pub fn relu<L: Lanes>(x: L) -> L {
    x.max(L::splat(0.0))
}

/// Natural logarithm of a positive, finite, normal number.
pub fn ln_f64(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut e = ((bits >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1.0;
    }
    // ln m = 2 atanh((m - 1) / (m + 1)), |s| < 0.172: the series to s^21 is exact to f64.
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 0.0;
    for k in (1..=11).rev() {
        p = p * z + 1.0 / (2 * k + 1) as f64;
    }
    // ln 2 in two parts, the first exact when multiplied by an exponent.
    e * 0.693_147_180_369_123_816_490 + (2.0 * s * (p * z + 1.0) + e * 1.908_214_929_270_587_700_02e-10)
}

/// e to the power x, for |x| < 700.
pub fn exp_f64(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * 0.693_147_180_369_123_816_490) - n * 1.908_214_929_270_587_700_02e-10;
    let mut p = 1.0;
    for k in (1..=14).rev() {
        p = p * r / k as f64 + 1.0;
    }
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// `base` to the power `exponent`, for positive `base`.
pub fn pow_f64(base: f64, exponent: f64) -> f64 {
    exp_f64(exponent * ln_f64(base))
}

/// Sine and cosine of `x`, for |x| < 2^30.
pub fn sin_cos_f64(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    // π/2 in three parts of 33 bits (fdlibm's), so that n times the first two is exact.
    let r = ((x - n * 1.570_796_326_734_125_614_17) - n * 6.077_100_506_303_965_976_6e-11)
        - n * 2.022_266_248_795_950_632e-21;
    let z = r * r;
    let (mut s, mut c) = (1.0, 1.0);
    for k in (1..=9).rev() {
        s = 1.0 - s * z / ((2 * k) * (2 * k + 1)) as f64;
        c = 1.0 - c * z / ((2 * k - 1) * (2 * k)) as f64;
    }
    let s = s * r;
    match (n as i64) & 3 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64, tolerance: f64) {
        assert!((got - want).abs() <= tolerance * want.abs().max(1e-30), "{got} is not {want}");
    }

    #[test]
    fn f32_functions_agree_with_f64_ones() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            near(exp(x) as f64, (x as f64).exp(), 3e-7);
            near(tanh(x) as f64, (x as f64).tanh(), 3e-7);
            let wide = x as f64;
            assert!((silu(x) as f64 - wide / (1.0 + (-wide).exp())).abs() <= 1e-6 * wide.abs().max(1e-6));
        }
        for i in -600..600 {
            let x = i as f64 * 0.01;
            let tanh = 0.5 * x * (1.0 + (0.7978845608028654 * (x + 0.044715 * x * x * x)).tanh());
            assert!((gelu_tanh(x as f32) as f64 - tanh).abs() < 1e-6);
        }
        assert!(
            (gelu_erf(1.0f32) - 0.841_344_7).abs() < 5e-7 && (gelu_erf(-1.0f32) + 0.158_655_3).abs() < 5e-7
        );
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0f32), 1.0);
    }

    #[test]
    fn f64_functions_agree_with_the_library_to_the_last_bits() {
        for i in 1..20000 {
            let x = i as f64 * 0.37;
            near(ln_f64(x), x.ln(), 4e-16);
            near(exp_f64(x * 0.05), (x * 0.05).exp(), 1e-14);
            let (s, c) = sin_cos_f64(x * 17.0);
            assert!((s - (x * 17.0).sin()).abs() < 1e-15 && (c - (x * 17.0).cos()).abs() < 1e-15);
        }
        near(pow_f64(500000.0, 0.37), 500000f64.powf(0.37), 1e-14);
    }
}
