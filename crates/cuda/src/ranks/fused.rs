//! All-reduces that end in the residual stream's next norm (`kernels/all_reduce_norm.cu`).

use collective::ReducePlan;
use tensor::RowNorm;

use super::finish::Tree;
use super::peers::{ALL_REDUCE, Peers, most_nodes};
use crate::driver::{Arguments, Grid, Kernel};
use crate::rows::norm_of;
use crate::tensor::{CudaTensor, Queue};

/// Threads of a block, which has a row.
const THREADS: usize = 512;

impl Peers {
    /// Whether one kernel is to do both: there is a block for each row, and one shot is the faster way.
    pub fn fuses(&self, x: &CudaTensor, plan: &ReducePlan) -> bool {
        let (rows, numbers) = (x.filled_rows(), x.filled_len() * most_nodes(plan));
        let has_room = numbers <= self.slot && 4 * x.cols <= self.shared_bytes / 2;
        has_room && rows > 0 && rows <= self.blocks && 4 * numbers <= self.one_shot_bytes.get()
    }

    /// `x += post(sum)`, or `x += sum`; gives `norm(x)`.
    pub fn all_reduce_add_norm(
        &self,
        queue: &Queue,
        tree: &Tree,
        partial: &CudaTensor,
        own_nodes: usize,
        x: &CudaTensor,
        [post, norm]: [Option<RowNorm<'_, CudaTensor>>; 2],
    ) -> CudaTensor {
        let (out, rows) = (queue.tensor_like(x, x.cols), x.filled_rows());
        let arguments = Arguments::new().address(out.at()).address(self.group()).count(ALL_REDUCE);
        let arguments = arguments.address(partial.at()).count(own_nodes).count(rows).count(x.cols);
        let arguments = arguments.address(x.at()).address(tree.at()).count(tree.num_items);
        let arguments = norm_of(norm_of(arguments, norm, x.cols), post, x.cols);
        let name = if x.cols.is_multiple_of(4) { "one_shot_norm_fours" } else { "one_shot_norm_ones" };
        let threads = x.cols.next_multiple_of(32).clamp(32, THREADS);
        let grid = Grid::flat(rows, threads).with_shared(4 * x.cols);
        self.launch_in(queue, Kernel { file: "all_reduce_norm", name }, grid, arguments);
        out
    }
}
