use std::cell::Cell;
use std::time::Duration;

use tensor::Device;

use crate::{Collective, CollectiveError, CollectiveStats, ReducePlan};

/// One rank of a group that exists only on paper, for devices whose tensors have shapes but no data
/// ([`tensor::Trace`], [`tensor::Cost`]): results have the right shape, counts are kept, nothing moves.
pub struct ShapeGroup {
    rank: usize,
    size: usize,
    note: Box<dyn Fn(&str)>,
    stats: Cell<CollectiveStats>,
}

impl ShapeGroup {
    /// Rank `rank` of `size`. `note` gets a line for each call: `all_reduce 2 nodes of [3, 64]`.
    pub fn new(rank: usize, size: usize, note: impl Fn(&str) + 'static) -> Self {
        assert!(rank < size, "rank {rank} of {size}");
        ShapeGroup { rank, size, note: Box::new(note), stats: Cell::default() }
    }

    fn note_other(&self, line: &str) {
        let mut stats = self.stats.get();
        stats.other_calls += 1;
        self.stats.set(stats);
        (self.note)(line);
    }
}

impl<D: Device> Collective<D> for ShapeGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        let nodes = plan.nodes_of_rank[self.rank];
        let [have, cols] = dev.shape(&partial);
        assert_eq!(plan.nodes_of_rank.len(), self.size, "a plan for the group's ranks");
        assert_eq!(have, nodes * rows, "rank {} brings the nodes that it owns", self.rank);
        let mut stats = self.stats.get();
        stats.all_reduce_calls += 1;
        stats.all_reduce_bytes += (have * cols * size_of::<f32>()) as u64;
        self.stats.set(stats);
        let plural = if nodes == 1 { "" } else { "s" };
        (self.note)(&format!("all_reduce {nodes} node{plural} of [{rows}, {cols}]"));
        Ok(dev.alloc(rows, cols))
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let [rows, cols] = dev.shape(part);
        assert_eq!(rows_of_rank.len(), self.size, "a number of rows for each rank");
        assert_eq!(rows, rows_of_rank[self.rank], "rank {} brings its rows", self.rank);
        let all = rows_of_rank.iter().sum();
        self.note_other(&format!("all_gather [{rows}, {cols}] of [{all}, {cols}]"));
        Ok(dev.alloc(all, cols))
    }

    /// Every rank's part is like this rank's.
    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.note_other(&format!("all_gather_host {} numbers", part.len()));
        Ok(vec![part.to_vec(); self.size])
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, _: Option<Duration>) -> Result<(), CollectiveError> {
        self.note_other(&format!("broadcast {} bytes", bytes.len()));
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        (self.note)("barrier");
        Ok(())
    }

    fn check(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn fail(&self, _: &str) {}

    fn stats(&self) -> CollectiveStats {
        self.stats.get()
    }
}
