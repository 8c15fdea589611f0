//! Panels of e4m3 with the scales of a checkpoint: elements as those of fp8, then `[scale][output 16]` float32.

use std::ops::Range;

use tensor::{GROUP, Groups, MatrixSource, Scales, WeightSpec, fp8};

use super::grouped::CHUNK;
use super::{Panel, group_bytes};
use crate::simd::LANES;

/// Packs the outputs of one panel into its elements and scales.
pub(super) fn pack_panel(
    source: &dyn MatrixSource,
    spec: WeightSpec,
    outputs: Range<usize>,
    [elements, scales, _]: [&mut [u8]; 3],
) {
    let k = source.cols();
    let (groups, [of_group, of_scale, _]) = (spec.groups(k), group_bytes(spec.format));
    let scale_inputs = spec.scale_inputs(k);
    let mut row = vec![0; k];
    for (lane, output) in outputs.enumerate() {
        source.read_elements(output, 0..k, &mut row);
        for group in 0..groups.count() {
            let to = &mut elements[group * of_group..(group + 1) * of_group];
            for (chunk, from) in row[groups.inputs(group)].chunks(CHUNK).enumerate() {
                let at = (chunk * LANES + lane) * CHUNK;
                to[at..at + from.len()].copy_from_slice(from);
            }
        }
        for (inputs, to) in scale_inputs.iter().zip(scales.chunks_exact_mut(of_scale)) {
            let scale = source.scale(output, inputs.start).to_ne_bytes();
            to[lane * Scales::BYTES..(lane + 1) * Scales::BYTES].copy_from_slice(&scale);
        }
    }
}

/// One group of one output, widened.
pub(super) fn read_group(panel: Panel, groups: Groups, group: usize, lane: usize, out: &mut [f32]) {
    let scale = panel.scales.cast::<f32>().wrapping_add(groups.scale(group) * LANES + lane);
    // SAFETY: a panel has scales of all groups for 16 outputs.
    let scale = unsafe { scale.read_unaligned() };
    for (input, out) in out.iter_mut().enumerate() {
        let at = group * GROUP * LANES + (input / CHUNK * LANES + lane) * CHUNK + input % CHUNK;
        // SAFETY: a panel has elements of all groups for 16 outputs.
        *out = fp8::to_f32(unsafe { panel.elements.add(at).read() }) * scale;
    }
}
