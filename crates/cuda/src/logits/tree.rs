//! Sums of exponentials by the tree over panels (NUMERICS.md, rule 6): blocks sum subtrees up, the host what is above them.

use tensor::Program;

use super::{THREADS, kernel};
use crate::driver::{Address, Arguments, Fault, Grid};
use crate::memory::Block;
use crate::of_program::OfProgram;
use crate::tensor::{CudaTensor, Queue};

/// Columns of a panel.
const PANEL: usize = 16;
/// The most panels of a block's subtree; as `kernels/logits.cu` has it.
const MOST_PANELS: usize = 512;

/// The largest subtrees of a program over panels that a block sums up, and what is above them.
struct Subtrees {
    /// (first panel, end panel, first level, end level), by panels.
    trees: Vec<[u32; 4]>,
    /// The first merge of each level, and at the end their number. A level's merges don't depend on each other.
    levels: Vec<u32>,
    /// Places of a left and of a right sum, from the subtree's first panel on: the left one's in the low half.
    merges: Vec<u32>,
    /// What is done with the subtrees' sums.
    above: Program,
}

/// A node whose panels a block sums up.
#[derive(Clone, Copy)]
struct Node {
    first: usize,
    end: usize,
    level: usize,
}

impl Subtrees {
    fn of(program: &Program) -> Self {
        // What is on the stack, and nothing for nodes with more panels than a block has.
        let mut stack: Vec<Option<Node>> = Vec::new();
        let mut roots: Vec<Node> = Vec::new();
        // (first panel, level, first panel of the right one)
        let mut inner: Vec<(usize, usize, usize)> = Vec::new();
        let mut merges_at_end = vec![0; program.merges.len() + 1];
        for (panel, &merges) in program.merges.iter().enumerate() {
            stack.push(Some(Node { first: panel, end: panel + 1, level: 0 }));
            for _ in 0..merges {
                let right = stack.pop().expect("a program merges only what it pushed");
                let left = stack.pop().expect("a program merges only what it pushed");
                stack.push(match (left, right) {
                    (Some(left), Some(right)) if right.end - left.first <= MOST_PANELS => {
                        let level = left.level.max(right.level);
                        inner.push((left.first, level, right.first));
                        Some(Node { first: left.first, end: right.end, level: level + 1 })
                    }
                    (left, right) => {
                        roots.extend(left);
                        roots.extend(right);
                        merges_at_end[panel + 1] += 1;
                        None
                    }
                });
            }
        }
        roots.extend(stack.into_iter().flatten());
        roots.sort_by_key(|root| root.first);
        inner.sort_by_key(|&(first, level, _)| (roots.partition_point(|root| root.end <= first), level));

        let mut all = Subtrees {
            trees: Vec::new(),
            levels: Vec::new(),
            merges: Vec::new(),
            above: Program {
                inputs: roots.iter().map(|root| root.first..root.end).collect(),
                merges: roots.iter().map(|root| merges_at_end[root.end]).collect(),
                nodes: program.nodes.clone(),
            },
        };
        let mut inner = inner.into_iter().peekable();
        for root in roots {
            let first_level = all.levels.len();
            for level in 0..root.level {
                all.levels.push(all.merges.len() as u32);
                while let Some((left, _, right)) = inner.next_if(|&(at, of, _)| at < root.end && of == level)
                {
                    all.merges.push((left - root.first) as u32 | ((right - root.first) as u32) << 16);
                }
            }
            let numbers = [root.first, root.end, first_level, all.levels.len()];
            all.trees.push(numbers.map(|number| number as u32));
        }
        all.levels.push(all.merges.len() as u32);
        all
    }
}

/// Subtrees on the GPU.
pub(crate) struct PanelTree {
    above: Program,
    subtrees: usize,
    levels: usize,
    /// Subtrees, levels, merges.
    uploaded: Block,
}

impl PanelTree {
    pub(super) fn new(queue: &Queue, program: &Program) -> Self {
        let Subtrees { trees, levels, merges, above } = Subtrees::of(program);
        let all = trees.as_flattened().iter().chain(&levels).chain(&merges);
        let uploaded = queue.numbers(all.copied());
        PanelTree { above, subtrees: trees.len(), levels: levels.len(), uploaded }
    }
}

