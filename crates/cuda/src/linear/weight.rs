//! Weights as kernels take them.

use std::cell::RefCell;
use std::rc::Rc;

use ::tensor::{MatrixSource, Program, WeightFormat, WeightSpec};

use super::pack::{Packed, pack, pack_scaled};
use super::plan::{Plan, Plans};
use crate::driver::Address;
use crate::memory::Block;
use crate::tensor::Queue;

/// A packed weight `[n, k]`.
pub struct CudaWeight {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) spec: WeightSpec,
    /// Elements in tiles, `[panel][tile]`; in f32 `[k][n]`.
    pub(super) elements: Block,
    /// `[panel][tile][16]`, of formats with groups. Where tiles share scales `[scale][panel][16]`, and instead of zero points which
    /// of these each tile has.
    pub(super) scales: Block,
    pub(super) zeros: Block,
    bytes: usize,
    plans: Plans,
    /// What [`CudaWeight::experts`] gave last, and of what.
    experts: RefCell<Option<(Vec<Address>, Rc<Block>)>>,
}

impl CudaWeight {
    pub(crate) fn pack(queue: &Queue, source: &dyn MatrixSource, spec: WeightSpec) -> Self {
        let Packed { elements, scales, zeros, bytes } = match spec.format {
            WeightFormat::Scaled(scales) => pack_scaled(queue, source, spec, scales),
            _ => pack(queue, source, spec),
        };
        let (n, k) = (source.rows(), source.cols());
        let (plans, experts) = (Plans::default(), RefCell::default());
        CudaWeight { n, k, spec, elements, scales, zeros, bytes, plans, experts }
    }

    /// Bytes, padding included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a kernel is told of a program; without one, its inputs belong to no tree.
    pub(super) fn plan(&self, queue: &Queue, program: Option<&Program>) -> Rc<Plan> {
        self.plans.get(queue, self.spec, self.k, program)
    }

    /// Where the elements, scales and zero points of experts' weights lie, of which this is the first.
    pub(super) fn experts(&self, queue: &Queue, weights: &[CudaWeight]) -> Rc<Block> {
        let addresses: Vec<Address> =
            weights.iter().flat_map(|w| [w.elements.at, w.scales.at, w.zeros.at]).collect();
        let mut last = self.experts.borrow_mut();
        if let Some((of, block)) = &*last
            && *of == addresses
        {
            return block.clone();
        }
        let bytes: Vec<u8> = addresses.iter().flat_map(|at| at.to_le_bytes()).collect();
        let block = Rc::new(queue.uploaded(&bytes));
        *last = queue.0.is_sound().then(|| (addresses, block.clone()));
        block
    }
}
