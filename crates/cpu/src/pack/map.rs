//! Weights that lie packed in memory already: used where they lie if whole panels of them are wanted, else put together
//! output by output.

use std::sync::Arc;

use tensor::{PackedPart, PackedWeight, WeightFormat, WeightSpec};

use super::{CpuWeight, Panel, PanelLayout, PanelRun};
use crate::buffer::{Disjoint, Memory};
use crate::pool::Pool;
use crate::simd::{Bf16, Element, LANES, with_element};

/// Bytes that a thread compares with their checksums at a time.
const GRAIN: usize = 1 << 20;

/// Bytes that outputs have side by side in a grouped panel's elements.
const OF_OUTPUT: usize = 4;

/// A weight `[n, k]` of parts that lie one under the other.
///
/// # Panics
/// If the parts are packed in another way than `spec`, or begin within a group.
pub(super) fn map(parts: &[PackedPart], [n, k]: [usize; 2], spec: WeightSpec, pool: &Pool) -> CpuWeight {
    for part in parts {
        if let Some(weight) = &part.weight {
            let is = weight.spec.from_input(part.cols.start, weight.shape[1]);
            assert_eq!(is, spec, "a packed weight is used as it is packed");
            verify(weight, part, pool);
        }
    }
    let last = parts.len().saturating_sub(1);
    let whole_panels = parts.iter().enumerate().all(|(i, part)| {
        let ends = part.rows.len().is_multiple_of(LANES) || i == last;
        part.weight.is_some() && part.rows.start.is_multiple_of(LANES) && ends
    });
    match whole_panels {
        true => {
            let run = |part: &PackedPart| {
                let weight = part.weight.as_ref().expect("checked above");
                run_of(weight, part.rows.start / LANES, part.cols.start, part.rows.len().div_ceil(LANES))
            };
            CpuWeight::from_runs(parts.iter().map(run).collect(), n, k, spec)
        }
        false => gather(parts, [n, k], spec, pool),
    }
}

/// Compares what a part touches with its checksums.
fn verify(weight: &PackedWeight, part: &PackedPart, pool: &Pool) {
    let stride = PanelLayout::new(weight.spec, weight.shape[1]).stride;
    let start = weight.range.start + part.rows.start / LANES * stride;
    let bytes = part.rows.end.div_ceil(LANES) * stride - part.rows.start / LANES * stride;
    pool.split(bytes, GRAIN, |range| weight.memory.verify(start + range.start..start + range.end));
}

/// Panels of a packed weight, from one of their columns on.
fn run_of(weight: &PackedWeight, first_panel: usize, first_col: usize, panels: usize) -> PanelRun {
    let layout = PanelLayout::new(weight.spec, weight.shape[1]);
    let at = weight.range.start + first_panel * layout.stride;
    let first = match weight.spec.format {
        WeightFormat::Float(_) => [first_col; 2],
        _ => {
            let groups = weight.spec.groups(weight.shape[1]);
            let group = groups.of(0..first_col).end;
            [group, groups.scale(group)]
        }
    };
    PanelRun::new(weight.memory.clone(), at, layout, first, panels)
}

/// Puts outputs together that do not begin where panels do.
fn gather(parts: &[PackedPart], [n, k]: [usize; 2], spec: WeightSpec, pool: &Pool) -> CpuWeight {
    let layout = PanelLayout::new(spec, k);
    let panels = n.div_ceil(LANES);
    let mut memory = Memory::zeroed(panels * layout.stride);
    // Where each output comes from, if it is not zeros.
    let sources: Vec<Option<(&PackedPart, &PackedWeight, usize)>> = parts
        .iter()
        .flat_map(|part| {
            part.rows.clone().map(move |row| part.weight.as_ref().map(|weight| (part, weight, row)))
        })
        .collect();
    assert_eq!(sources.len(), n, "parts of a weight of {n} outputs");
    let all = Disjoint::new(memory.slice_mut::<u8>(panels * layout.stride));
    pool.split(panels, 1, |own| {
        for panel in own {
            // SAFETY: panels do not overlap, and each belongs to one thread.
            let out = unsafe { all.part(panel * layout.stride..(panel + 1) * layout.stride) };
            for lane in 0..LANES {
                // Memory of zeros is outputs of zeros in every format: their scale is 0.
                let Some(&Some((part, weight, row))) = sources.get(panel * LANES + lane) else { continue };
                let from = run_of(weight, row / LANES, part.cols.start, 1);
                copy_lane(spec.format, k, from.panel(0), [row % LANES, lane], layout.split(out));
            }
        }
    });
    let run = PanelRun::new(Arc::new(memory), 0, layout, [0; 2], panels);
    CpuWeight::from_runs(vec![run], n, k, spec)
}

/// Copies output `from_lane` of a panel to output `to_lane` of another, which has the same inputs.
fn copy_lane(
    format: WeightFormat,
    k: usize,
    from: Panel,
    [from_lane, to_lane]: [usize; 2],
    [elements, scales, zeros]: [&mut [u8]; 3],
) {
    // `units` of `bytes` bytes, of which every output has the one at its place among 16.
    let copy = |from: *const u8, to: &mut [u8], units: usize, bytes: usize, place: fn(usize) -> usize| {
        for unit in 0..units {
            let at = |lane: usize| (unit * LANES + place(lane)) * bytes;
            let to = &mut to[at(to_lane)..at(to_lane) + bytes];
            // SAFETY: the panel at `from` has as many inputs, so as many units, and does not overlap with new memory.
            unsafe { std::ptr::copy_nonoverlapping(from.add(at(from_lane)), to.as_mut_ptr(), bytes) };
        }
    };
    let in_order: fn(usize) -> usize = |lane| lane;
    match format {
        WeightFormat::Float(dtype) => with_element!(dtype, E => {
            copy(from.elements, elements, k, dtype.bytes(), <E as Element>::place);
        }),
        grouped => {
            copy(from.elements, elements, elements.len() / (LANES * OF_OUTPUT), OF_OUTPUT, in_order);
            match grouped {
                WeightFormat::Fp8 => copy(from.scales, scales, scales.len() / LANES, 1, in_order),
                WeightFormat::Scaled(_) => copy(from.scales, scales, scales.len() / (LANES * 4), 4, in_order),
                _ => copy(from.scales, scales, scales.len() / (LANES * 2), 2, Bf16::place),
            }
            let points = if grouped == WeightFormat::Int4 { scales.len() / (LANES * 2) } else { 0 };
            copy(from.zeros, zeros, points, 1, in_order);
        }
    }
}
