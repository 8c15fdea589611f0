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
/// Rows of a block of `linear_exact.cu`.
pub(super) const EXACT_ROWS: usize = 8;

/// A kernel and its blocks.
pub(super) struct Blocks {
    pub kernel: Kernel,
    pub grid: Grid,
    /// Of a block.
    pub rows: usize,
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
    /// Some rows, of one weight or of those of so many experts together: warps of a block share the inputs.
    pub fn few(
        queue: &Queue,
        layout: Layout,
        n: usize,
        rows: usize,
        deal: &Deal,
        experts: Option<usize>,
    ) -> Self {
        // As many warps as a block can have, as long as all multiprocessors have blocks.
        let pairs = n.div_ceil(PANEL * PANELS) * experts.map_or(1, |experts| experts.min(rows));
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
        let kernel = kernels_of(layout.format, experts.is_some()).few[groups.ilog2() as usize];
        let down = blocks_down(rows, experts, 8 * groups);
        let grid = Grid::plane(n.div_ceil(PANEL * PANELS * teams), down, threads).with_shared(shared(groups));
        Blocks { kernel, grid, rows: 8 * groups }
    }

    /// Few rows of whole numbers without a tree. None for others.
    pub fn ordered(layout: Layout, n: usize, rows: usize, experts: Option<usize>) -> Option<Self> {
        let kernel = kernels_of(layout.format, experts.is_some()).ordered.filter(|_| rows <= ORDERED_ROWS)?;
        let grid = Grid::plane(n.div_ceil(PANEL * PANELS), blocks_down(rows, experts, 8), 256);
        Some(Blocks { kernel, grid, rows: 8 })
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

/// As many groups of so many rows as rows of experts can need together, wherever they are: one for each expert that has any, and
/// another for each `of_group` rows more.
pub(super) fn most_groups(rows: usize, experts: usize, of_group: usize) -> usize {
    let beginning = experts.min(rows);
    beginning + (rows - beginning) / of_group
}

/// Blocks of so many rows.
fn blocks_down(rows: usize, experts: Option<usize>, of_block: usize) -> usize {
    experts.map_or(rows.div_ceil(of_block), |experts| most_groups(rows, experts, of_block))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// However the rows fall to experts there are no more groups, and in one case there are as many.
    #[test]
    fn as_many_groups_as_rows_of_experts_can_need() {
        fn most(rows: usize, experts: usize, of_group: usize) -> usize {
            match experts {
                0 => 0,
                1 => rows.div_ceil(of_group),
                _ => (0..=rows)
                    .map(|own| own.div_ceil(of_group) + most(rows - own, experts - 1, of_group))
                    .max()
                    .unwrap_or(0),
            }
        }
        for (rows, experts) in (0..20).flat_map(|rows| (1..5).map(move |experts| (rows, experts))) {
            for of_group in [1, 3, 8] {
                let expected = most(rows, experts, of_group);
                assert_eq!(most_groups(rows, experts, of_group), expected, "{rows} rows, {experts} experts");
            }
        }
    }
}
