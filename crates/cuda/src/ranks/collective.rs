//! A group of ranks on GPUs as a [`Collective`].

use std::time::Duration;

use ::collective::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan, WireDType};
use ::tensor::{Reference, RowNorm};

use super::compressed::CompressedSum;
use super::group::CudaGroup;
use super::moves::Moves;
use super::peers::{ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, Peers, RECV, REDUCE_SCATTER, SEND};
use super::rings::patience;
use crate::device::CudaDevice;
use crate::nccl::NcclPath;
use crate::reduction::Reduction;
use crate::tensor::CudaTensor;

impl<C: Collective<Reference>> Collective<CudaDevice> for CudaGroup<C> {
    fn share(&self, dev: &CudaDevice) -> Result<(), CollectiveError> {
        self.map(&dev.queue)
    }

    fn prepare(&self, dev: &CudaDevice) -> Result<Option<String>, CollectiveError> {
        self.find_path(&dev.queue)
    }

    fn all_reduce(
        &self,
        dev: &CudaDevice,
        partial: CudaTensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<CudaTensor, CollectiveError> {
        if let Some(moves) = self.moving() {
            let partial = self.nodes(dev, partial, rows, plan);
            let count = count_reduction(4 * partial.len() as u64);
            let by = match dev.reduction() {
                Reduction::Canonical => Moves::all_reduce,
                Reduction::Fast => Moves::fast_all_reduce,
            };
            let run = |call| by(moves, &dev.queue, call, &dev.trees, &partial, rows, plan);
            return self.call_nccl("all_reduce", count, run);
        }
        let Some(peers) = self.reducing(plan) else {
            return self.of_host(|host| host.all_reduce(dev, partial, rows, plan));
        };
        let partial = self.nodes(dev, partial, rows, plan);
        let tree = dev.trees.get(&dev.queue, plan);
        if self.wire == WireDType::Float32 {
            let count = count_reduction(4 * partial.len() as u64);
            let run = || peers.all_reduce(&dev.queue, &tree, &partial, rows, plan);
            return self.call(ALL_REDUCE, peers, count, run);
        }
        let slices = |rows: usize| WireDType::slices(rows * partial.cols, self.size());
        let longest = slices(partial.part_rows()).iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let slices = slices(rows);
        let of = CompressedSum { wire: self.wire, plan, tree: &tree, partial: &partial, slices, longest };
        let count = count_reduction(of.bytes(self.rank(), true));
        let out = dev.queue.tensor_of(1, rows, partial.part_rows(), partial.cols);
        self.call(ALL_REDUCE, peers, count, || peers.reduce_compressed(&dev.queue, &of, true, out))
    }

    fn fuses_norm(&self) -> bool {
        self.wire == WireDType::Float32 && self.peers().is_some()
    }

    fn all_reduce_add_norm(
        &self,
        dev: &CudaDevice,
        partial: CudaTensor,
        plan: &ReducePlan,
        x: &mut CudaTensor,
        post: Option<RowNorm<'_, CudaTensor>>,
        norm: RowNorm<'_, CudaTensor>,
    ) -> Result<CudaTensor, CollectiveError> {
        let peers = self.reducing(plan).filter(|_| self.wire == WireDType::Float32);
        let Some(peers) = peers.filter(|peers| peers.fuses(x, plan)) else {
            let sum = self.all_reduce(dev, partial, x.rows, plan)?;
            return Ok(::tensor::Device::add_norm(dev, x, &sum, post, norm));
        };
        let partial = self.nodes(dev, partial, x.rows, plan);
        let tree = dev.trees.get(&dev.queue, plan);
        let own_nodes = plan.nodes_of_rank[self.rank()];
        self.call(ALL_REDUCE, peers, count_reduction(4 * partial.len() as u64), || {
            peers.all_reduce_add_norm(&dev.queue, &tree, &partial, own_nodes, x, [post, Some(norm)])
        })
    }

    fn reduce_scatter(
        &self,
        dev: &CudaDevice,
        partial: CudaTensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<CudaTensor, CollectiveError> {
        assert_eq!(rows_of_rank.len(), self.size(), "a number of rows for each rank");
        let (rows, cols) = (rows_of_rank.iter().sum(), partial.cols);
        if let Some(moves) = self.moving() {
            let partial = self.nodes(dev, partial, rows, plan);
            let count = count_reduction(4 * partial.len() as u64);
            let by = match dev.reduction() {
                Reduction::Canonical => Moves::reduce_scatter,
                Reduction::Fast => Moves::fast_reduce_scatter,
            };
            let run = |call| by(moves, &dev.queue, call, &dev.trees, &partial, rows_of_rank, plan);
            return self.call_nccl("reduce_scatter", count, run);
        }
        let Some(peers) = self.reducing(plan) else {
            return self.of_host(|host| host.reduce_scatter(dev, partial, rows_of_rank, plan));
        };
        let partial = self.nodes(dev, partial, rows, plan);
        let tree = dev.trees.get(&dev.queue, plan);
        if self.wire == WireDType::Float32 {
            let count = count_reduction(4 * partial.len() as u64);
            let run = || peers.reduce_scatter(&dev.queue, &tree, &partial, rows_of_rank, plan);
            return self.call(REDUCE_SCATTER, peers, count, run);
        }
        let end = |rank: usize| rows_of_rank[..rank].iter().sum::<usize>() * cols;
        let slices = (0..rows_of_rank.len()).map(|rank| end(rank)..end(rank + 1)).collect();
        let longest = rows_of_rank.iter().map(|&rows| dev.queue.filled_up(rows) * cols).max().unwrap_or(0);
        let of = CompressedSum { wire: self.wire, plan, tree: &tree, partial: &partial, slices, longest };
        let count = count_reduction(of.bytes(self.rank(), false));
        let out = dev.queue.tensor(rows_of_rank[self.rank()], cols);
        self.call(REDUCE_SCATTER, peers, count, || peers.reduce_compressed(&dev.queue, &of, false, out))
    }

    fn all_gather(
        &self,
        dev: &CudaDevice,
        part: &CudaTensor,
        rows_of_rank: &[usize],
    ) -> Result<CudaTensor, CollectiveError> {
        assert_eq!(rows_of_rank.len(), self.size(), "a number of rows for each rank");
        assert_eq!(part.rows, rows_of_rank[self.rank()], "rank {} brings its rows", self.rank());
        let count = |own: &mut CollectiveStats| own.other_calls += 1;
        if let Some(moves) = self.nccl() {
            let run = |call| moves.all_gather(&dev.queue, call, part, rows_of_rank);
            return self.call_nccl("all_gather", count, run);
        }
        let Some(peers) = self.peers() else {
            return self.of_host(|host| host.all_gather(dev, part, rows_of_rank));
        };
        self.call(ALL_GATHER, peers, count, || peers.all_gather(&dev.queue, part, rows_of_rank))
    }

    fn all_gather_alike(&self, dev: &CudaDevice, part: &CudaTensor) -> Result<CudaTensor, CollectiveError> {
        let count = |own: &mut CollectiveStats| own.other_calls += 1;
        if let Some(moves) = self.nccl() {
            let run = |call| moves.all_gather_alike(&dev.queue, call, part);
            return self.call_nccl("all_gather", count, run);
        }
        let Some(peers) = self.peers() else {
            return self.of_host(|host| host.all_gather_alike(dev, part));
        };
        self.call(ALL_GATHER, peers, count, || peers.all_gather_alike(&dev.queue, part))
    }

    fn all_to_all(
        &self,
        dev: &CudaDevice,
        x: &CudaTensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<CudaTensor, CollectiveError> {
        let (rank, ranks) = (self.rank(), self.size());
        assert_eq!(
            [rows_to.len(), rows_from.len()],
            [ranks; 2],
            "numbers of rows for each rank, and of each"
        );
        assert_eq!(rows_to[rank], rows_from[rank], "what a rank sends itself it receives");
        assert_eq!(x.rows, rows_to.iter().sum(), "rank {rank} brings the rows that it sends");
        let sent = x.rows - rows_to[rank];
        let count = |own: &mut CollectiveStats| {
            own.other_calls += 1;
            own.sent_bytes += 4 * (sent * x.cols) as u64;
        };
        if let Some(moves) = self.nccl() {
            let run = |call| moves.all_to_all(&dev.queue, call, x, rows_to, rows_from);
            return self.call_nccl("all_to_all", count, run);
        }
        let Some(peers) = self.peers() else {
            return self.of_host(|host| host.all_to_all(dev, x, rows_to, rows_from));
        };
        self.call(ALL_TO_ALL, peers, count, || peers.all_to_all(&dev.queue, x, rows_to, rows_from))
    }

    fn sizes_by_numbers(&self) -> bool {
        false
    }

    /// Others may wait for it: it is handed to the GPU at once.
    fn send(&self, dev: &CudaDevice, x: &CudaTensor, to: usize) -> Result<(), CollectiveError> {
        let count = |own: &mut CollectiveStats| own.sent_bytes += 4 * x.len() as u64;
        if let Some(moves) = self.nccl() {
            return self.message_nccl("send", to, count, |call| moves.send(&dev.queue, call, x, to));
        }
        let Some(peers) = self.peers() else { return self.host.send(dev, x, to) };
        let run = || {
            peers.send(&dev.queue, x, to, self.deadline);
            dev.queue.flush();
        };
        self.message(SEND, peers, to, count, run)
    }

    /// It is waited for on the GPU: who reads what is made of it hears of a rank that did not come. Without a deadline that is after ten
    /// of the group's, and at least five minutes; over NCCL after one.
    fn recv(
        &self,
        dev: &CudaDevice,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<CudaTensor, CollectiveError> {
        if let Some(moves) = self.nccl() {
            return self.message_nccl(
                "recv",
                from,
                |_| (),
                |call| moves.recv(&dev.queue, call, from, [rows, cols]),
            );
        }
        let Some(peers) = self.peers() else { return self.host.recv(dev, from, rows, cols, deadline) };
        let patience = deadline.unwrap_or_else(|| patience(self.deadline));
        self.patience.set(patience);
        self.message(RECV, peers, from, |_| (), || peers.recv(&dev.queue, from, [rows, cols], patience))
    }
}

impl<C: Collective<Reference>> CudaGroup<C> {
    /// NVIDIA's library, if reductions go over it.
    fn moving(&self) -> Option<&Moves<NcclPath>> {
        self.nccl().filter(|_| self.wire == WireDType::Float32)
    }

    /// The ranks' memory, if reductions of a plan go through it.
    fn reducing(&self, plan: &ReducePlan) -> Option<&Peers> {
        let goes = |peers: &&Peers| match self.wire {
            WireDType::Float32 => true,
            wire => peers.compresses(wire, plan),
        };
        self.peers().filter(goes)
    }

    /// What this rank brings, each node filled up for itself.
    fn nodes(&self, dev: &CudaDevice, partial: CudaTensor, rows: usize, plan: &ReducePlan) -> CudaTensor {
        assert_eq!(plan.nodes_of_rank.len(), self.size(), "a plan for the group's ranks");
        let (rank, nodes) = (self.rank(), plan.nodes_of_rank[self.rank()]);
        assert_eq!(partial.rows, nodes * rows, "rank {rank} brings the nodes that it owns");
        dev.queue.in_parts(partial, nodes, rows)
    }
}

fn count_reduction(bytes: u64) -> impl FnOnce(&mut CollectiveStats) {
    move |own| {
        own.all_reduce_calls += 1;
        own.all_reduce_bytes += bytes;
    }
}
