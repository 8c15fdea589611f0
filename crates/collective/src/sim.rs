use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tensor::Device;

use crate::solo::Unwatched;
use crate::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan, Watched};

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

    /// Notes a reduction of `rows` rows.
    fn note_reduce(&self, op: &str, [have, cols]: [usize; 2], rows: usize, plan: &ReducePlan) {
        let nodes = plan.nodes_of_rank[self.rank];
        assert_eq!(plan.nodes_of_rank.len(), self.size, "a plan for the group's ranks");
        assert_eq!(have, nodes * rows, "rank {} brings the nodes that it owns", self.rank);
        let mut stats = self.stats.get();
        stats.all_reduce_calls += 1;
        stats.all_reduce_bytes += (have * cols * size_of::<f32>()) as u64;
        self.stats.set(stats);
        let plural = if nodes == 1 { "" } else { "s" };
        (self.note)(&format!("{op} {nodes} node{plural} of [{rows}, {cols}]"));
    }
}

impl Group for ShapeGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    /// Every rank's part is like this rank's.
    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.note_other(&format!("all_gather_host {} numbers", part.len()));
        Ok(vec![part.to_vec(); self.size])
    }

    /// Every rank sends this rank what it sends itself.
    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.note_other(&format!("all_to_all_host {} bytes", parts.iter().map(Vec::len).sum::<usize>()));
        Ok(vec![parts[self.rank].clone(); self.size])
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, _: Option<Duration>) -> Result<(), CollectiveError> {
        self.note_other(&format!("broadcast {} bytes", bytes.len()));
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        (self.note)("barrier");
        Ok(())
    }

    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        self.note_other(&format!("send {} bytes to rank {to}", bytes.len()));
        Ok(())
    }

    fn recv_bytes(&self, from: usize, _: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        panic!("a group on paper has no bytes from rank {from}")
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

impl<D: Device> Collective<D> for ShapeGroup {
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        let shape = dev.shape(&partial);
        self.note_reduce("all_reduce", shape, rows, plan);
        Ok(dev.alloc(rows, shape[1]))
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        let shape = dev.shape(&partial);
        self.note_reduce("reduce_scatter", shape, rows_of_rank.iter().sum(), plan);
        Ok(dev.alloc(rows_of_rank[self.rank], shape[1]))
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

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        let [rows, cols] = dev.shape(x);
        assert_eq!(rows, rows_to.iter().sum::<usize>(), "rank {} brings its rows", self.rank);
        self.note_other(&format!("all_to_all [{rows}, {cols}]"));
        Ok(dev.alloc(rows_from.iter().sum(), cols))
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        let [rows, cols] = dev.shape(x);
        self.note_other(&format!("send [{rows}, {cols}] to rank {to}"));
        Ok(())
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        _: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        self.note_other(&format!("recv [{rows}, {cols}] from rank {from}"));
        Ok(dev.alloc(rows, cols))
    }
}
