use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tensor::Device;

use crate::{Collective, CollectiveError, CollectiveStats, Group, Progress, ReducePlan, Watched};

/// The group of one rank: its tree is complete already, so nothing moves.
#[derive(Debug, Default)]
pub struct Solo {
    stats: Cell<CollectiveStats>,
}

/// Nobody can be lost in a group of one.
pub(crate) struct Unwatched;

impl Watched for Unwatched {
    fn abort(&self, _: usize, _: &str) {}

    fn progress(&self) -> Progress {
        Progress::default()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        Ok(())
    }
}

impl Solo {
    fn count_all_reduce(&self, plan: &ReducePlan) {
        assert_eq!(plan.nodes_of_rank, [1], "one rank owns the whole tree");
        let mut stats = self.stats.get();
        stats.all_reduce_calls += 1;
        self.stats.set(stats);
    }
}

impl Group for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        Ok(vec![part.to_vec()])
    }

    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(parts.to_vec())
    }

    fn broadcast(&self, _: &mut Vec<u8>, _: Option<Duration>) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn send_bytes(&self, _: &[u8], to: usize) -> Result<(), CollectiveError> {
        panic!("the only rank sends nothing to rank {to}")
    }

    fn recv_bytes(&self, from: usize, _: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        panic!("the only rank gets nothing from rank {from}")
    }

    fn try_recv_bytes(&self, _: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        Ok(None)
    }

    fn check(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn fail(&self, _: &str) {}

    fn watched(&self) -> Arc<dyn Watched> {
        Arc::new(Unwatched)
    }

    fn stats(&self) -> CollectiveStats {
        self.stats.get()
    }
}

impl<D: Device> Collective<D> for Solo {
    fn all_reduce(
        &self,
        _: &D,
        partial: D::Tensor,
        _: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        self.count_all_reduce(plan);
        Ok(partial)
    }

    fn reduce_scatter(
        &self,
        _: &D,
        partial: D::Tensor,
        _: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        self.count_all_reduce(plan);
        Ok(partial)
    }

    fn all_gather(&self, dev: &D, part: &D::Tensor, _: &[usize]) -> Result<D::Tensor, CollectiveError> {
        Ok(copy(dev, part))
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        _: &[usize],
        _: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        Ok(copy(dev, x))
    }

    fn send(&self, _: &D, _: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        panic!("the only rank sends nothing to rank {to}")
    }

    fn recv(
        &self,
        _: &D,
        from: usize,
        _: usize,
        _: usize,
        _: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        panic!("the only rank gets nothing from rank {from}")
    }
}

fn copy<D: Device>(dev: &D, x: &D::Tensor) -> D::Tensor {
    let rows: Vec<u32> = (0..dev.shape(x)[0] as u32).collect();
    dev.gather_rows(x, &rows)
}
