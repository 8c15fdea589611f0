//! Panels of formats that have a scale per group of 32 inputs. A short group is filled up with zeros.
//!
//! | | elements of a group | scales of a group | zero points of a group |
//! |---|---|---|---|
//! | fp8 | `[chunk 8][output 16][input 4]` e4m3 | `[output 16]` e8m0 | |
//! | int8 | `[chunk 8][output 16][input 4]` q + 128 | `[output 16]` bf16, as vectors widen them | |
//! | int4 | `[pair of chunks 4][output 16][input 4]` q, the first chunk's in the low halves | as int8 | `[output 16]` u8 |
//!
//! Four inputs of an output lie side by side because instructions that multiply bytes add up four neighbours. Whole
//! numbers of eight bits are kept without a sign, as one side of these instructions wants them.

use std::ops::Range;

use tensor::{Fp8Group, GROUP, Groups, Int4Group, Int8Group, MatrixSource, WeightFormat};

use super::Panel;
use crate::simd::{Bf16, Element, F32x16, Isa, Kernel, LANES};

/// Inputs of an output that lie side by side.
const CHUNK: usize = 4;
/// Groups that are read from the source at a time.
const BATCH: usize = 16;
/// What stands for 0 in int8.
const INT8_ZERO: u8 = 128;

/// Packs the outputs of one panel into its elements, scales and zero points.
pub(super) fn pack_panel(
    isa: Isa,
    source: &dyn MatrixSource,
    format: WeightFormat,
    groups: Groups,
    outputs: Range<usize>,
    [elements, scales, zeros]: [&mut [u8]; 3],
) {
    let mut rows = [[0f32; BATCH * GROUP]; LANES];
    let of_group = format.group_bytes();
    let [e, s, z] = match format {
        WeightFormat::Int4 => [of_group - 3, 2, 1],
        WeightFormat::Int8 => [of_group - 2, 2, 0],
        _ => [of_group - 1, 1, 0],
    }
    .map(|bytes| bytes * LANES);
    for first in (0..groups.count()).step_by(BATCH) {
        let batch = first..(first + BATCH).min(groups.count());
        let inputs = groups.inputs(batch.start).start..groups.inputs(batch.end - 1).end;
        for (output, row) in outputs.clone().zip(&mut rows) {
            source.read(output, inputs.clone(), &mut row[..inputs.len()]);
        }
        for group in batch {
            let of_group = groups.inputs(group);
            isa.run(PackGroup {
                format,
                rows: &rows,
                inputs: of_group.start - inputs.start..of_group.end - inputs.start,
                elements: &mut elements[group * e..(group + 1) * e],
                scales: &mut scales[group * s..(group + 1) * s],
                zeros: &mut zeros[group * z..(group + 1) * z],
            });
        }
    }
}

/// One group of 16 outputs, of which those that are not there are zeros.
struct PackGroup<'a> {
    format: WeightFormat,
    rows: &'a [[f32; BATCH * GROUP]; LANES],
    inputs: Range<usize>,
    elements: &'a mut [u8],
    scales: &'a mut [u8],
    zeros: &'a mut [u8],
}

