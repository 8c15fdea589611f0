//! One file per kernel. Each is generic over the vector and splits itself over the threads of a [`Exec`].

pub(crate) mod add_norm;
pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod elementwise;
pub(crate) mod grouped;
pub(crate) mod head_norm_rope;
pub(crate) mod linear;
pub(crate) mod logits;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod quant;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod tile;

use std::rc::Rc;

use crate::buffer::{Buffer, Plain, Purpose, Recycler};
use crate::pool::Pool;
use crate::simd::Isa;

/// What kernels run on.
pub(crate) struct Exec {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    pub(crate) recycler: Rc<Recycler>,
}

impl Exec {
    /// Room for one operation, of unspecified content.
    pub(crate) fn scratch<T: Plain>(&self, len: usize) -> Buffer<T> {
        self.recycler.take(len, Purpose::Scratch)
    }
}

/// Units of `unit_cost` elementary steps each that a thread gets at least, so that waking it pays.
pub(crate) fn grain(unit_cost: usize) -> usize {
    const WORTH_A_THREAD: usize = 1 << 14;
    WORTH_A_THREAD.div_ceil(unit_cost.max(1))
}
