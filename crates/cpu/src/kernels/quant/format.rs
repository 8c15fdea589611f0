//! What a group of inputs adds to the sums of a tile, for each format.

use std::ops::Range;

use tensor::{GROUP, Groups, Scales, WeightFormat};

use super::rows::TileRows;
use crate::pack::{Panel, group_bytes};
use crate::simd::LANES;
use crate::simd::int::{Group, Products};

/// A format of weights in groups.
pub(crate) trait Format: 'static {
    /// How its rows are kept.
    const ROWS: RowFormat;
    /// Which of [`Products::ROWS`] is its.
    const INDEX: usize;
    /// Bytes of a group's elements, scales and zero points.
    const BYTES: [usize; 3];

    /// Adds some groups, ascending, to the sums of R rows times a panel, and fetches those of the panel `ahead` to the
    /// second-level cache.
    ///
    /// # Safety
    /// Rows and panel must have these groups.
    unsafe fn add<V: Products, const R: usize>(
        sums: &mut [V; R],
        x: TileRows,
        panel: Panel,
        ahead: Option<Panel>,
        groups: Groups,
        range: Range<usize>,
    );
}

/// How the rows of a product are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFormat {
    /// As they are.
    Floats,
    /// As whole numbers, of which the sum times this number is kept too.
    Whole { start_factor: i32, words: WordsFor },
}

/// Which products want whole numbers as half-words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WordsFor {
    Nobody,
    /// Those with int8 weights, where the set of instructions says so.
    Int8,
}

pub(crate) struct Int8;
pub(crate) struct Int4;
pub(crate) struct Fp8;
pub(crate) struct Scaled;

/// Asks for the cache lines of a group that will be read later.
#[inline(always)]
fn fetch<V: Products>(panel: Option<Panel>, group: usize, [elements, scales, zeros]: [usize; 3]) {
    const LINE: usize = 64;
    let Some(panel) = panel else { return };
    for line in 0..elements / LINE {
        V::prefetch_far(panel.elements.wrapping_add(group * elements + line * LINE));
    }
    if scales > 0 {
        V::prefetch_far(panel.scales.wrapping_add(group * scales));
    }
    if zeros > 0 {
        V::prefetch_far(panel.zeros.wrapping_add(group * zeros));
    }
}

/// Where a group lies in rows of `row` bytes per group and in a panel.
///
/// # Safety
/// Rows and panel must have this group.
#[inline(always)]
unsafe fn at<F: Format, const R: usize>(x: TileRows, row: usize, panel: Panel, group: usize) -> Group {
    let [elements, scales, zeros] = F::BYTES;
    // SAFETY: inside of both, by the caller's word; scales are at a multiple of their size.
    unsafe {
        Group {
            w: panel.elements.add(group * elements),
            w_scales: panel.scales.add(group * scales).cast(),
            zeros: panel.zeros.add(group * zeros),
            x: x.elements.add(group * R * row),
            x_scales: x.scales.add(group * R),
            starts: x.starts.add(group * R),
        }
    }
}

impl Format for Int8 {
    const ROWS: RowFormat = RowFormat::Whole { start_factor: -128, words: WordsFor::Int8 };
    const INDEX: usize = 0;
    const BYTES: [usize; 3] = group_bytes(WeightFormat::Int8);

    #[inline(always)]
    unsafe fn add<V: Products, const R: usize>(
        sums: &mut [V; R],
        x: TileRows,
        panel: Panel,
        ahead: Option<Panel>,
        _: Groups,
        range: Range<usize>,
    ) {
        let row = if V::INT8_WANTS_WORDS { 2 * GROUP } else { GROUP };
        for group in range {
            fetch::<V>(ahead, group, Self::BYTES);
            // SAFETY: rows and panel have this group, by the caller's word.
            unsafe { V::add_int8(sums, at::<Self, R>(x, row, panel, group)) };
        }
    }
}

impl Format for Int4 {
    const ROWS: RowFormat = RowFormat::Whole { start_factor: -1, words: WordsFor::Nobody };
    const INDEX: usize = 1;
    const BYTES: [usize; 3] = group_bytes(WeightFormat::Int4);

    #[inline(always)]
    unsafe fn add<V: Products, const R: usize>(
        sums: &mut [V; R],
        x: TileRows,
        panel: Panel,
        ahead: Option<Panel>,
        _: Groups,
        range: Range<usize>,
    ) {
        for group in range {
            fetch::<V>(ahead, group, Self::BYTES);
            // SAFETY: rows and panel have this group, by the caller's word.
            unsafe { V::add_int4(sums, at::<Self, R>(x, GROUP, panel, group)) };
        }
    }
}

impl Format for Fp8 {
    const ROWS: RowFormat = RowFormat::Floats;
    const INDEX: usize = 2;
    const BYTES: [usize; 3] = group_bytes(WeightFormat::Fp8);