impl Kernel for PackGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        for lane in 0..LANES {
            // Zeros at the end of a short group change neither its largest weight nor its range.
            let mut weights = [[0f32; LANES]; 2];
            weights.as_flattened_mut()[..self.inputs.len()]
                .copy_from_slice(&self.rows[lane][self.inputs.clone()]);
            let [a, b] = [V::load(&weights[0]), V::load(&weights[1])];
            let largest = || a.abs().max(b.abs()).largest();
            let mut q = [0u8; GROUP];
            match self.format {
                WeightFormat::Float(_) => unreachable!("floats have no groups"),
                WeightFormat::Fp8 => {
                    let group = Fp8Group::of_largest(largest());
                    self.scales[lane] = group.exponent;
                    q.iter_mut().zip(weights.as_flattened()).for_each(|(q, w)| *q = group.quantize(*w));
                }
                WeightFormat::Int8 => {
                    let group = Int8Group::of_largest(largest());
                    write_bf16(self.scales, lane, group.scale);
                    q = whole([a, b], group.scale, |w| w.max(V::splat(-127.0)).min(V::splat(127.0)));
                    q.iter_mut().for_each(|q| *q ^= INT8_ZERO);
                }
                WeightFormat::Int4 => {
                    let zero = V::splat(0.0);
                    let low = -zero.sub(a).max(zero.sub(b)).largest().max(0.0);
                    let high = a.max(b).largest().max(0.0);
                    let group = Int4Group::of_range(low, high);
                    write_bf16(self.scales, lane, group.scale);
                    self.zeros[lane] = group.zero;
                    let zero = V::splat(f32::from(group.zero));
                    q = whole([a, b], group.scale, |w| {
                        let sixteenth = V::splat(1.0 / 16.0);
                        w.add(zero).mul(sixteenth).round().max(V::splat(0.0)).min(V::splat(15.0))
                    });
                }
            }
            let chunks = q.as_chunks::<CHUNK>().0;
            if self.format == WeightFormat::Int4 {
                for (pair, out) in chunks.as_chunks::<2>().0.iter().zip(self.elements.as_chunks_mut::<64>().0)
                {
                    for i in 0..CHUNK {
                        out[lane * CHUNK + i] = pair[0][i] | pair[1][i] << 4;
                    }
                }
            } else {
                for (chunk, out) in chunks.iter().zip(self.elements.as_chunks_mut::<64>().0) {
                    out[lane * CHUNK..(lane + 1) * CHUNK].copy_from_slice(chunk);
                }
            }
        }
    }
}

/// What `finish` makes of weights divided by their scale, rounded to the nearest, ties to even, as bytes; zeros where the
/// scale is 0.
#[inline(always)]
fn whole<V: F32x16>(weights: [V; 2], scale: f32, finish: impl Fn(V) -> V) -> [u8; GROUP] {
    /// Added to a small whole number, it leaves that in the lowest bits.
    const LOWEST: f32 = 12_582_912.0;
    let mut q = [0; GROUP];
    if scale == 0.0 {
        return q;
    }
    for (weights, q) in weights.into_iter().zip(q.as_chunks_mut::<LANES>().0) {
        let mut numbers = [0f32; LANES];
        finish(weights.div(V::splat(scale))).round().add(V::splat(LOWEST)).store(&mut numbers);
        q.iter_mut().zip(numbers).for_each(|(q, number)| *q = number.to_bits() as u8);
    }
    q
}

fn write_bf16(scales: &mut [u8], lane: usize, scale: f32) {
    let bits = (scale.to_bits() >> 16) as u16;
    scales.as_chunks_mut::<2>().0[Bf16::place(lane)] = bits.to_ne_bytes();
}

/// One group of one output, widened.
pub(super) fn read_group(panel: Panel, format: WeightFormat, group: usize, lane: usize, out: &mut [f32]) {
    let byte = |from: *const u8, index: usize| -> u8 {
        // SAFETY: a panel has elements, scales and zero points of all groups for 16 outputs.
        unsafe { from.add(index).read() }
    };
    let element = |of_group: usize, input: usize| {
        byte(panel.elements, group * of_group + input / CHUNK * 64 + lane * CHUNK + input % CHUNK)
    };
    let bf16 = || {
        let at = (group * LANES + Bf16::place(lane)) * 2;
        Bf16::widen_one(u16::from_ne_bytes([byte(panel.scales, at), byte(panel.scales, at + 1)]))
    };
    match format {
        WeightFormat::Float(_) => unreachable!("floats have no groups"),
        WeightFormat::Fp8 => {
            let by = Fp8Group { exponent: byte(panel.scales, group * LANES + lane) };
            (0..).zip(out).for_each(|(i, out)| *out = by.value(element(512, i)));
        }
        WeightFormat::Int8 => {
            let by = Int8Group { scale: bf16() };
            (0..).zip(out).for_each(|(i, out)| *out = by.value((element(512, i) ^ INT8_ZERO) as i8));
        }
        WeightFormat::Int4 => {
            let by = Int4Group { scale: bf16(), zero: byte(panel.zeros, group * LANES + lane) };
            for (i, out) in out.iter_mut().enumerate() {
                let pair = i / (2 * CHUNK);
                let both = byte(panel.elements, group * 256 + pair * 64 + lane * CHUNK + i % CHUNK);
                *out = by.value(if (i / CHUNK).is_multiple_of(2) { both & 15 } else { both >> 4 });
            }
        }
    }
}
