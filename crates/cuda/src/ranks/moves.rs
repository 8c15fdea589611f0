//! Collectives made of moves between GPUs, and of kernels that finish trees.

use std::ops::Range;

use collective::{CallId, ReducePlan};
use tensor::ReductionTree;

use super::finish::{Tree, Trees, finish};
use super::path::{DataPath, Move};
use crate::driver::{Address, Fault};
use crate::memory::Block;
use crate::rows::gather_rows;
use crate::step::KnownLists;
use crate::tensor::{CudaTensor, Queue};

/// Up to so many bytes of nodes every rank gets all of them and finishes the whole tree: one move instead of two. Nobody has measured
/// where that ends to be faster. Up to as many bytes rows also travel filled up, of which each rank then takes what it wants: so steps
/// with a few rows more or fewer do the same between moves, and that is one graph.
const DIRECT_BYTES: usize = 256 << 10;
const WORD: usize = 4;
/// Slices begin where kernels can take four floats at a time.
const ALIGNED: usize = 4;

/// A rank, and the way to the others.
pub(crate) struct Moves<P> {
    pub path: P,
    pub rank: usize,
    pub ranks: usize,
}

/// The place of the word of this number.
fn at(from: Address, word: usize) -> Address {
    from + (WORD * word) as u64
}

/// Even slices of so many words, the last of which may be short or have none.
fn even_slices(words: usize, ranks: usize) -> (usize, Vec<Range<usize>>) {
    let each = words.div_ceil(ranks).next_multiple_of(ALIGNED);
    (each, (0..ranks).map(|r| (r * each).min(words)..((r + 1) * each).min(words)).collect())
}

/// Where each rank's rows begin and end, in words.
fn row_slices(rows_of_rank: &[usize], cols: usize) -> Vec<Range<usize>> {
    let ends = rows_of_rank.iter().scan(0, |end, rows| {
        *end += rows * cols;
        Some(*end)
    });
    ends.zip(rows_of_rank).map(|(end, rows)| end - rows * cols..end).collect()
}

/// All of a matrix, if there is anything of it: with the rows to which it is filled up, so that what is filled up to as many is moved alike.
fn moves_of(x: &CudaTensor, rank: usize) -> Vec<Move> {
    let all = (x.len() > 0).then(|| Move { at: x.at(), words: x.filled_len(), rank });
    all.into_iter().collect()
}