    #[inline(always)]
    unsafe fn add<V: Products, const R: usize>(
        sums: &mut [V; R],
        x: TileRows,
        panel: Panel,
        ahead: Option<Panel>,
        groups: Groups,
        range: Range<usize>,
    ) {
        for group in range {
            let inputs = groups.inputs(group);
            fetch::<V>(ahead, group, Self::BYTES);
            // SAFETY: rows and panel have this group, by the caller's word.
            unsafe {
                let (scale, more, large) = V::fp8_scales(panel.scales.add(group * LANES));
                let w = panel.elements.add(group * Self::BYTES[0]);
                let x = x.floats.add(inputs.start * R);
                match (large, inputs.len() == GROUP) {
                    (false, true) => add_fp8::<V, R, false>(sums, x, w, [scale, more], GROUP),
                    (false, false) => add_fp8::<V, R, false>(sums, x, w, [scale, more], inputs.len()),
                    (true, _) => add_fp8::<V, R, true>(sums, x, w, [scale, more], inputs.len()),
                }
            }
        }
    }
}

impl Format for Scaled {
    const ROWS: RowFormat = RowFormat::Floats;
    const INDEX: usize = 2;
    const BYTES: [usize; 3] = group_bytes(WeightFormat::Scaled(Scales::OUTPUT));

    #[inline(always)]
    unsafe fn add<V: Products, const R: usize>(
        sums: &mut [V; R],
        x: TileRows,
        panel: Panel,
        ahead: Option<Panel>,
        groups: Groups,
        range: Range<usize>,
    ) {
        let mut next = range.start;
        while next < range.end {
            let scale = groups.scale(next);
            let of_scale = groups.with_scale(scale, next..range.end);
            next = of_scale.end;
            if let Some(ahead) = ahead {
                V::prefetch_far(ahead.scales.wrapping_add(scale * Self::BYTES[1]));
            }
            // SAFETY: the panel has this scale, by the caller's word.
            let (scales, large) = unsafe { element_scales::<V>(panel.scales.add(scale * Self::BYTES[1])) };
            for group in of_scale {
                let inputs = groups.inputs(group);
                fetch::<V>(ahead, group, [Self::BYTES[0], 0, 0]);
                // SAFETY: rows and panel have this group, by the caller's word.
                unsafe {
                    let w = panel.elements.add(group * Self::BYTES[0]);
                    let x = x.floats.add(inputs.start * R);
                    match (large, inputs.len() == GROUP) {
                        (false, true) => add_fp8::<V, R, false>(sums, x, w, scales, GROUP),
                        (false, false) => add_fp8::<V, R, false>(sums, x, w, scales, inputs.len()),
                        (true, _) => add_fp8::<V, R, true>(sums, x, w, scales, inputs.len()),
                    }
                }
            }
        }
    }
}

/// Two factors of 16 scales times 2¹²⁰, and whether the second is other than 1. [`Products::fp8`] gives 2⁻¹²⁰ of elements;
/// times the first factor that is rounded once, as element · scale is, and times the second exact.
///
/// # Safety
/// 16 scales must be readable.
#[inline(always)]
unsafe fn element_scales<V: Products>(scales: *const u8) -> ([V; 2], bool) {
    const FACTOR: f32 = f32::from_bits((127 + 120) << 23);
    /// Times the factor, this is infinite.
    const LARGE: f32 = 256.0;
    // SAFETY: readable, by the caller's word.
    let scales = unsafe { scales.cast::<[f32; LANES]>().read_unaligned() };
    let all = V::load(&scales);
    if all.largest() < LARGE {
        return ([all.mul(V::splat(FACTOR)), V::splat(1.0)], false);
    }
    let first = scales.map(|scale| if scale < LARGE { scale * FACTOR } else { scale });
    let second = scales.map(|scale| if scale < LARGE { 1.0 } else { FACTOR });
    ([V::load(&first), V::load(&second)], true)
}

/// Adds `inputs` products of floats, ascending. Scales beyond 2⁷ are multiplied by in two steps.
///
/// # Safety
/// So many inputs of rows and of a panel must be readable.
#[inline(always)]
unsafe fn add_fp8<V: Products, const R: usize, const LARGE: bool>(
    sums: &mut [V; R],
    x: *const f32,
    w: *const u8,
    scales: [V; 2],
    inputs: usize,
) {
    for chunk in 0..inputs.div_ceil(4) {
        // SAFETY: a panel has whole chunks.
        let weights = unsafe { V::fp8(w.add(chunk * 64)) };
        for i in 0..4 {
            let input = chunk * 4 + i;
            if input == inputs {
                break;
            }
            let mut weight = weights[i].mul(scales[0]);
            if LARGE {
                weight = weight.mul(scales[1]);
            }
            for r in 0..R {
                // SAFETY: rows have so many inputs, by the caller's word.
                let x = V::splat(unsafe { x.add(input * R + r).read() });
                sums[r] = weight.fma(x, sums[r]);
            }
        }
    }
}

/// Runs `$body` with `$F` naming the type of a [`tensor::WeightFormat`] in groups.
macro_rules! with_format {
    ($format:expr, $F:ident => $body:expr) => {
        match $format {
            tensor::WeightFormat::Fp8 => {
                type $F = $crate::kernels::quant::format::Fp8;
                $body
            }
            tensor::WeightFormat::Scaled(_) => {
                type $F = $crate::kernels::quant::format::Scaled;
                $body
            }
            tensor::WeightFormat::Int8 => {
                type $F = $crate::kernels::quant::format::Int8;
                $body
            }
            tensor::WeightFormat::Int4 => {
                type $F = $crate::kernels::quant::format::Int4;
                $body
            }
            tensor::WeightFormat::Float(_) => unreachable!("floats have no groups"),
        }
    };
}
pub(crate) use with_format;