/// Sums of `exp(x − max)` over the nodes of a program over panels, `[rows · nodes]`.
pub(crate) fn exp_sums(
    queue: &Queue,
    trees: &OfProgram<PanelTree>,
    x: &CudaTensor,
    max: &[f32],
    program: &Program,
) -> Result<Vec<f32>, Fault> {
    assert_eq!(x.rows, max.len(), "exp_sums: one maximum per row");
    assert_eq!(program.inputs.len(), x.cols.div_ceil(PANEL), "exp_sums: one item per panel of 16 columns");
    let tree = trees.get(queue, program, || PanelTree::new(queue, program));
    let mut bits: Vec<u32> = max.iter().map(|max| max.to_bits()).collect();
    bits.resize(x.filled_rows(), 0);
    let max = queue.numbers(bits);
    let sums = queue.block(tree.bytes_of(x.filled_rows()));
    tree.sum(queue, x, Maxima::Known(max.at), sums.at);
    Ok(tree.finish(&queue.read(sums.at, x.rows * tree.subtrees)?))
}

/// Where the largest logits of rows are on the GPU.
pub(super) enum Maxima {
    /// `[rows]`
    Known(Address),
    /// Of each row in so many parts, as `logits_largest` leaves them.
    Parts(Address, usize),
}

impl PanelTree {
    /// Bytes of the subtrees' sums of so many rows.
    pub(super) fn bytes_of(&self, rows: usize) -> usize {
        4 * rows * self.subtrees
    }

    /// The subtrees' sums of each row, to `sums [rows, subtrees]`.
    pub(super) fn sum(&self, queue: &Queue, x: &CudaTensor, maxima: Maxima, sums: Address) {
        let levels_at = self.uploaded.at + 16 * self.subtrees as u64;
        let merges_at = levels_at + 4 * self.levels as u64;
        let (max, found, parts) = match maxima {
            Maxima::Known(max) => (max, 0, 0),
            Maxima::Parts(found, parts) => (0, found, parts),
        };
        let arguments = Arguments::new().address(sums).address(x.at()).address(max).address(found);
        let arguments = arguments.count(parts).count(x.cols).count(self.subtrees).address(self.uploaded.at);
        let grid = Grid::plane(x.filled_rows(), self.subtrees, THREADS);
        queue.launch(kernel("logits_exp_sums"), grid, arguments.address(levels_at).address(merges_at));
    }

    /// The program's nodes of each row, of all subtrees' sums.
    pub(super) fn finish(&self, sums: &[f32]) -> Vec<f32> {
        if self.subtrees == 0 {
            return Vec::new();
        }
        sums.chunks_exact(self.subtrees).flat_map(|row| self.above.run(|at| row[at])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::ReductionTree;

    /// What the blocks and the host make of numbers of panels.
    fn run(program: &Program, value: impl Fn(usize) -> f32) -> Vec<f32> {
        let subtrees = Subtrees::of(program);
        let sum_of = |&[first, end, first_level, end_level]: &[u32; 4]| {
            let mut sums: Vec<f32> = (first..end).map(|panel| value(panel as usize)).collect();
            for level in first_level as usize..end_level as usize {
                let merges = subtrees.levels[level] as usize..subtrees.levels[level + 1] as usize;
                for merge in &subtrees.merges[merges] {
                    sums[(merge & 0xffff) as usize] += sums[(merge >> 16) as usize];
                }
            }
            sums[0]
        };
        let sums: Vec<f32> = subtrees.trees.iter().map(sum_of).collect();
        assert!(subtrees.trees.iter().all(|tree| tree[1] - tree[0] <= MOST_PANELS as u32));
        subtrees.above.run(|at| sums[at])
    }

    #[test]
    fn subtrees_and_what_is_above_them_sum_as_the_program_does() {
        let value = |panel: usize| (panel as f32 + 0.37) * 10f32.powi(panel as i32 * 7 % 13 - 6);
        for panels in [1, 2, 3, 511, 512, 513, 1025, 9496, 16_384] {
            let tree = ReductionTree::over_ids(panels);
            for range in [0..panels, 0..panels / 3, panels / 3..panels, panels / 2..panels * 2 / 3] {
                let program = tree.program(range);
                assert_eq!(run(&program, value), program.run(value), "{panels} panels");
            }
        }
    }

    #[test]
    fn a_row_of_256k_columns_is_worked_on_by_many_blocks() {
        let subtrees = Subtrees::of(&ReductionTree::over_ids(16_384).program(0..16_384));
        assert_eq!(subtrees.trees.len(), 32);
    }
}
