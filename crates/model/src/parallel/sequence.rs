//! Sequence parallelism: between the parallel regions the residual stream is split by token, so that norms and
//! residual adds are done once per token and not once per rank.

use std::ops::Range;

use collective::ReducePlan;
use tensor::{Device, Part, RowNorm};

use super::{Rank, cuts};
use crate::ModelError;

/// How the residual stream of a step lies over the ranks of a tensor-parallel group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Every rank has every row.
    Replicated,
    /// Each rank has so many rows, in order.
    Split(Vec<usize>),
}

/// The rows that each of `ranks` ranks gets of `rows`.
pub fn even_rows(rows: usize, ranks: usize) -> Vec<usize> {
    let shares = vec![1.0 / ranks as f64; ranks];
    cuts::ranges(&cuts::nearest(rows, 1, &shares)).into_iter().map(|r| r.len()).collect()
}

impl Stream {
    /// The stream of a step of `tokens` rows.
    pub fn new(tokens: usize, ranks: usize, sequence_parallel: bool) -> Self {
        match sequence_parallel && ranks > 1 {
            true => Stream::Split(even_rows(tokens, ranks)),
            false => Stream::Replicated,
        }
    }

    /// The rows that a rank has of `tokens`.
    pub fn rows(&self, rank: usize, tokens: usize) -> Range<usize> {
        match self {
            Stream::Replicated => 0..tokens,
            Stream::Split(rows) => {
                let start = rows[..rank].iter().sum();
                start..start + rows[rank]
            }
        }
    }
}

impl<D: Device> Rank<'_, D> {
    /// All rows at the entry of a parallel region, unless they are here already.
    pub(super) fn enter(&self, x: &D::Tensor) -> Result<Option<D::Tensor>, ModelError> {
        match self.stream {
            Stream::Replicated => Ok(None),
            // Together with the reduce-scatter before, an all-reduce.
            Stream::Split(rows) => Ok(Some(self.calls(Part::AllReduce).all_gather(x, rows)?)),
        }
    }

    /// Finishes a reduction at the exit of a parallel region: all `rows` of the sum, or this rank's.
    pub(crate) fn reduce(
        &self,
        nodes: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, ModelError> {
        let calls = self.calls(Part::AllReduce);
        Ok(match self.stream {
            Stream::Replicated => calls.all_reduce(nodes, rows, plan)?,
            Stream::Split(own) => calls.reduce_scatter(nodes, own, plan)?,
        })
    }

    /// Whether the group sums, adds to the stream and norms in one operation.
    pub(super) fn fuses_norm(&self) -> bool {
        self.group.size() > 1 && *self.stream == Stream::Replicated && self.group.fuses_norm()
    }

    /// Finishes a reduction that the residual stream `x` gets, and norms that.
    pub(crate) fn reduce_add_norm(
        &self,
        nodes: D::Tensor,
        plan: &ReducePlan,
        x: &mut D::Tensor,
        post: Option<RowNorm<'_, D::Tensor>>,
        norm: RowNorm<'_, D::Tensor>,
    ) -> Result<D::Tensor, ModelError> {
        Ok(self.calls(Part::AllReduce).all_reduce_add_norm(nodes, plan, x, post, norm)?)
    }

    /// This rank's part of what every rank has.
    pub(super) fn keep(&self, x: D::Tensor) -> D::Tensor {
        match self.stream {
            Stream::Replicated => x,
            Stream::Split(rows) => self.own_rows(&x, rows),
        }
    }

    /// This rank's rows of all.
    pub(super) fn own_rows(&self, x: &D::Tensor, rows: &[usize]) -> D::Tensor {
        let start: usize = rows[..self.group.rank()].iter().sum();
        let own: Vec<u32> = (start..start + rows[self.group.rank()]).map(|r| r as u32).collect();
        self.dev.gather_rows(x, &own)
    }

    /// Some rows of the whole stream on every rank, after `each` has worked on them where they are.
    ///
    /// # Shapes
    /// `x`: this rank's rows of the stream; `wanted`: rows of the whole stream, ascending → `[wanted.len(), c]`
    pub fn collect(
        &self,
        x: &D::Tensor,
        wanted: &[u32],
        each: impl Fn(&D::Tensor) -> D::Tensor,
    ) -> Result<D::Tensor, ModelError> {
        let Stream::Split(rows) = self.stream else {
            return Ok(each(&self.dev.gather_rows(x, wanted)));
        };
        let mut start = 0;
        let ranges = rows.iter().map(|&n| {
            start += n as u32;
            start - n as u32..start
        });
        let of_rank: Vec<Vec<u32>> = ranges
            .map(|range| wanted.iter().filter(|r| range.contains(r)).map(|r| r - range.start).collect())
            .collect();
        let own = each(&self.dev.gather_rows(x, &of_rank[self.group.rank()]));
        let counts: Vec<usize> = of_rank.iter().map(Vec::len).collect();
        Ok(self.calls(Part::Exchange).all_gather(&own, &counts)?)
    }
}
