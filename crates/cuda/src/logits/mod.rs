//! What a sampler asks of logits. Where blocks work on parts of a row, the host, which waits for what they find anyway, puts
//! the parts together.

mod edits;
mod survey;
mod top;
mod tree;

pub(crate) use edits::edit;
pub(crate) use survey::survey;
pub(crate) use top::{row_max, top_k};
pub(crate) use tree::{PanelTree, exp_sums};

use std::iter::repeat_n;

use crate::driver::{Arguments, Fault, Grid, Kernel};
use crate::tensor::{CudaTensor, Queue};

/// Threads of a block.
const THREADS: usize = 256;

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "logits", name }
}

/// How rows are cut into parts for blocks that work on one each: of some thousand columns, and fewer where there are few rows.
struct Parts {
    width: usize,
    parts: usize,
}

impl Parts {
    /// Of rows that have columns.
    fn of(queue: &Queue, x: &CudaTensor) -> Self {
        let (least, most) = (4 * THREADS, 32 * THREADS);
        let blocks = 4 * queue.0.driver.multiprocessors();
        let wanted = blocks.div_ceil(x.filled_rows().max(1)).max(1);
        let width = x.cols.div_ceil(wanted).next_multiple_of(THREADS).clamp(least, most);
        Parts { width, parts: x.cols.div_ceil(width) }
    }

    /// A block per row and part.
    fn grid(&self, rows: usize) -> Grid {
        Grid::plane(rows, self.parts, THREADS)
    }
}

/// How many of each row come before a (logit, column).
pub(crate) fn count_before(
    queue: &Queue,
    x: &CudaTensor,
    places: &[(f32, usize)],
) -> Result<Vec<u32>, Fault> {
    assert_eq!(x.rows, places.len(), "count_before: one place per row");
    let parts = Parts::of(queue, x);
    let counts = queue.block(4 * x.filled_rows() * parts.parts);
    // All columns come before one that is beyond the last.
    let col = |col: usize| u32::try_from(col).unwrap_or(u32::MAX);
    let more = repeat_n(0, 2 * (x.filled_rows() - x.rows));
    let places = places.iter().flat_map(|&(logit, at)| [logit.to_bits(), col(at)]);
    let places = queue.numbers(places.chain(more));
    let arguments = Arguments::new().address(counts.at).address(x.at()).address(places.at);
    let arguments = arguments.count(x.cols).count(parts.width).count(parts.parts);
    queue.launch(kernel("logits_count_before"), parts.grid(x.filled_rows()), arguments);
    let counts = queue.read_numbers(counts.at, x.rows * parts.parts)?;
    Ok((0..x.rows).map(|row| counts[row * parts.parts..(row + 1) * parts.parts].iter().sum()).collect())
}

/// Single logits, by (row, column).
pub(crate) fn pick(queue: &Queue, x: &CudaTensor, at: &[(usize, usize)]) -> Result<Vec<f32>, Fault> {
    assert!(at.iter().all(|&(row, col)| row < x.rows && col < x.cols), "pick: a place beyond the last");
    let filled = queue.filled_up(at.len());
    let picked = queue.block(4 * filled);
    let more = repeat_n(0, 2 * (filled - at.len()));
    let places = queue.numbers(at.iter().flat_map(|&(row, col)| [row as u32, col as u32]).chain(more));
    let arguments = Arguments::new().address(picked.at).address(x.at()).address(places.at);
    let arguments = arguments.count(filled).count(x.cols);
    queue.launch(kernel("logits_pick"), queue.over_each(filled), arguments);
    queue.read(picked.at, at.len())
}
