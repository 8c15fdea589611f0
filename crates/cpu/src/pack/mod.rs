//! Weights, packed once into the layout that serves one row and many.
//!
//! ```text
//!   panel 0 (outputs 0..16)      panel 1 (outputs 16..32)
//!   ┌ elements     ┐             ┌ elements     ┐
//!   │ scales       │             │ scales       │
//!   └ zero points  ┘             └ zero points  ┘
//! ```
//! A vector is 16 outputs, so the sum over inputs never crosses lanes. A kernel streams a panel from end to end. What
//! the parts of a panel hold is said by the file of each format; floats have elements only. The last panel's missing
//! outputs are zeros.

mod float;
mod grouped;
mod map;
mod panels;
mod scaled;

use std::ops::Range;
use std::sync::Arc;

use tensor::{MatrixSource, WeightFormat, WeightSpec};

use crate::buffer::{Disjoint, Memory};
use crate::pool::Pool;
use crate::simd::{Isa, LANES, with_element};

use panels::PanelRun;
pub(crate) use panels::{Panel, PanelLayout, group_bytes};

/// A packed weight `[n, k]`.
pub struct CpuWeight {
    /// Panels in the order of outputs.
    runs: Vec<PanelRun>,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) spec: WeightSpec,
}

impl CpuWeight {
    /// Each thread reads and writes the panels that it will later multiply by. What is packed already is used as it is.
    pub(crate) fn pack(source: &dyn MatrixSource, spec: WeightSpec, pool: &Pool, isa: Isa) -> Self {
        let (n, k) = (source.rows(), source.cols());
        if let Some(parts) = source.packed(0..n, 0..k) {
            return map::map(&parts, [n, k], spec, pool);
        }
        let layout = PanelLayout::new(spec, k);
        let panels = n.div_ceil(LANES);
        let mut memory = Memory::zeroed(PanelLayout::bytes(spec, [n, k]));
        match spec.format {
            WeightFormat::Float(dtype) => {
                with_element!(dtype, E => float::pack_panels::<E>(source, &mut memory, pool));
            }
            format => {
                let groups = spec.groups(k);
                let all = Disjoint::new(memory.slice_mut::<u8>(panels * layout.stride));
                pool.split(panels, 1, |panels| {
                    for panel in panels {
                        // SAFETY: panels do not overlap, and each belongs to one thread.
                        let out = unsafe { all.part(panel * layout.stride..(panel + 1) * layout.stride) };
                        let outputs = panel * LANES..n.min((panel + 1) * LANES);
                        let parts = layout.split(out);
                        match format.scales() {
                            Some(_) => scaled::pack_panel(source, spec, outputs, parts),
                            None => grouped::pack_panel(isa, source, format, groups, outputs, parts),
                        }
                    }
                });
            }
        }
        let run = PanelRun::new(Arc::new(memory), 0, layout, [0; 2], panels);
        CpuWeight { runs: vec![run], n, k, spec }
    }

    /// A weight whose panels are there already, in the order of its outputs.
    ///
    /// # Panics
    /// If there are not exactly as many panels as `n` outputs need.
    fn from_runs(runs: Vec<PanelRun>, n: usize, k: usize, spec: WeightSpec) -> Self {
        let panels: usize = runs.iter().map(PanelRun::panels).sum();
        assert_eq!(panels, n.div_ceil(LANES), "panels of a weight [{n}, {k}]");
        CpuWeight { runs, n, k, spec }
    }

