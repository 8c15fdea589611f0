//! Where panels lie in memory, which may be the weight's own or a file's.

use std::ops::Range;
use std::sync::Arc;

use tensor::{GROUP, PackedBytes, Scales, WeightFormat, WeightSpec};

use crate::buffer::Memory;
use crate::simd::LANES;

impl PackedBytes for Memory {
    fn bytes(&self) -> &[u8] {
        self.slice(Memory::bytes(self))
    }
    /// What this process wrote needs no comparison.
    fn verify(&self, _: Range<usize>) {}
}

/// Elements, scale and zero points of one group of a panel, in bytes. Groups may share a scale.
///
/// # Panics
/// If the format has no groups.
pub(crate) const fn group_bytes(format: WeightFormat) -> [usize; 3] {
    match format {
        WeightFormat::Float(_) => panic!("floats have no groups"),
        WeightFormat::Fp8 => [GROUP * LANES, LANES, 0],
        WeightFormat::Scaled(_) => [GROUP * LANES, Scales::BYTES * LANES, 0],
        WeightFormat::Int8 => [GROUP * LANES, 2 * LANES, 0],
        WeightFormat::Int4 => [GROUP * LANES / 2, 2 * LANES, LANES],
    }
}

/// How long a panel of 16 outputs is and where its parts begin, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    /// Where the scales begin.
    pub scales: usize,
    /// Where the zero points begin.
    pub zeros: usize,
    /// From one panel to the next.
    pub stride: usize,
    /// Elements, scales and zero points of one group; of one input of floats.
    of_group: [usize; 3],
}

impl PanelLayout {
    /// Of a weight with `k` inputs.
    pub fn new(spec: WeightSpec, k: usize) -> Self {
        let of_group = match spec.format {
            WeightFormat::Float(dtype) => {
                let stride = k * LANES * dtype.bytes();
                return PanelLayout {
                    scales: stride,
                    zeros: stride,
                    stride,
                    of_group: [LANES * dtype.bytes(), 0, 0],
                };
            }
            format => group_bytes(format),
        };
        let groups = spec.groups(k);
        let scales = groups.count() * of_group[0];
        let zeros = scales + groups.scales() * of_group[1];
        // Whole cache lines, so that panels of several threads share none and vectors of elements cross none.
        let stride = (zeros + groups.count() * of_group[2]).next_multiple_of(64);
        PanelLayout { scales, zeros, stride, of_group }
    }

    /// Bytes of all panels of a weight `[n, k]`.
    pub fn bytes(spec: WeightSpec, [n, k]: [usize; 2]) -> usize {
        n.div_ceil(LANES) * Self::new(spec, k).stride
    }

    /// Elements, scales and zero points of one panel.
    pub(super) fn split(self, panel: &mut [u8]) -> [&mut [u8]; 3] {
        let (rest, zeros) = panel.split_at_mut(self.zeros);
        let (elements, scales) = rest.split_at_mut(self.scales);
        [elements, scales, zeros]
    }
}

/// Some panels, the same distance from each other.
#[derive(Clone)]
pub struct PanelRun {
    memory: Arc<dyn PackedBytes>,
    /// The first panel.
    first: Panel,
    stride: usize,
    panels: usize,
}

// SAFETY: the pointers of `first` are into `memory`, which is both and is only read.
unsafe impl Send for PanelRun {}
// SAFETY: as above.
unsafe impl Sync for PanelRun {}

/// Where the parts of a panel begin, from the weight's first group on.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    pub(crate) elements: *const u8,
    pub(crate) scales: *const u8,
    pub(crate) zeros: *const u8,
}

impl PanelRun {
    /// `panels` panels, the first of which begins at byte `at` of the memory. They are laid out as `layout` says; of each
    /// the groups (of floats: the inputs) from `first[0]` on are meant, whose scales are those from `first[1]` on.
    ///
    /// # Panics
    /// If they are not all inside the memory, or elements are not at a multiple of 32 bytes there.
    pub fn new(
        memory: Arc<dyn PackedBytes>,
        at: usize,
        layout: PanelLayout,
        [first_group, first_scale]: [usize; 2],
        panels: usize,
    ) -> Self {
        let bytes = memory.bytes();
        assert!(panels * layout.stride + at <= bytes.len(), "panels beyond their memory");
        let part = |of_panel: usize, part: usize, first: usize| {
            bytes.as_ptr().wrapping_add(at + of_panel + first * layout.of_group[part])
        };
        let first = Panel {
            elements: part(0, 0, first_group),
            scales: part(layout.scales, 1, first_scale),
            zeros: part(layout.zeros, 2, first_group),
        };
        assert!(first.elements.addr().is_multiple_of(32), "panels begin at multiples of 32 bytes");
        PanelRun { memory, first, stride: layout.stride, panels }
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.panels
    }

    /// What holds them.
    pub fn memory(&self) -> &Arc<dyn PackedBytes> {
        &self.memory
    }

    /// A panel of the run.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> Panel {
        assert!(index < self.panels, "panel beyond the run");
        let Panel { elements, scales, zeros } = self.first;
        let by = index * self.stride;
        Panel {
            elements: elements.wrapping_add(by),
            scales: scales.wrapping_add(by),
            zeros: zeros.wrapping_add(by),
        }
    }
}
