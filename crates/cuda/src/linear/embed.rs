//! Rows of a weight, widened.

use ::tensor::{DType, WeightFormat};

use super::CudaWeight;
use super::tiles::{Layout, PANEL};
use crate::driver::{Address, Arguments, Kernel};
use crate::tensor::{CudaTensor, Queue};

/// `rows [t]`, which lie at `at` on the GPU, filled up with zeros → `[t, k]`
pub(crate) fn embed(queue: &Queue, w: &CudaWeight, rows: &[u32], at: Address) -> CudaTensor {
    assert!(rows.iter().all(|&row| (row as usize) < w.n), "embed: a row beyond the last");
    let y = queue.tensor(rows.len(), w.k);
    let arguments = Arguments::new().address(y.at()).address(at).count(y.filled_rows()).count(w.k);
    let (name, arguments) = match w.spec.format {
        WeightFormat::Float(DType::F32) => ("embed_exact", arguments.address(w.elements.at).count(w.n)),
        format => {
            let layout = Layout::new(w.spec, w.k);
            let number = match format {
                WeightFormat::Float(DType::F16) => 0,
                WeightFormat::Float(_) => 1,
                WeightFormat::Fp8 => 2,
                WeightFormat::Int8 => 3,
                WeightFormat::Int4 => 4,
                WeightFormat::Scaled(_) => 5,
            };
            let arguments = arguments.address(w.elements.at).address(w.scales.at).address(w.zeros.at);
            let arguments = arguments.count(layout.tiles()).count(w.n.div_ceil(PANEL));
            ("embed_tiles", arguments.count(layout.period).count(layout.width).count(number))
        }
    };
    queue.launch(Kernel { file: "embed", name }, queue.over_each(y.filled_len()), arguments);
    y
}
