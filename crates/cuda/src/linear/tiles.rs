//! How inputs of a layer lie in the tiles that tensor cores take.

use std::ops::Range;

use ::tensor::{DType, GROUP, WeightFormat, WeightSpec};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 16;
/// Lanes of a warp.
const LANES: usize = 32;

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

/// Where an element of a tile is: of which output, of which input, and which half of its byte, in int4.
pub(crate) type Place = (usize, usize);

impl Layout {
    /// # Panics
    /// For f32, which tensor cores don't take.
    pub fn new(spec: WeightSpec, k: usize) -> Self {
        let width = match spec.format {
            WeightFormat::Float(DType::F32) => panic!("weights in f32 have no tiles"),
            WeightFormat::Float(_) => 16,
            WeightFormat::Fp8 | WeightFormat::Int8 | WeightFormat::Int4 => GROUP,
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

    /// The inputs of a tile; at most [`Layout::width`].
    pub fn inputs(self, tile: usize) -> Range<usize> {
        let per_period = self.period.div_ceil(self.width);
        let start = tile / per_period * self.period;
        let first = start + tile % per_period * self.width;
        first..(first + self.width).min(start + self.period).min(self.k)
    }

    fn before(self, input: usize) -> usize {
        let per_period = self.period.div_ceil(self.width);
        input / self.period * per_period + (input % self.period).div_ceil(self.width)
    }

    /// Bytes of a tile's elements.
    pub fn tile_bytes(self) -> usize {
        match self.format {
            WeightFormat::Float(_) => 2 * PANEL * self.width,
            WeightFormat::Fp8 | WeightFormat::Int8 => PANEL * self.width,
            WeightFormat::Int4 => PANEL * self.width / 2,
        }
    }

    /// The place of each element of a tile, in the order in which they lie: those of lane 0, then lane 1, and so on. In int4
    /// each byte has two, the lower half first.
    pub fn places(self) -> Vec<Place> {
        let per_lane = PANEL * self.width / LANES;
        let of_lane = |lane: usize, i: usize| -> Place {
            let (row, column) = (lane / 4, lane % 4);
            match self.format {
                WeightFormat::Float(_) => {
                    let register = i / 2;
                    (row + 8 * (register % 2), 2 * column + i % 2 + 8 * (register / 2))
                }
                WeightFormat::Fp8 => {
                    let (register, byte) = (i / 4, i % 4);
                    let input = 2 * column + byte % 2 + 8 * (byte / 2);
                    (row + 8 * (register % 2), 16 * (register / 2) + input)
                }
                WeightFormat::Int8 => {
                    let register = i / 4;
                    (row + 8 * (register % 2), 16 * (register / 2) + 4 * column + i % 4)
                }
                WeightFormat::Int4 => {
                    let (byte, upper) = (i / 2, i % 2);
                    (row + 8 * (byte / 4), 16 * upper + 4 * column + byte % 4)
                }
            }
        };
        (0..LANES).flat_map(|lane| (0..per_lane).map(move |i| of_lane(lane, i))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_its_own_place() {
        let formats =
            [WeightFormat::Float(DType::BF16), WeightFormat::Fp8, WeightFormat::Int8, WeightFormat::Int4];
        for format in formats {
            let layout = Layout::new(format.into(), 64);
            let mut places = layout.places();
            places.sort_unstable();
            let all: Vec<Place> =
                (0..PANEL).flat_map(|row| (0..layout.width).map(move |input| (row, input))).collect();
            assert_eq!(places, all, "{format}");
        }
    }

    #[test]
    fn tiles_begin_anew_at_each_period() {
        let layout = Layout::new(WeightSpec { format: DType::BF16.into(), period: Some(20) }, 50);
        let inputs: Vec<_> = (0..layout.tiles()).map(|tile| layout.inputs(tile)).collect();
        assert_eq!(inputs, [0..16, 16..20, 20..36, 36..40, 40..50]);
        assert_eq!(layout.tiles_of(20..40), 2..4);
        assert_eq!(Layout::new(DType::BF16.into(), 0).tiles(), 0);
    }
}