    /// How it is packed.
    pub fn spec(&self) -> WeightSpec {
        self.spec
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Where the parts of a panel begin.
    #[inline(always)]
    pub(crate) fn panel(&self, mut index: usize) -> Panel {
        for run in &self.runs {
            if index < run.panels() {
                return run.panel(index);
            }
            index -= run.panels();
        }
        panic!("panel beyond the weight");
    }

    /// Bytes, padding included.
    pub(crate) fn bytes(&self) -> usize {
        PanelLayout::bytes(self.spec, [self.n, self.k])
    }

    /// All panels of a weight that this device packed, as they lie in memory.
    ///
    /// # Panics
    /// If the weight was made of runs.
    pub fn as_bytes(&self) -> &[u8] {
        let [run] = &self.runs[..] else {
            panic!("a weight of {} runs has no bytes of its own", self.runs.len())
        };
        run.memory().bytes()
    }

    /// Row `row`, widened, to `out [k]`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "row {row} of a weight of {} rows", self.n);
        assert_eq!(out.len(), self.k, "a row has {} elements", self.k);
        let (panel, lane) = (self.panel(row / LANES), row % LANES);
        match self.spec.format {
            WeightFormat::Float(dtype) => with_element!(dtype, E => float::read_row::<E>(panel, lane, out)),
            format => {
                let groups = self.spec.groups(self.k);
                for group in 0..groups.count() {
                    let inputs: Range<usize> = groups.inputs(group);
                    match format.scales() {
                        Some(_) => scaled::read_group(panel, groups, group, lane, &mut out[inputs]),
                        None => grouped::read_group(panel, format, group, lane, &mut out[inputs]),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{DType, Device, Reference, ScaledMatrix, Scales};

    struct Numbers(usize, usize);
    impl MatrixSource for Numbers {
        fn rows(&self) -> usize {
            self.0
        }
        fn cols(&self) -> usize {
            self.1
        }
        fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
            for (col, out) in cols.zip(out) {
                *out = ((row * 1000 + col * 7) % 1013) as f32 * 0.37 - 5.0;
            }
        }
    }

    fn specs() -> Vec<WeightSpec> {
        let mut specs: Vec<WeightSpec> = [DType::F32, DType::F16, DType::BF16].map(Into::into).into();
        for format in [WeightFormat::Fp8, WeightFormat::Int8, WeightFormat::Int4] {
            specs.extend([None, Some(80), Some(12)].map(|period| WeightSpec { format, period }));
        }
        for (inputs, period) in [(128, None), (96, Some(96)), (24, Some(12))] {
            let scales = Scales::every(inputs, period).unwrap();
            for format in [scales, scales.from_group(1), Scales::OUTPUT].map(WeightFormat::Scaled) {
                specs.push(WeightSpec { format, period });
            }
        }
        specs
    }

    /// Some numbers, with scales where the spec says so.
    fn source(n: usize, k: usize, spec: WeightSpec) -> Box<dyn MatrixSource> {
        match spec.format.scales() {
            Some(_) => Box::new(ScaledMatrix::of(&Numbers(n, k), spec)),
            None => Box::new(Numbers(n, k)),
        }
    }

    #[test]
    fn a_row_comes_back_as_the_reference_widens_it() {
        let pool = Pool::new(2, None, false);
        for isa in Isa::available() {
            for spec in specs() {
                for (n, k) in [(1, 1), (16, 3), (17, 513), (40, 1030), (3, 0), (0, 5)] {
                    let source = &*source(n, k, spec);
                    let weight = CpuWeight::pack(source, spec, &pool, isa);
                    assert!(weight.bytes() >= spec.bytes(n.next_multiple_of(16), k));
                    let expected = Reference.pack(source, spec);
                    let mut found = vec![0.0; k];
                    for row in 0..n {
                        weight.read_row(row, &mut found);
                        let expected = Reference.embed(&expected, &[row as u32]).data;
                        assert!(
                            found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits()),
                            "row {row} of [{n}, {k}] as {spec:?} on {isa}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn panels_and_groups_can_be_borrowed_from_another_weight() {
        let pool = Pool::new(1, None, false);
        for spec in specs().into_iter().filter(|spec| spec.format.is_grouped()) {
            let whole = CpuWeight::pack(&*source(64, 960, spec), spec, &pool, Isa::Portable);
            let layout = PanelLayout::new(spec, 960);
            let memory = whole.runs[0].memory().clone();
            // Outputs 16..48 and 0..16, inputs 480..960.
            let groups = spec.groups(960);
            let group = groups.of(0..480).end;
            let first_of_run = [group, groups.scale(group)];
            let runs = [(1, 2), (0, 1)].map(|(first, panels)| {
                PanelRun::new(memory.clone(), first * layout.stride, layout, first_of_run, panels)
            });
            let part = CpuWeight::from_runs(runs.into(), 48, 480, spec.from_input(480, 960));
            let (mut all, mut found) = (vec![0.0; 960], vec![0.0; 480]);
            for (row, of) in [(0, 16), (31, 47), (32, 0), (47, 15)] {
                whole.read_row(of, &mut all);
                part.read_row(row, &mut found);
                assert_eq!(found, all[480..], "{spec:?}");
            }
        }
    }
}
