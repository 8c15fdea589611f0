//! Activations as tensor cores take them: rounded, or quantised, in tiles of 8 rows.

use ::tensor::{DType, WeightFormat};

use super::experts::Places;
use super::tiles::Layout;
use crate::driver::{Address, Arguments, Kernel};
use crate::memory::Block;
use crate::tensor::{CudaTensor, Queue};

/// Rows of a layer's inputs in groups of 8.
pub(super) struct Inputs {
    elements: Block,
    scales: Block,
    sums: Block,
}

impl Inputs {
    /// Of the first `rows` of `x`, or of those that experts work on.
    pub fn new(queue: &Queue, x: &CudaTensor, rows: usize, layout: Layout, places: Option<&Places>) -> Self {
        let groups = places.map_or(rows.div_ceil(8), Places::most_groups);
        let tiles = layout.tiles();
        let source = |arguments: Arguments| match places {
            Some(places) => places.source(arguments),
            None => arguments.count(0).address(0).address(0).address(0),
        };
        let x =
            |arguments: Arguments| arguments.address(x.at()).count(rows).count(layout.k).count(layout.period);
        let (kernel, threads, inputs, arguments) = match layout.format {
            WeightFormat::Int8 | WeightFormat::Int4 => {
                let threads = groups * tiles * 8;
                let [elements, scales, sums] = [layout.width, 4, 4].map(|bytes| queue.block(threads * bytes));
                let to = Arguments::new().address(elements.at).address(scales.at).address(sums.at);
                ("linear_quantize", threads, Inputs { elements, scales, sums }, x(to).count(tiles))
            }
            WeightFormat::Float(_) | WeightFormat::Fp8 | WeightFormat::Scaled(_) => {
                // Tiles of 16 inputs, whatever those of the weights are.
                let small = tiles * layout.width / 16;
                let threads = groups * small * 32;
                let [elements, scales, sums] = [threads * 8, 0, 0].map(|bytes| queue.block(bytes));
                let is_half = layout.format == WeightFormat::Float(DType::F16);
                let arguments = x(Arguments::new().address(elements.at)).count(layout.width).count(small);
                let arguments = arguments.count(usize::from(is_half));
                ("linear_round", threads, Inputs { elements, scales, sums }, arguments)
            }
        };
        queue.launch(
            Kernel { file: "linear_inputs", name: kernel },
            queue.over_each(threads),
            source(arguments),
        );
        inputs
    }

    /// Elements, scales and sums.
    pub fn addresses(&self) -> [Address; 3] {
        [self.elements.at, self.scales.at, self.sums.at]
    }
}
