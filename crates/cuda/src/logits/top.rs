//! The largest logits: found on the GPU, so that candidates travel to the host, and never the logits.

use super::Parts;
use crate::driver::{Address, Arguments, Fault, Grid, Kernel};
use crate::memory::Block;
use crate::tensor::{CudaTensor, Queue};

/// Up to so many are chosen by one block per row; for more, all columns are sorted.
pub(super) const FEW: usize = 1024;
/// Bytes that keys may take while all columns are sorted, twice; it's done for so many rows at a time.
const MOST_BYTES: usize = 16 << 20;
/// Keys that a block sorts; as `kernels/logits_top.cu` has it.
const SORTED: usize = 2048;
/// Threads of a block that finds the largest of groups, and columns that each looks at.
const THREADS: usize = 256;
const GROUP: usize = 32;

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "logits_top", name }
}

/// The largest logit of each row.
pub(crate) fn row_max(queue: &Queue, x: &CudaTensor) -> Result<Vec<f32>, Fault> {
    Ok(largest(queue, x)?.into_iter().map(logit_of).collect())
}

/// What [`largest`] finds of a row, as a maximum.
pub(super) fn logit_of(found: Option<(f32, u32)>) -> f32 {
    found.map_or(f32::NEG_INFINITY, |(logit, _)| logit)
}

/// The `skip`-th to `skip + k`-th largest of each row.
pub(crate) fn top_k(
    queue: &Queue,
    x: &CudaTensor,
    skip: usize,
    k: usize,
) -> Result<Vec<Vec<(f32, u32)>>, Fault> {
    let wanted = skip.saturating_add(k).min(x.cols);
    let k = wanted.saturating_sub(skip);
    if k == 0 || x.rows == 0 {
        queue.0.take_fault()?;
        return Ok(vec![Vec::new(); x.rows]);
    }
    match wanted {
        1 => Ok(largest(queue, x)?.into_iter().map(|found| found.into_iter().collect()).collect()),
        2..=FEW => few(queue, x, skip, wanted),
        _ => many(queue, x, skip, k),
    }
}

/// The largest of each row; none of a row without columns. A NaN is below all numbers.
fn largest(queue: &Queue, x: &CudaTensor) -> Result<Vec<Option<(f32, u32)>>, Fault> {
    let parts = Parts::of(queue, x);
    let found = queue.block(8 * x.filled_rows() * parts.parts);
    find_largest(queue, x, &parts, found.at);
    Ok(largest_of(&pairs(queue, &found, x.rows * parts.parts)?, x.rows))
}

/// The largest of each row's parts, to `found [rows, parts]`.
pub(super) fn find_largest(queue: &Queue, x: &CudaTensor, parts: &Parts, found: Address) {
    let arguments = Arguments::new().address(found).address(x.at());
    let arguments = arguments.count(x.cols).count(parts.width).count(parts.parts);
    queue.launch(kernel("logits_largest"), parts.grid(x.filled_rows()), arguments);
}

/// The largest of each row, of which there are as many parts as of the others.
pub(super) fn largest_of(found: &[(f32, u32)], rows: usize) -> Vec<Option<(f32, u32)>> {
    // Parts ascend, so a later one is before an earlier one only if its logit is larger.
    let larger =
        |a: (f32, u32), b: (f32, u32)| if b.0 > a.0 || (a.0.is_nan() && !b.0.is_nan()) { b } else { a };
    let parts = found.len() / rows.max(1);
    (0..rows).map(|row| found[row * parts..(row + 1) * parts].iter().copied().reduce(larger)).collect()
}

/// By the largest of each group of columns.
fn few(queue: &Queue, x: &CudaTensor, skip: usize, wanted: usize) -> Result<Vec<Vec<(f32, u32)>>, Fault> {
    let k = wanted - skip;
    let found = queue.block(8 * x.filled_rows() * k);
    find_few(queue, x, skip, wanted, found.at);
    Ok(pairs(queue, &found, x.rows * k)?.chunks_exact(k).map(<[_]>::to_vec).collect())
}

/// The `skip`-th to `wanted`-th largest of each row, to `found [rows, wanted − skip]`.
pub(super) fn find_few(queue: &Queue, x: &CudaTensor, skip: usize, wanted: usize, found: Address) {
    let tile = THREADS * GROUP;
    // Only the last tile has groups without columns.
    let groups = x.cols / tile * THREADS + (x.cols % tile).min(THREADS);
    let largest = queue.block(8 * x.filled_rows() * groups);
    let grid = Grid::plane(x.filled_rows(), x.cols.div_ceil(tile), THREADS);
    let arguments = Arguments::new().address(largest.at).address(x.at()).count(x.cols).count(groups);
    queue.launch(kernel("logits_groups"), grid, arguments);

    let sorted = wanted.next_power_of_two();
    let arguments = Arguments::new().address(found).address(x.at()).address(largest.at);
    let arguments = arguments.count(x.cols).count(groups).count(skip).count(wanted).count(sorted);
    let threads = (groups / 4).max(wanted * GROUP / 8).next_power_of_two().clamp(128, 1024);
    let grid = Grid::flat(x.filled_rows(), threads).with_shared(8 * sorted + 4 * wanted);
    queue.launch(kernel("logits_top_k"), grid, arguments);
}

/// By sorting all columns.
fn many(queue: &Queue, x: &CudaTensor, skip: usize, k: usize) -> Result<Vec<Vec<(f32, u32)>>, Fault> {
    let tiles = x.cols.div_ceil(SORTED);
    let count = tiles * SORTED;
    let rows_at_a_time = (MOST_BYTES / (8 * count)).clamp(1, x.rows);
    let bytes = 8 * rows_at_a_time * count;
    let (mut keys, mut merged) = (queue.block(bytes), queue.block(bytes));
    let mut all = Vec::with_capacity(x.rows);
    for first in (0..x.rows).step_by(rows_at_a_time) {
        let rows = rows_at_a_time.min(x.rows - first);
        let part = x.at() + 4 * (first * x.cols) as u64;
        let arguments = Arguments::new().address(keys.at).address(part).count(x.cols).count(tiles);
        queue.launch(kernel("logits_sort_tiles"), Grid::plane(rows, tiles, SORTED / 2), arguments);
        let mut length = SORTED;
        while length < count {
            let arguments = Arguments::new().address(merged.at).address(keys.at).count(count).count(length);
            queue.launch(kernel("logits_merge_runs"), over_each_of(rows, count), arguments);
            std::mem::swap(&mut keys, &mut merged);
            length *= 2;
        }
        let found = queue.block(8 * rows * k);
        let arguments = Arguments::new().address(found.at).address(part).address(keys.at);
        let arguments = arguments.count(x.cols).count(count).count(skip).count(k);
        queue.launch(kernel("logits_found"), over_each_of(rows, k), arguments);
        all.extend(pairs(queue, &found, rows * k)?.chunks_exact(k).map(<[_]>::to_vec));
    }
    Ok(all)
}

/// A thread for each of `count` elements of each row.
fn over_each_of(rows: usize, count: usize) -> Grid {
    Grid::plane(rows, count.div_ceil(THREADS), THREADS)
}

/// What kernels found, as (logit, column).
fn pairs(queue: &Queue, found: &Block, count: usize) -> Result<Vec<(f32, u32)>, Fault> {
    Ok(pairs_of(&queue.read_numbers(found.at, 2 * count)?))
}

pub(super) fn pairs_of(words: &[u32]) -> Vec<(f32, u32)> {
    words.chunks_exact(2).map(|pair| (f32::from_bits(pair[0]), pair[1])).collect()
}
