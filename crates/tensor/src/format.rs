//! How packed weights are kept, and the arithmetic of those that are quantised (NUMERICS.md, rule 10).

use std::fmt;
use std::ops::Range;

use crate::{DType, Scales, fp8};

/// Inputs that share a scale, at most.
pub const GROUP: usize = 32;

/// How the elements of a packed weight are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// As floats, widened exactly when used.
    Float(DType),
    /// As e4m3 with a power of two per group, widened exactly when used.
    Fp8,
    /// As e4m3 with a float32 per output and some inputs, both as a checkpoint has them. A weight is their product, rounded once.
    Scaled(Scales),
    /// As whole numbers from −127 to 127 with a scale per group, multiplied by activations that are quantised likewise.
    Int8,
    /// As whole numbers from 0 to 15 with a scale and a zero point per group, multiplied by activations as [`WeightFormat::Int8`].
    Int4,
}

impl WeightFormat {
    /// The name that users write and read: a type's, or `fp8`, `e4m3`, `int8`, `int4`.
    pub const fn name(self) -> &'static str {
        match self {
            WeightFormat::Float(dtype) => dtype.name(),
            WeightFormat::Fp8 => "fp8",
            WeightFormat::Scaled(_) => "e4m3",
            WeightFormat::Int8 => "int8",
            WeightFormat::Int4 => "int4",
        }
    }

    /// Which groups share a scale, if they have float32 scales.
    pub const fn scales(self) -> Option<Scales> {
        match self {
            WeightFormat::Scaled(scales) => Some(scales),
            _ => None,
        }
    }

    /// Whether elements share scales in groups.
    pub const fn is_grouped(self) -> bool {
        !matches!(self, WeightFormat::Float(_))
    }

    /// Bytes of one group of one output: elements, scale and zero point. A short group takes as much as a full one. Scales that
    /// groups share ([`Scales::BYTES`]) do not count.
    ///
    /// # Panics
    /// For floats, which have no groups.
    pub const fn group_bytes(self) -> usize {
        match self {
            WeightFormat::Float(_) => panic!("floats have no groups"),
            WeightFormat::Fp8 => GROUP + 1,
            WeightFormat::Scaled(_) => GROUP,
            WeightFormat::Int8 => GROUP + 2,
            WeightFormat::Int4 => GROUP / 2 + 3,
        }
    }
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> Self {
        WeightFormat::Float(dtype)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a weight is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightSpec {
    /// What its elements are kept as.
    pub format: WeightFormat,
    /// Inputs after which groups begin anew: those of a leaf of the tree over a row-parallel layer's inputs, so that no
    /// group lies in two leaves. `None`: groups follow each other.
    pub period: Option<usize>,
}

impl WeightSpec {
    /// The groups of `k` inputs.
    pub fn groups(self, k: usize) -> Groups {
        let period = self.period.filter(|period| period % GROUP > 0 && *period < k);
        Groups { k, period, scales: self.format.scales() }
    }

    /// The inputs of each of an output's scales, of `k` inputs.
    pub fn scale_inputs(self, k: usize) -> Vec<Range<usize>> {
        let groups = self.groups(k);
        let inputs = |scale: usize| {
            let own = groups.with_scale(scale, 0..groups.count());
            groups.inputs(own.start).start..groups.inputs(own.end - 1).end
        };
        (0..groups.scales()).map(inputs).collect()
    }

    /// Bytes of a weight `[n, k]` without padding of its outputs.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        match self.format {
            WeightFormat::Float(dtype) => n * k * dtype.bytes(),
            format => {
                let groups = self.groups(k);
                let shared = if format.scales().is_some() { groups.scales() * Scales::BYTES } else { 0 };
                n * (groups.count() * format.group_bytes() + shared)
            }
        }
    }

    /// How the inputs from `input` on of a weight with `k` inputs are packed: which groups share a scale does not change.
    ///
    /// # Panics
    /// If `input` is beyond `k`.
    pub fn from_input(self, input: usize, k: usize) -> Self {
        assert!(input <= k, "input {input} of {k}");
        match self.format {
            WeightFormat::Scaled(scales) => {
                let format = WeightFormat::Scaled(scales.from_group(self.groups(k).before(input)));
                WeightSpec { format, ..self }
            }
            _ => self,
        }
    }
}

