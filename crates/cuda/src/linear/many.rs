//! Blocks of `gemm.cuh`, and where their sums wait.

use ::tensor::{GROUP, WeightFormat};

use super::blocks::{GEMM_ROWS, Kernels, kernels_of};
use super::deal::Deal;
use super::tiles::{Layout, PANEL};
use crate::driver::{Arguments, Grid, Kernel};
use crate::memory::Block;
use crate::tensor::Queue;

/// Stages in a block's shared memory.
const STAGES: usize = 4;
/// What kernels are told instead of a place in shared memory.
const NOWHERE: usize = u32::MAX as usize;

/// A kernel for many rows, and its blocks.
pub(super) struct Many {
    pub kernel: Kernel,
    pub grid: Grid,
    /// Where sums wait in a block's shared memory.
    near: usize,
    /// Slots of each block elsewhere.
    slots: usize,
    far: Option<Block>,
}

/// A size of blocks.
#[derive(Clone, Copy)]
struct Size {
    outputs: usize,
    /// Blocks that a multiprocessor has registers for.
    at_once: usize,
}

const SMALL: Size = Size { outputs: 128, at_once: 2 };
const WIDE: Size = Size { outputs: 256, at_once: 1 };

impl Size {
    /// Each warp has 64 outputs and 64 rows.
    fn threads(self) -> usize {
        32 * self.outputs / 64 * GEMM_ROWS / 64
    }

    /// Sums of a block.
    fn slot_bytes(self) -> usize {
        4 * self.outputs * GEMM_ROWS
    }

    /// Shared memory of all stages: some tiles of each panel and of each group of rows.
    fn stages_bytes(self, layout: Layout) -> usize {
        // Elements, and scales and zero points or sums, of 8 rows of activations.
        let (tiles, right) = match layout.format {
            WeightFormat::Float(_) => (2, 8 * 2 * layout.width),
            WeightFormat::Fp8 | WeightFormat::Scaled(_) => (1, 8 * 2 * layout.width),
            WeightFormat::Int8 => (2, 8 * (GROUP + 4)),
            WeightFormat::Int4 => (2, 8 * (GROUP + 4 + 4)),
        };
        let left = layout.tile_bytes() + layout.group_bytes().iter().sum::<usize>();
        STAGES * tiles * (self.outputs / PANEL * left + GEMM_ROWS / 8 * right)
    }
}

impl Many {
    /// Many rows, in so many blocks of rows.
    pub fn new(
        queue: &Queue,
        layout: Layout,
        n: usize,
        row_blocks: usize,
        deal: &Deal,
        of_experts: bool,
    ) -> Self {
        let (processors, most) = (queue.0.driver.multiprocessors(), queue.0.driver.shared_bytes());
        let parts = |size: Size| n.div_ceil(size.outputs) * row_blocks;
        let Kernels { many, wide, .. } = kernels_of(layout.format, of_experts);
        // Large blocks bring fewer bytes for each product, but leave multiprocessors without work where there are few.
        let is_wide = parts(WIDE) >= 2 * processors && WIDE.stages_bytes(layout) <= most;
        let (kernel, size) = match wide.filter(|_| is_wide) {
            Some(wide) => (wide, WIDE),
            None => (many, SMALL),
        };
        let (stages, slot) = (size.stages_bytes(layout), size.slot_bytes());
        // A program of one item writes its sums when stages are read no more.
        let (near, shared) = match deal.num_items() {
            1 if stages.max(slot) <= most => (0, stages.max(slot)),
            _ if size.at_once * (stages + slot) <= most => (stages, stages + slot),
            _ => (NOWHERE, stages),
        };
        // What is left goes through a slot too.
        let slots = deal.waiting.max(1) - usize::from(near != NOWHERE);
        let blocks = if slots > 0 { parts(size).min(size.at_once * processors) } else { parts(size) };
        let far = (slots > 0).then(|| queue.block(blocks * slots * slot));
        Many { kernel, grid: Grid::flat(blocks, size.threads()).with_shared(shared), near, slots, far }
    }

    /// Where sums wait, as kernels are told it.
    pub fn slots(&self, arguments: Arguments) -> Arguments {
        arguments.count(self.near).address(self.far.as_ref().map_or(0, |far| far.at)).count(self.slots)
    }
}
