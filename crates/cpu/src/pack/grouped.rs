//! Panels of formats that have a scale per group of 32 inputs, made from weights that are read. A short group is filled up with zeros.
//!
//! | | elements of a group | scales of a group | zero points of a group |
//! |---|---|---|---|
//! | fp8 | `[chunk 8][output 16][input 4]` e4m3 | `[output 16]` e8m0 | |
//! | int8 | `[chunk 8][output 16][input 4]` q + 128, any where the scale is 0 | `[output 16]` bf16, as vectors widen them | |
//! | int4 | `[pair of chunks 4][output 16][input 4]` q, the first chunk's in the low halves | as int8 | `[output 16]` u8 |
//!
//! Four inputs of an output lie side by side because instructions that multiply bytes add up four neighbours. Whole
//! numbers of eight bits are kept without a sign, as one side of these instructions wants them.

use std::ops::Range;

use tensor::{Fp8Group, GROUP, Groups, Int4Group, Int8Group, MatrixSource, WeightFormat};

use super::{Panel, group_bytes};
use crate::simd::{Bf16, Element, F32x16, Isa, Kernel, LANES, load_group};

/// Inputs of an output that lie side by side.
pub(super) const CHUNK: usize = 4;
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
    let [e, s, z] = group_bytes(format);
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
            let weights = &self.rows[lane][self.inputs.clone()];
            let q = match self.format {
                WeightFormat::Float(_) | WeightFormat::Scaled(_) => unreachable!("nothing is quantised"),
                WeightFormat::Fp8 => {
                    let group = Fp8Group::of(weights);
                    self.scales[lane] = group.exponent;
                    let mut q = [0; GROUP];
                    q.iter_mut().zip(weights).for_each(|(q, w)| *q = group.quantize(*w));
                    q
                }
                WeightFormat::Int8 => {
                    let w = load_group::<V>(weights);
                    let Int8Group { scale } = Int8Group::of_largest(w[0].abs().max(w[1].abs()).largest());
                    write_bf16(self.scales, lane, scale);
                    to_bytes(w, scale, |w| {
                        let q = w.div(V::splat(scale)).round();
                        q.max(V::splat(-127.0)).min(V::splat(127.0)).add(V::splat(f32::from(INT8_ZERO)))
                    })
                }
                WeightFormat::Int4 => {
                    let w = load_group::<V>(weights);
                    let none = V::splat(0.0);
                    let high = w[0].max(w[1]).max(none).largest();
                    let low = -none.sub(w[0]).max(none.sub(w[1])).max(none).largest();
                    let Int4Group { scale, zero } = Int4Group::of_range(low, high);
                    write_bf16(self.scales, lane, scale);
                    self.zeros[lane] = zero;
                    to_bytes(w, scale, |w| {
                        let q =
                            w.div(V::splat(scale)).add(V::splat(f32::from(zero))).mul(V::splat(1.0 / 16.0));
                        q.round().max(none).min(V::splat(15.0))
                    })
                }
            };
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

/// The whole numbers of a group; those of scale 0 are 0.
#[inline(always)]
fn to_bytes<V: F32x16>(weights: [V; 2], scale: f32, whole: impl Fn(V) -> V) -> [u8; GROUP] {
    let mut bytes = [0; GROUP];
    if scale > 0.0 {
        for (w, bytes) in weights.into_iter().zip(bytes.as_chunks_mut::<LANES>().0) {
            *bytes = whole(w).low_bytes();
        }
    }
    bytes
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
        WeightFormat::Float(_) | WeightFormat::Scaled(_) => unreachable!("nothing was quantised"),
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