impl From<WeightFormat> for WeightSpec {
    fn from(format: WeightFormat) -> Self {
        WeightSpec { format, period: None }
    }
}

impl From<DType> for WeightSpec {
    fn from(dtype: DType) -> Self {
        WeightFormat::from(dtype).into()
    }
}

/// The inputs of a layer, cut at every multiple of a period and from there every [`GROUP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    k: usize,
    /// None if a group begins at every [`GROUP`]th input, as it does with periods of whole groups. Kernels ask about groups at
    /// each leaf of a tree, and this spares them the divisions.
    period: Option<usize>,
    /// Which of them share a scale; `None`: each has its own.
    scales: Option<Scales>,
}

impl Groups {
    /// How many.
    pub fn count(self) -> usize {
        self.before(self.k)
    }

    /// How many scales an output has.
    pub fn scales(self) -> usize {
        let count = self.count();
        self.scales.map_or(count, |scales| scales.count(count))
    }

    /// Which of them is a group's.
    #[inline]
    pub fn scale(self, group: usize) -> usize {
        self.scales.map_or(group, |scales| scales.of(group))
    }

    /// The groups that have a scale, of `range`.
    #[inline]
    pub fn with_scale(self, scale: usize, range: Range<usize>) -> Range<usize> {
        let first = |scale| self.scales.map_or(scale, |scales| scales.first_group(scale));
        first(scale).max(range.start)..first(scale + 1).min(range.end)
    }

    /// The inputs of a group.
    #[inline]
    pub fn inputs(self, group: usize) -> Range<usize> {
        let (start, end) = match self.period {
            None => (group * GROUP, self.k),
            Some(length) => {
                let per_period = length.div_ceil(GROUP);
                let (period, inner) = (group / per_period, group % per_period);
                (period * length + inner * GROUP, ((period + 1) * length).min(self.k))
            }
        };
        start..(start + GROUP).min(end)
    }

    /// The groups of some inputs, where a group begins and one ends.
    ///
    /// # Panics
    /// If the inputs begin or end within a group.
    #[inline]
    pub fn of(self, inputs: Range<usize>) -> Range<usize> {
        if inputs.is_empty() {
            return 0..0;
        }
        let groups = self.before(inputs.start)..self.before(inputs.end);
        let (first, last) = (self.inputs(groups.start), self.inputs(groups.end - 1));
        assert_eq!(first.start..last.end, inputs, "groups do not begin and end where a sum does");
        groups
    }

    /// Groups that begin before an input.
    #[inline]
    fn before(self, input: usize) -> usize {
        match self.period {
            None => input.div_ceil(GROUP),
            Some(length) => input / length * length.div_ceil(GROUP) + (input % length).div_ceil(GROUP),
        }
    }
}

/// `x` as bfloat16, rounded up. `x` is not negative.
#[inline]
fn bf16_up(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0xFFFF) & 0xFFFF_0000)
}

/// A group of weights as 8-bit integers: `scale · q`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Int8Group {
    /// A bfloat16; 0 if all are 0.
    pub scale: f32,
}

impl Int8Group {
    /// For finite weights: the least bfloat16 that is not below `max|w| / 127`.
    pub fn of(weights: &[f32]) -> Self {
        Self::of_largest(largest(weights))
    }

    /// For weights of which the largest is `±largest`.
    #[inline]
    pub fn of_largest(largest: f32) -> Self {
        Int8Group { scale: bf16_up(largest / 127.0) }
    }

    /// `w / scale`, rounded to the nearest, ties to even.
    pub fn quantize(self, w: f32) -> i8 {
        if self.scale == 0.0 { 0 } else { (w / self.scale).round_ties_even().clamp(-127.0, 127.0) as i8 }
    }

