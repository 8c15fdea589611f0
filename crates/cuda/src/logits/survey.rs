//! All that choosing a token asks of logits, with one read.

use tensor::{Program, Survey};

use super::Parts;
use super::top::{FEW, find_few, find_largest, largest_of, logit_of, pairs_of, top_k};
use super::tree::{Maxima, PanelTree};
use crate::driver::Fault;
use crate::of_program::OfProgram;
use crate::tensor::{CudaTensor, Queue};

/// Each row's largest logit, sums relative to it over the nodes of a program, and the `k` largest.
pub(crate) fn survey(
    queue: &Queue,
    trees: &OfProgram<PanelTree>,
    x: &CudaTensor,
    program: &Program,
    k: usize,
) -> Result<Survey, Fault> {
    let tree = trees.get(queue, program, || PanelTree::new(queue, program));
    let (rows, k, parts) = (x.filled_rows(), k.min(x.cols), Parts::of(queue, x));
    // All that is found lies side by side. The largest is found anyway; for very many candidates all columns are sorted.
    let candidates = if (2..=FEW).contains(&k) { rows * k } else { 0 };
    let (found, sums) = (2 * rows * parts.parts, tree.bytes_of(rows) / 4);
    let block = queue.block(4 * (found + 2 * candidates + sums));
    let (top_at, sums_at) = (block.at + 4 * found as u64, block.at + 4 * (found + 2 * candidates) as u64);
    find_largest(queue, x, &parts, block.at);
    tree.sum(queue, x, Maxima::Parts(block.at, parts.parts), sums_at);
    if candidates > 0 {
        find_few(queue, x, 0, k, top_at);
    }
    let words = queue.read_numbers(block.at, found + 2 * candidates + sums)?;
    let (largest, rest) = words.split_at(found);
    let (top, sums) = rest.split_at(2 * candidates);
    let mut largest = largest_of(&pairs_of(largest), rows);
    largest.truncate(x.rows);
    let sums: Vec<f32> = sums[..tree.bytes_of(x.rows) / 4].iter().copied().map(f32::from_bits).collect();
    let top = match k {
        0 => vec![Vec::new(); x.rows],
        1 => largest.iter().map(|found| found.iter().copied().collect()).collect(),
        2..=FEW => pairs_of(&top[..2 * x.rows * k]).chunks_exact(k).map(<[_]>::to_vec).collect(),
        _ => top_k(queue, x, 0, k)?,
    };
    Ok(Survey { max: largest.into_iter().map(logit_of).collect(), sums: tree.finish(&sums), top })
}
