//! Weights of checkpoints in e4m3: which inputs share a float32, and where elements and scales come from.

use std::num::NonZeroUsize;
use std::ops::Range;

use crate::{GROUP, MatrixSource, StoredElements, WeightSpec, fp8};

/// Which groups of inputs ([`crate::Groups`]) share a scale, of every output: as many as follow each other, counted from the
/// first group of the whole weight. A device keeps, for each output, its scales one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scales {
    /// `None`: all groups of an output share one.
    every: Option<NonZeroUsize>,
    /// Groups that share the first scale and lie before the first group: a weight may begin within what shares one, where it
    /// is a rank's part of another.
    before: usize,
}

impl Scales {
    /// One scale per output.
    pub const OUTPUT: Scales = Scales { every: None, before: 0 };
    /// Bytes of a scale.
    pub const BYTES: usize = 4;

    /// One scale per output and `inputs` inputs, of a weight whose groups begin anew at each `period`
    /// ([`WeightSpec::period`]). `None` if a group would have inputs of two scales.
    pub fn every(inputs: usize, period: Option<usize>) -> Option<Self> {
        let group = match period {
            Some(period) if period < GROUP => period,
            Some(period) if period % GROUP > 0 => return None,
            _ => GROUP,
        };
        if inputs.is_multiple_of(group) { Scales::of_groups(inputs / group) } else { None }
    }

    /// One scale per output and so many groups; `None` if that is none.
    pub fn of_groups(groups: usize) -> Option<Self> {
        NonZeroUsize::new(groups).map(|every| Scales { every: Some(every), before: 0 })
    }

    /// Those of the groups from `group` on.
    #[must_use]
    pub fn from_group(self, group: usize) -> Self {
        let before = self.every.map_or(0, |every| (self.before + group) % every);
        Scales { before, ..self }
    }

    /// Groups that share a scale; `None`: all of an output.
    pub fn groups(self) -> Option<usize> {
        self.every.map(NonZeroUsize::get)
    }

    /// Groups that share the first scale and lie before the first group.
    pub fn groups_before(self) -> usize {
        self.before
    }

    /// Which of an output's scales is that of a group.
    #[inline]
    pub fn of(self, group: usize) -> usize {
        self.every.map_or(0, |every| (self.before + group) / every)
    }

    /// Scales of an output with so many groups.
    pub fn count(self, groups: usize) -> usize {
        groups.checked_sub(1).map_or(0, |last| self.of(last) + 1)
    }

    /// The first group that has a scale; beyond all, if there are not so many scales.
    pub fn first_group(self, scale: usize) -> usize {
        match self.every {
            Some(every) => (scale * every.get()).saturating_sub(self.before),
            None if scale == 0 => 0,
            None => usize::MAX,
        }
    }
}

/// A matrix in memory, as e4m3 with float32 scales.
pub struct ScaledMatrix {
    rows: usize,
    cols: usize,
    /// Row-major.
    elements: Vec<u8>,
    /// Row-major, one per scale of a row.
    scales: Vec<f32>,
    spec: WeightSpec,
}

impl ScaledMatrix {
    /// Rounds a matrix to elements that reach 448 in each scale's inputs.
    ///
    /// # Panics
    /// If the spec's format is another.
    pub fn of(source: &dyn MatrixSource, spec: WeightSpec) -> Self {
        assert!(spec.format.scales().is_some(), "{} has no float32 scales", spec.format);
        let (rows, cols) = (source.rows(), source.cols());
        let mut matrix = ScaledMatrix { rows, cols, elements: Vec::new(), scales: Vec::new(), spec };
        let mut row = vec![0.0; cols];
        for index in 0..rows {
            source.read(index, 0..cols, &mut row);
            for inputs in spec.scale_inputs(cols) {
                let largest = row[inputs.clone()].iter().fold(0f32, |most, w| most.max(w.abs()));
                let scale = largest / fp8::MAX;
                matrix.scales.push(scale);
                let element = |w: &f32| if scale > 0.0 { fp8::from_f32(w / scale) } else { 0 };
                matrix.elements.extend(row[inputs].iter().map(element));
            }
        }
        matrix
    }
}

impl MatrixSource for ScaledMatrix {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let elements = &self.elements[row * self.cols..][cols.clone()];
        for ((col, element), out) in cols.zip(elements).zip(out) {
            *out = fp8::to_f32(*element) * self.scale(row, col);
        }
    }
    fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        out.copy_from_slice(&self.elements[row * self.cols..][cols]);
    }
    fn scale(&self, row: usize, col: usize) -> f32 {
        let inputs = self.spec.scale_inputs(self.cols);
        let index = inputs.iter().position(|inputs| inputs.contains(&col)).expect("a column of the matrix");
        self.scales[row * inputs.len() + index]
    }
    fn stored_elements(&self, rows: Range<usize>, cols: Range<usize>) -> Option<StoredElements<'_>> {
        let at = |row: usize, col: usize| row * self.cols + col;
        let own = if rows.is_empty() { 0..0 } else { at(rows.start, cols.start)..at(rows.end - 1, cols.end) };
        Some(StoredElements { bytes: &self.elements[own], stride: self.cols })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightFormat;

    #[test]
    fn a_part_of_a_weight_has_the_scales_of_the_whole() {
        for (every, period, k) in
            [(128, None, 700), (32, Some(8), 104), (64, Some(96), 960), (96, None, 97), (32, Some(16), 48)]
        {
            let scales = Scales::every(every, period).expect("groups have one scale each");
            let whole = WeightSpec { format: WeightFormat::Scaled(scales), period };
            let all = whole.scale_inputs(k);
            let expected: Vec<_> = (0..k).step_by(every).map(|at| at..k.min(at + every)).collect();
            assert_eq!(all, expected);
            for first in (0..=k).step_by(period.unwrap_or(GROUP)) {
                let parts = whole.from_input(first, k).scale_inputs(k - first);
                let cut = |inputs: &Range<usize>| inputs.start.max(first) - first..inputs.end - first;
                let expected: Vec<_> = all.iter().filter(|i| i.end > first).map(cut).collect();
                assert_eq!(parts, expected, "{every} {period:?} from {first}");
                // Parts of parts are parts.
                let later = (first + 3 * period.unwrap_or(GROUP)).min(k / GROUP * GROUP).max(first);
                let twice = whole.from_input(first, k).from_input(later - first, k - first);
                assert_eq!(twice, whole.from_input(later, k));
            }
        }
    }

    #[test]
    fn scales_that_cut_groups_are_known() {
        assert_eq!(Scales::every(128, Some(80)), None);
        assert_eq!(Scales::every(32, Some(12)), None);
        assert_eq!(Scales::every(100, None), None);
        assert_eq!(Scales::every(0, None), None);
        assert!(Scales::every(128, Some(64)).is_some());
        assert!(Scales::every(128, Some(96)).is_some());
    }

    #[test]
    fn one_scale_per_output_is_four_bytes() {
        let of = |scales| WeightSpec::from(WeightFormat::Scaled(scales)).bytes(3, 256);
        assert_eq!(of(Scales::OUTPUT), 3 * (256 + 4));
        assert_eq!(of(Scales::every(128, None).unwrap()), 3 * (256 + 8));
    }
}