    /// `scale · q`.
    pub fn value(self, q: i8) -> f32 {
        self.scale * f32::from(q)
    }
}

/// A group of weights as 4-bit integers: `scale · (16 q − zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Int4Group {
    /// A sixteenth of a step, a bfloat16; 0 if all are 0.
    pub scale: f32,
    /// What stands for 0, in sixteenths of a step.
    pub zero: u8,
}

impl Int4Group {
    /// For finite weights: with `low = min(w, 0)` and `high = max(w, 0)`, the least bfloat16 that is not below
    /// `(high − low) / 240`, and `−low / scale` rounded to the nearest, ties to even.
    pub fn of(weights: &[f32]) -> Self {
        let low = weights.iter().fold(0.0, |low, &w| if w < low { w } else { low });
        let high = weights.iter().fold(0.0, |high, &w| if w > high { w } else { high });
        Self::of_range(low, high)
    }

    /// For weights from `low`, at most 0, to `high`, at least 0.
    #[inline]
    pub fn of_range(low: f32, high: f32) -> Self {
        let scale = bf16_up(high / 240.0 - low / 240.0);
        let zero = if scale == 0.0 { 0.0 } else { (-low / scale).round_ties_even() };
        Int4Group { scale, zero: zero as u8 }
    }

    /// `(w / scale + zero) / 16`, rounded to the nearest, ties to even.
    pub fn quantize(self, w: f32) -> u8 {
        if self.scale == 0.0 {
            return 0;
        }
        ((w / self.scale + f32::from(self.zero)) / 16.0).round_ties_even().clamp(0.0, 15.0) as u8
    }

    /// `scale · (16 q − zero)`.
    pub fn value(self, q: u8) -> f32 {
        self.scale * (16.0 * f32::from(q) - f32::from(self.zero))
    }
}

/// A group of weights as e4m3: `2^(exponent − 127) · q`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fp8Group {
    /// As in e8m0, from 1 to 253.
    pub exponent: u8,
}

impl Fp8Group {
    /// For finite weights: the least power of two that is not below `max|w| / 448`.
    #[inline]
    pub fn of(weights: &[f32]) -> Self {
        let exponent = ((largest(weights) / fp8::MAX).to_bits() + 0x7F_FFFF) >> 23;
        Fp8Group { exponent: exponent.clamp(1, 253) as u8 }
    }

    /// `2^(exponent − 127)`.
    pub fn scale(self) -> f32 {
        f32::from_bits(u32::from(self.exponent) << 23)
    }

    /// `w / scale`, rounded to the nearest, ties to even.
    #[inline]
    pub fn quantize(self, w: f32) -> u8 {
        fp8::from_f32(w * f32::from_bits((254 - u32::from(self.exponent)) << 23))
    }

    /// `scale · q`, exactly.
    pub fn value(self, q: u8) -> f32 {
        fp8::to_f32(q) * self.scale()
    }
}

/// The activations of a group as 8-bit integers: `scale · q`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationGroup {
    /// `max|x| / 127`; 0 if that is too small to divide by; NaN if one is not finite, and so is then every product.
    pub scale: f32,
    /// What activations are multiplied by.
    inverse: f32,
}

impl ActivationGroup {
    /// Groups with no larger activation than this count as zeros: 2⁻¹¹⁰.
    pub const TINY: f32 = f32::from_bits((127 - 110) << 23);

    /// For any activations.
    pub fn of(activations: &[f32]) -> Self {
        // As bits, so that what is not finite is the largest.
        let largest = f32::from_bits(activations.iter().fold(0, |most, x| most.max(x.abs().to_bits())));
        match largest {
            x if !x.is_finite() => ActivationGroup { scale: f32::NAN, inverse: 0.0 },
            x if x <= Self::TINY => ActivationGroup { scale: 0.0, inverse: 0.0 },
            x => ActivationGroup { scale: x / 127.0, inverse: 127.0 / x },
        }
    }

