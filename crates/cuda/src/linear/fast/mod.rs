//! Layers in whatever order is the fastest (`--reduction fast`): up to 8 rows on CUDA cores, very many by NVIDIA's library, and by the
//! canonical kernels what lies between and where there is no library.

mod cublaslt;
mod gemv;
mod library;
mod rate;

use ::tensor::{DType, WeightFormat};

pub(crate) use self::rate::measure as library_rate;

use self::library::Library;
use super::plan::Nodes;
use super::tiles::Layout;
use super::{CudaWeight, Layer};
use crate::driver::Fault;
use crate::tensor::Queue;

/// From so many rows on unpacking a weight costs less than the library saves: the weight is read once more, and a GEMM of some
/// hundred rows takes about as long as reading it. Not measured.
const LIBRARY_ROWS: usize = 512;

/// What a device has that is allowed to choose.
pub(crate) struct Fast {
    /// Or why it is not there.
    library: Result<Library, Fault>,
}

impl Fast {
    /// With the library, if it is there and the driver can give it work.
    pub fn new(queue: &Queue) -> Self {
        Fast { library: Library::load(queue) }
    }

    /// Why the library does not have the layers of many rows whose weights are of this format, if it could.
    pub fn missing_library(&self, format: WeightFormat) -> Option<&Fault> {
        self.library.as_ref().err().filter(|_| is_wide(format))
    }

    /// Files of kernels that it needs besides the canonical ones.
    pub fn files_of(&self, format: WeightFormat) -> Option<&'static str> {
        gemv::file_of(format)
    }

    /// Whether a layer of so many rows is the library's.
    pub fn takes_library(&self, w: &CudaWeight, rows: usize) -> bool {
        rows >= LIBRARY_ROWS && self.library.is_ok() && is_wide(w.spec.format) && lies_straight(w)
    }

    /// Computes a layer if there is a faster way than the canonical one.
    pub(super) fn compute(&self, layer: &Layer<'_>, nodes: &Nodes) -> bool {
        if gemv::takes(layer) {
            gemv::compute(layer, nodes);
            return true;
        }
        match &self.library {
            // What the library gives are the halves that belong together, each by itself.
            Ok(library) if layer.gate.is_none() && self.takes_library(layer.w, layer.rows) => {
                library.compute(layer, nodes)
            }
            _ => false,
        }
    }
}

/// Whether the library is better at many rows. Groups of whole numbers are exact on tensor cores as they are. fp8 is unpacked to bf16
/// unless an output has one scale: a power of two per 32 inputs is a scale that the library takes on Blackwell only, and then of
/// activations too.
fn is_wide(format: WeightFormat) -> bool {
    !matches!(format, WeightFormat::Float(DType::F32) | WeightFormat::Int8 | WeightFormat::Int4)
}

/// Whether tiles follow each other without gaps, so that an input's place is a function of its number alone.
fn lies_straight(w: &CudaWeight) -> bool {
    w.k > 0 && Layout::new(w.spec, w.k).period == w.k
}
