//! How inputs of a layer lie in the tiles that tensor cores take.

use std::ops::Range;

use ::tensor::{DType, GROUP, Scales, WeightFormat, WeightSpec};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 16;

/// How a format's tiles are made. A tile of a weight is [`PANEL`] outputs by [`Layout::width`] inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub format: WeightFormat,
    pub k: usize,
    /// Inputs after which tiles begin anew.
    pub period: usize,
    /// Inputs of a tile.
    pub width: usize,
}

impl Layout {
    /// # Panics
    /// For f32, which tensor cores don't take.
    pub fn new(spec: WeightSpec, k: usize) -> Self {
        let width = match spec.format {
            WeightFormat::Float(DType::F32) => panic!("weights in f32 have no tiles"),
            WeightFormat::Float(_) => 16,
            WeightFormat::Fp8 | WeightFormat::Scaled(_) | WeightFormat::Int8 | WeightFormat::Int4 => GROUP,
        };
        let period = spec.period.filter(|period| period % width > 0 && *period < k).unwrap_or(k.max(1));
        Layout { format: spec.format, k, period, width }
    }

    /// Number of tiles of a panel.
    pub fn tiles(self) -> usize {
        self.before(self.k)
    }

    /// The tiles of some inputs, where a tile begins and one ends.
    pub fn tiles_of(self, inputs: Range<usize>) -> Range<usize> {
        if inputs.is_empty() { 0..0 } else { self.before(inputs.start)..self.before(inputs.end) }
    }

    fn before(self, input: usize) -> usize {
        let per_period = self.period.div_ceil(self.width);
        input / self.period * per_period + (input % self.period).div_ceil(self.width)
    }

    /// Bytes of a tile's elements.
    pub fn tile_bytes(self) -> usize {
        match self.format {
            WeightFormat::Float(_) => 2 * PANEL * self.width,
            WeightFormat::Fp8 | WeightFormat::Scaled(_) | WeightFormat::Int8 => PANEL * self.width,
            WeightFormat::Int4 => PANEL * self.width / 2,
        }
    }

    /// Bytes of a tile's scales and zero points. In memory tiles may share scales.
    pub fn group_bytes(self) -> [usize; 2] {
        match self.format {
            WeightFormat::Float(_) => [0, 0],
            WeightFormat::Fp8 => [PANEL, 0],
            WeightFormat::Scaled(_) => [Scales::BYTES * PANEL, 0],
            WeightFormat::Int8 => [2 * PANEL, 0],
            WeightFormat::Int4 => [2 * PANEL, PANEL],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_begin_anew_at_each_period() {
        let layout = Layout::new(WeightSpec { format: DType::BF16.into(), period: Some(20) }, 50);
        assert_eq!(layout.tiles(), 5);
        assert_eq!(layout.tiles_of(20..40), 2..4);
        assert_eq!(layout.tiles_of(40..50), 4..5);
        assert_eq!(Layout::new(DType::BF16.into(), 0).tiles(), 0);
    }
}
