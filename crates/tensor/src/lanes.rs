//! The vocabulary in which functions of elements are written once and run on any width of SIMD.
//!
//! An operation on lanes is the same IEEE operation on every lane, so a function that is generic over
//! [`Lanes`] has the same bits on every implementation.

/// Some f32 numbers that are worked on together.
pub trait Lanes: Copy {
    /// All lanes are `x`.
    fn splat(x: f32) -> Self;
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * a + b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    /// `if self > other { self } else { other }`, as x86's `maxps` does it.
    fn max(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`, as x86's `minps` does it.
    fn min(self, other: Self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// 2 to the power `self`, which holds integers from -126 to 127.
    fn exp2_int(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// `if self < limit { yes } else { no }`, lane by lane.
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self;
}

impl Lanes for f32 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self - other
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self * other
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self / other
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        if self < other { self } else { other }
    }
    #[inline(always)]
    fn round(self) -> Self {
        self.round_ties_even()
    }
    #[inline(always)]
    fn exp2_int(self) -> Self {
        f32::from_bits((((self as i32) + 127) as u32) << 23)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        f32::copysign(self, sign)
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        if self < limit { yes } else { no }
    }
}
