use std::cell::Cell;
use std::time::Duration;

use tensor::Device;

use crate::{Collective, CollectiveError, CollectiveStats, ReducePlan};

/// The group of one rank: its tree is complete already, so nothing moves.
#[derive(Debug, Default)]
pub struct Solo {
    stats: Cell<CollectiveStats>,
}

impl<D: Device> Collective<D> for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(
        &self,
        _: &D,
        partial: D::Tensor,
        _: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        assert_eq!(plan.nodes_of_rank, [1], "one rank owns the whole tree");
        let mut stats = self.stats.get();
        stats.all_reduce_calls += 1;
        self.stats.set(stats);
        Ok(partial)
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let rows: Vec<u32> = (0..rows_of_rank[0] as u32).collect();
        Ok(dev.gather_rows(part, &rows))
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        Ok(vec![part.to_vec()])
    }

    fn broadcast(&self, _: &mut Vec<u8>, _: Option<Duration>) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
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