impl<P: DataPath> Moves<P> {
    /// As [`collective::Collective::all_reduce`].
    pub fn all_reduce(
        &self,
        queue: &Queue,
        call: CallId,
        trees: &Trees,
        partial: &CudaTensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<CudaTensor, Fault> {
        let (cols, filled) = (partial.cols, partial.part_rows());
        let words = partial.part_len();
        let tree = trees.get(queue, plan);
        if WORD * words * tree.num_items <= DIRECT_BYTES {
            let out = queue.tensor_of(1, rows, filled, cols);
            let slices = vec![0..words; self.ranks];
            self.reduce(queue, call, &tree, partial.at(), words, &slices, plan, out.at())?;
            return Ok(out);
        }
        let (each, slices) = even_slices(words, self.ranks);
        // With room for as much of the last rank as of all others, so that all send the same.
        let out = queue.tensor_with_room(rows, filled, cols, each * self.ranks);
        let own = at(out.at(), each * self.rank);
        self.reduce(queue, call, &tree, partial.at(), words, &slices, plan, own)?;
        self.path.all_gather(queue, call, own, each, out.at())?;
        Ok(out)
    }

    /// As [`collective::Collective::reduce_scatter`].
    pub fn reduce_scatter(
        &self,
        queue: &Queue,
        call: CallId,
        trees: &Trees,
        partial: &CudaTensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<CudaTensor, Fault> {
        let words = partial.part_len();
        let tree = trees.get(queue, plan);
        if WORD * words * tree.num_items <= DIRECT_BYTES {
            let sum = self.all_reduce(queue, call, trees, partial, rows_of_rank.iter().sum(), plan)?;
            return Ok(self.own_rows(queue, &sum, rows_of_rank));
        }
        let slices = row_slices(rows_of_rank, partial.cols);
        let out = queue.tensor(rows_of_rank[self.rank], partial.cols);
        self.reduce(queue, call, &tree, partial.at(), words, &slices, plan, out.at())?;
        Ok(out)
    }

    /// Finishes the tree of this rank's slice: `out [slices[rank]]`. Each rank has its nodes, of `words` each, at `partial`.
    #[expect(clippy::too_many_arguments, reason = "what a reduction is")]
    fn reduce(
        &self,
        queue: &Queue,
        call: CallId,
        tree: &Tree,
        partial: Address,
        words: usize,
        slices: &[Range<usize>],
        plan: &ReducePlan,
        out: Address,
    ) -> Result<(), Fault> {
        let (own, nodes) = (&slices[self.rank], &plan.nodes_of_rank);
        let node = |node: usize, slice: &Range<usize>| at(partial, node * words + slice.start);
        let others = || (0..self.ranks).filter(|&rank| rank != self.rank);
        let sends = others().flat_map(|rank| {
            let slice = &slices[rank];
            (0..nodes[self.rank]).map(move |n| Move { at: node(n, slice), words: slice.len(), rank })
        });
        let sends: Vec<Move> = sends.filter(|to| to.words > 0).collect();
        let (mut parts, mut receives, mut room) = (Vec::new(), Vec::new(), Vec::<Block>::new());
        for (rank, &nodes) in nodes.iter().enumerate() {
            // One node of a slice lies as the kernel wants it; several have the rest of the nodes between them.
            if rank == self.rank && (nodes == 1 || *own == (0..words)) {
                parts.push(node(0, own));
                continue;
            }
            let block = queue.block(WORD * nodes * own.len());
            for n in 0..nodes {
                let to = at(block.at, n * own.len());
                match rank == self.rank {
                    _ if own.is_empty() => {}
                    true => queue.copy(node(n, own), to, WORD * own.len())?,
                    false => receives.push(Move { at: to, words: own.len(), rank }),
                }
            }
            parts.push(block.at);
            room.push(block);
        }
        self.path.exchange(queue, call, &sends, &receives)?;
        if !own.is_empty() {
            finish(queue, tree, &parts, out, own.len());
        }
        Ok(())
    }

    /// An all-reduce in whatever order is fastest: the nodes of each rank, then the ranks.
    pub fn fast_all_reduce(
        &self,
        queue: &Queue,
        call: CallId,
        trees: &Trees,
        partial: &CudaTensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<CudaTensor, Fault> {
        let out = self.own_sum(queue, trees, partial, rows, plan);
        self.path.sum(queue, call, out.at(), out.filled_len())?;
        Ok(out)
    }

    /// A reduce-scatter likewise, if all ranks get as many rows.
    pub fn fast_reduce_scatter(
        &self,
        queue: &Queue,
        call: CallId,
        trees: &Trees,
        partial: &CudaTensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<CudaTensor, Fault> {
        let own = rows_of_rank[self.rank];
        if WORD * partial.part_len() * self.ranks <= DIRECT_BYTES {
            let sum = self.fast_all_reduce(queue, call, trees, partial, rows_of_rank.iter().sum(), plan)?;
            return Ok(self.own_rows(queue, &sum, rows_of_rank));
        }
        if rows_of_rank.iter().any(|&rows| rows != own) {
            return self.reduce_scatter(queue, call, trees, partial, rows_of_rank, plan);
        }
        let sum = self.own_sum(queue, trees, partial, own * self.ranks, plan);
        let out = queue.tensor(own, partial.cols);
        self.path.sum_scatter(queue, call, sum.at(), out.len(), out.at())?;
        Ok(out)
    }

    /// The sum of this rank's nodes.
    fn own_sum(
        &self,
        queue: &Queue,
        trees: &Trees,
        partial: &CudaTensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> CudaTensor {
        let out = queue.tensor_of(1, rows, partial.part_rows(), partial.cols);
        let nodes = plan.nodes_of_rank[self.rank];
        match nodes {
            0 => queue.write(out.at(), &vec![0; WORD * out.filled_len()]),
            _ => {
                let finish_own = ReductionTree::over_ids(nodes).program(0..nodes);
                let own = ReducePlan { nodes_of_rank: vec![nodes], finish: finish_own };
                finish(queue, &trees.get(queue, &own), &[partial.at()], out.at(), out.filled_len());
            }
        }
        out
    }

    /// As [`collective::Collective::all_gather`].
    pub fn all_gather(
        &self,
        queue: &Queue,
        call: CallId,
        part: &CudaTensor,
        rows_of_rank: &[usize],
    ) -> Result<CudaTensor, Fault> {
        let rows = rows_of_rank.iter().sum();
        let longest = rows_of_rank.iter().map(|&rows| queue.filled_up(rows)).max().unwrap_or(0);
        if WORD * longest * part.cols * self.ranks <= DIRECT_BYTES {
            // As many rows of each, so that what is done follows from how many those are filled up to.
            let own = queue.tensor_of(1, longest, longest, part.cols);
            if part.rows > 0 {
                queue.copy(part.at(), own.at(), WORD * part.filled_len())?;
            }
            let all = self.all_gather_alike(queue, call, &own)?;
            let places =
                rows_of_rank.iter().enumerate().flat_map(|(of, &rows)| (0..rows).map(move |r| (of, r)));
            let places: Vec<u32> = places.map(|(of, row)| (of * longest + row) as u32).collect();
            return Ok(gather_rows(queue, &all, &places, &KnownLists::default()));
        }
        let out = queue.tensor(rows, part.cols);
        if rows_of_rank.iter().all(|&rows| rows == part.rows) {
            self.path.all_gather(queue, call, part.at(), part.len(), out.at())?;
            return Ok(out);
        }
        let own = vec![0..part.len(); self.ranks];
        self.swap(queue, call, (part.at(), &own), (out.at(), &row_slices(rows_of_rank, part.cols)))?;
        Ok(out)
    }

    /// As [`collective::Collective::all_gather_alike`].
    pub fn all_gather_alike(
        &self,
        queue: &Queue,
        call: CallId,
        part: &CudaTensor,
    ) -> Result<CudaTensor, Fault> {
        let out = queue.tensor_of(self.ranks, part.rows, part.part_rows(), part.cols);
        self.path.all_gather(queue, call, part.at(), part.part_len(), out.at())?;
        Ok(out)
    }

    /// As [`collective::Collective::all_to_all`].
    pub fn all_to_all(
        &self,
        queue: &Queue,
        call: CallId,
        x: &CudaTensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<CudaTensor, Fault> {
        let out = queue.tensor(rows_from.iter().sum(), x.cols);
        let (to, from) = (row_slices(rows_to, x.cols), row_slices(rows_from, x.cols));
        self.swap(queue, call, (x.at(), &to), (out.at(), &from))?;
        Ok(out)
    }

    /// As [`collective::Collective::send`].
    pub fn send(&self, queue: &Queue, call: CallId, x: &CudaTensor, to: usize) -> Result<(), Fault> {
        self.path.exchange(queue, call, &moves_of(x, to), &[])
    }

    /// As [`collective::Collective::recv`]. Who waits for it in vain gives up as for any other call.
    pub fn recv(
        &self,
        queue: &Queue,
        call: CallId,
        from: usize,
        [rows, cols]: [usize; 2],
    ) -> Result<CudaTensor, Fault> {
        let out = queue.tensor(rows, cols);
        self.path.exchange(queue, call, &[], &moves_of(&out, from))?;
        Ok(out)
    }

    /// This rank's rows of all, by a list that lies in memory.
    fn own_rows(&self, queue: &Queue, all: &CudaTensor, rows_of_rank: &[usize]) -> CudaTensor {
        let first: usize = rows_of_rank[..self.rank].iter().sum();
        let own: Vec<u32> = (first..first + rows_of_rank[self.rank]).map(|row| row as u32).collect();
        gather_rows(queue, all, &own, &KnownLists::default())
    }

    /// A slice for each rank, and one of each rank: from the first place to the second.
    fn swap(
        &self,
        queue: &Queue,
        call: CallId,
        (from, sent): (Address, &[Range<usize>]),
        (to, received): (Address, &[Range<usize>]),
    ) -> Result<(), Fault> {
        let (own_sent, own) = (&sent[self.rank], &received[self.rank]);
        assert_eq!(own_sent.len(), own.len(), "what a rank sends itself it receives");
        if !own.is_empty() {
            queue.copy(at(from, own_sent.start), at(to, own.start), WORD * own.len())?;
        }
        let moves = |place: Address, slices: &[Range<usize>]| -> Vec<Move> {
            let others = slices.iter().enumerate().filter(|(rank, s)| *rank != self.rank && !s.is_empty());
            others.map(|(rank, s)| Move { at: at(place, s.start), words: s.len(), rank }).collect()
        };
        self.path.exchange(queue, call, &moves(from, sent), &moves(to, received))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_all_words_and_begin_where_kernels_take_four() {
        for words in [0, 1, 4, 5, 17, 100, 4096] {
            for ranks in 1..6 {
                let (each, slices) = even_slices(words, ranks);
                assert_eq!(slices.iter().map(ExactSizeIterator::len).sum::<usize>(), words);
                assert!(each * ranks >= words && each.is_multiple_of(ALIGNED));
                for (rank, slice) in slices.iter().enumerate() {
                    assert!(slice.is_empty() || slice.start == rank * each, "{words} {ranks}: {slices:?}");
                }
            }
        }
        assert_eq!(row_slices(&[2, 0, 3], 5), [0..10, 10..10, 10..25]);
    }
}