    /// `x · (127 / max|x|)`, rounded to the nearest, ties to even; 0 where the scale is 0 or NaN.
    pub fn quantize(self, x: f32) -> i8 {
        if self.inverse == 0.0 { 0 } else { (x * self.inverse).round_ties_even() as i8 }
    }
}

#[inline]
fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |most, w| if w.abs() > most { w.abs() } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn groups_begin_anew_at_each_period_and_cover_all_inputs() {
        for (k, period) in [
            (0, None),
            (1, None),
            (300, None),
            (160, Some(80)),
            (84, Some(12)),
            (96, Some(64)),
            (256, Some(32)),
            (100, Some(64)),
            (40, Some(80)),
        ] {
            let groups = WeightSpec { format: WeightFormat::Int8, period }.groups(k);
            let ranges: Vec<_> = (0..groups.count()).map(|g| groups.inputs(g)).collect();
            assert_eq!(ranges.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..k).collect::<Vec<_>>());
            let period = period.unwrap_or(k).max(1);
            assert!(ranges.iter().all(|r| r.len() <= GROUP && r.start / period == (r.end - 1) / period));
            for start in (0..k).step_by(period) {
                let of = groups.of(start..(start + period).min(k));
                assert_eq!(ranges[of.start].start, start);
                assert_eq!(ranges[of.end - 1].end, (start + period).min(k));
            }
        }
    }

    #[test]
    fn ends_of_the_range_are_whole_numbers_of_steps() {
        let weights: Vec<f32> = (0..32).map(|i| i as f32 / 31.0 - 0.25).collect();
        let (eight, four) = (Int8Group::of(&weights), Int4Group::of(&weights));
        assert!((eight.value(eight.quantize(0.75)) - 0.75).abs() <= eight.scale / 2.0);
        assert_eq!(four.quantize(-0.25), 0);
        assert_eq!(four.quantize(0.75), 15);
        assert_eq!((Int8Group::of(&[0.0; 5]).quantize(0.0), Int4Group::of(&[0.0; 5]).quantize(0.0)), (0, 0));
    }

    #[test]
    fn activations_that_are_not_finite_poison_their_group() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let group = ActivationGroup::of(&[1.0, bad, 2.0]);
            assert!(group.scale.is_nan() && group.quantize(bad) == 0);
        }
        let zeros = ActivationGroup::of(&[0.0, -0.0, 1e-38]);
        assert_eq!((zeros.scale, zeros.quantize(1e-38)), (0.0, 0));
    }

    proptest! {
        #[test]
        fn a_weight_is_off_by_half_a_step_at_most(weights in prop::collection::vec(-8.0f32..8.0, 1..33), exponent in -60i32..60) {
            let weights: Vec<f32> = weights.iter().map(|w| w * 2f32.powi(exponent)).collect();
            let most = largest(&weights);
            let (eight, four, float) = (Int8Group::of(&weights), Int4Group::of(&weights), Fp8Group::of(&weights));
            for &w in &weights {
                prop_assert!((eight.value(eight.quantize(w)) - w).abs() <= most / 127.0 * 0.51);
                // A step is 16 sixteenths; the zero point may be off by half a sixteenth.
                prop_assert!((four.value(four.quantize(w)) - w).abs() <= 8.6 * four.scale);
                prop_assert!(four.scale <= 2.0 * most / 240.0 * 1.01);
                prop_assert!((float.value(float.quantize(w)) - w).abs() <= (w.abs() / 16.0).max(most / 229_000.0));
            }
        }

        #[test]
        fn activations_stay_within_127(x in prop::collection::vec(-3e38f32..3e38, 1..33), exponent in 0i32..200) {
            let x: Vec<f32> = x.iter().map(|x| x * 2f32.powi(-exponent)).collect();
            let group = ActivationGroup::of(&x);
            for &x in &x {
                let q = group.quantize(x);
                prop_assert!((-127..=127).contains(&i32::from(q)));
                prop_assert!((group.scale * f32::from(q) - x).abs() <= group.scale * 0.51 + ActivationGroup::TINY);
            }
        }
    }
}
