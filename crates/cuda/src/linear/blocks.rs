//! Which kernel computes a layer whose weights lie in tiles, and in how many blocks.

use ::tensor::{DType, WeightFormat};

use super::deal::{Deal, WARPS};
use super::tiles::{Layout, PANEL};
use crate::driver::{Grid, Kernel};
use crate::tensor::Queue;

/// Panels of a warp of `linear.cuh`.
const PANELS: usize = 2;

/// Up to so many rows whole numbers without a tree are summed by `ordered.cuh`, which reads weights for each 8 rows.
const ORDERED_ROWS: usize = 16;
/// Up to so many rows a layer is limited by its weights' bytes.
pub(super) const MANY_ROWS: usize = 64;
/// Rows of a block of `gemm.cuh`.
pub(super) const GEMM_ROWS: usize = 128;

/// A kernel and its blocks.
pub(super) struct Blocks {
    pub kernel: Kernel,
    pub grid: Grid,
}

/// A format's kernels.
pub(super) struct Kernels {
    /// Of `linear.cuh`, for 8, 16 and 32 rows of a block.
    few: [Kernel; 3],
    /// Of `gemm.cuh`, for 128 outputs of a block, and for 256; experts have blocks of 128.
    pub many: Kernel,
    pub wide: Option<Kernel>,
    /// Of `ordered.cuh`, of whole numbers.
    ordered: Option<Kernel>,
}

impl Blocks {
    /// Some rows: warps of a block share the inputs. Of experts there is a layer of blocks for each.
    pub fn few(
        queue: &Queue,
        layout: Layout,
        n: usize,
        rows: usize,
        deal: &Deal,
        experts: Option<usize>,
    ) -> Self {
        // As many warps as a block can have, as long as all multiprocessors have blocks.
        let pairs = n.div_ceil(PANEL * PANELS) * experts.unwrap_or(1);
        let wanted = 2 * queue.0.driver.multiprocessors();
        let mut teams = WARPS / deal.sharing;
        while teams > 1 && pairs / teams < wanted {
            teams /= 2;
        }
        let shared = |groups: usize| 4 * teams * deal.num_left() * PANEL * PANELS * 8 * groups;
        // As few as hold all rows; fewer, if what warps leave is too much for a block's memory.
        let fits = |groups: usize| rows > 8 * groups / 2 && shared(groups) <= queue.0.driver.shared_bytes();
        let groups = [4, 2].into_iter().find(|&groups| fits(groups)).unwrap_or(1);
        let threads = 32 * teams * deal.sharing;
        let grid = Grid::plane(n.div_ceil(PANEL * PANELS * teams), rows.div_ceil(8 * groups), threads);
        let grid = in_layers(grid.with_shared(shared(groups)), experts.unwrap_or(1));
        Blocks { kernel: kernels_of(layout.format, experts.is_some()).few[groups.ilog2() as usize], grid }
    }

    /// Few rows of whole numbers without a tree. None for others.
    pub fn ordered(layout: Layout, n: usize, rows: usize, experts: Option<usize>) -> Option<Self> {
        let kernel = kernels_of(layout.format, experts.is_some()).ordered.filter(|_| rows <= ORDERED_ROWS)?;
        let grid = Grid::plane(n.div_ceil(PANEL * PANELS), rows.div_ceil(8), 256);
        Some(Blocks { kernel, grid: in_layers(grid, experts.unwrap_or(1)) })
    }
}

/// The files of a format's kernels; none of f32, which has one for all.
pub(super) fn files_of(format: WeightFormat) -> Vec<&'static str> {
    if format == WeightFormat::Float(DType::F32) {
        return Vec::new();
    }
    let Kernels { few: [few, ..], many, ordered, .. } = kernels_of(format, false);
    [few, many].into_iter().chain(ordered).map(|kernel| kernel.file).collect()
}

/// One layer of a grid for each expert.
pub(super) fn in_layers(grid: Grid, experts: usize) -> Grid {
    let [x, y, _] = grid.blocks;
    Grid { blocks: [x, y, experts as u32], ..grid }
}

pub(super) fn kernels_of(format: WeightFormat, of_experts: bool) -> Kernels {
    macro_rules! kernels {
        ($format:literal, $of:literal) => {{
            const fn few(name: &'static str) -> Kernel {
                Kernel { file: concat!("linear_", $format), name }
            }
            Kernels {
                few: [
                    few(concat!("linear_", $format, "_8", $of)),
                    few(concat!("linear_", $format, "_16", $of)),
                    few(concat!("linear_", $format, "_32", $of)),
                ],
                many: Kernel { file: concat!("gemm_", $format), name: concat!("gemm_", $format, $of) },
                wide: (!of_experts).then_some(Kernel {
                    file: concat!("gemm_", $format),
                    name: concat!("gemm_", $format, "_wide"),
                }),
                ordered: matches!(format, WeightFormat::Int8 | WeightFormat::Int4).then_some(Kernel {
                    file: concat!("ordered_", $format),
                    name: concat!("ordered_", $format, $of),
                }),
            }
        }};
        ($format:literal) => {
            if of_experts { kernels!($format, "_experts") } else { kernels!($format, "") }
        };
    }
    match format {
        WeightFormat::Float(DType::F32) => unreachable!("weights in f32 have no tiles"),
        WeightFormat::Float(DType::BF16) => kernels!("bfloat"),
        WeightFormat::Float(DType::F16) => kernels!("half"),
        WeightFormat::Fp8 => kernels!("fp8"),
        WeightFormat::Scaled(_) => kernels!("scaled"),
        WeightFormat::Int8 => kernels!("int8"),
        WeightFormat::Int4 => kernels!("int4"),
    }
}
