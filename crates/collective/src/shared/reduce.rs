//! `all_reduce` and `reduce_scatter`, in pieces of elements. Which piece or thread an element falls into does not change its sum.
//!
//! * One shot: every rank puts its nodes into its slot, reads everybody's and sums all elements for itself. One step,
//!   the least latency.
//! * Two shots, from three ranks on and for large payloads: every rank sums a slice of the elements, then the
//!   slices are exchanged. A rank reads each node of others once in `ranks`, for one more step.
//!
//! A reduce-scatter is one shot of which every rank sums only its own rows.

use std::ops::Range;

use tensor::HostDevice;

use super::channel::{Call, Channel, Op, Peers};
use super::shards::Shards;
use crate::finish::Finish;
use crate::{CollectiveError, ReducePlan};

/// Payloads up to this many bytes stay on the caller: waking a pool costs more.
const SERIAL_BYTES: usize = 64 << 10;
/// Fewest elements that a thread of the pool gets.
const GRAIN: usize = 4096;
/// All nodes together, in bytes, from which two shots are faster than one.
const TWO_SHOT_BYTES: usize = 256 << 10;

/// Memory that one call leaves for the next.
#[derive(Default)]
pub(super) struct Scratch {
    finish: Finish,
}

/// A device's [`HostDevice::parallel`].
pub(super) type Parallel<'a> = &'a dyn Fn(usize, usize, &(dyn Fn(Range<usize>) + Sync));

/// What one call works on.
struct Reduce<'a> {
    parallel: Parallel<'a>,
    call: &'a Call,
    finish: &'a Finish,
    plan: &'a ReducePlan,
    rank: usize,
    /// Elements of a node.
    elements: usize,
    /// This rank's nodes; `None`: its only node lies where the sum will be.
    own: Option<&'a [f32]>,
    /// The elements that this rank sums, of which the sums are wanted.
    wanted: Range<usize>,
}

pub(super) fn all_reduce<D: HostDevice>(
    channel: &mut Channel,
    call: &Call,
    scratch: &mut Scratch,
    dev: &D,
    partial: D::Tensor,
    rows: usize,
    plan: &ReducePlan,
) -> Result<D::Tensor, CollectiveError> {
    let (rank, ranks) = (channel.rank(), channel.size());
    let [have, cols] = dev.shape(&partial);
    assert_eq!(plan.nodes_of_rank.len(), ranks, "a plan for the group's ranks");
    assert_eq!(have, plan.nodes_of_rank[rank] * rows, "rank {rank} brings the nodes that it owns");
    // A single node has the shape of the sum, which then takes its place: one buffer less to pass over.
    let (partial, mut out) = match plan.nodes_of_rank[rank] {
        1 => (None, partial),
        _ => (Some(partial), dev.alloc(rows, cols)),
    };
    let own = partial.as_ref().map(|p| dev.as_slice(p));
    let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
    reduce(channel, call, scratch, parallel, own, dev.as_mut_slice(&mut out), 0..rows * cols, plan)?;
    Ok(out)
}

pub(super) fn reduce_scatter<D: HostDevice>(
    channel: &mut Channel,
    call: &Call,
    scratch: &mut Scratch,
    dev: &D,
    partial: D::Tensor,
    rows_of_rank: &[usize],
    plan: &ReducePlan,
) -> Result<D::Tensor, CollectiveError> {
    let (rank, ranks) = (channel.rank(), channel.size());
    let [have, cols] = dev.shape(&partial);
    assert_eq!((plan.nodes_of_rank.len(), rows_of_rank.len()), (ranks, ranks), "for the group's ranks");
    let rows: usize = rows_of_rank.iter().sum();
    assert_eq!(have, plan.nodes_of_rank[rank] * rows, "rank {rank} brings the nodes that it owns");
    let first: usize = rows_of_rank[..rank].iter().sum();
    let wanted = first * cols..(first + rows_of_rank[rank]) * cols;
    let mut out = dev.alloc(rows_of_rank[rank], cols);
    let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
    let own = Some(dev.as_slice(&partial));
    reduce(channel, call, scratch, parallel, own, dev.as_mut_slice(&mut out), wanted, plan)?;
    Ok(out)
}

/// The same over slices: `own` holds this rank's nodes, or `out` does if it has but one. `out` gets the sums of the
/// elements `wanted`.
#[allow(clippy::too_many_arguments)] // what two functions have in common
fn reduce(
    channel: &mut Channel,
    call: &Call,
    scratch: &mut Scratch,
    parallel: Parallel<'_>,
    own: Option<&[f32]>,
    out: &mut [f32],
    wanted: Range<usize>,
    plan: &ReducePlan,
) -> Result<(), CollectiveError> {
    let nodes: usize = plan.nodes_of_rank.iter().sum();
    assert_eq!(plan.finish.merges.len(), nodes, "a plan whose items are the ranks' nodes");
    channel.begin(call.op)?;
    scratch.finish.set(&plan.finish);
    let (rank, elements) = (channel.rank(), call.size);
    let reduce = Reduce { parallel, call, finish: &scratch.finish, plan, rank, elements, own, wanted };
    reduce.run(channel, out, nodes)
}

impl Reduce<'_> {
    fn run(&self, channel: &mut Channel, out: &mut [f32], nodes: usize) -> Result<(), CollectiveError> {
        let ranks = channel.size();
        let large = nodes * self.elements * size_of::<f32>() > TWO_SHOT_BYTES;
        let two_shots = ranks > 2 && large && self.call.op == Op::AllReduce;
        let most_nodes = self.plan.nodes_of_rank.iter().max().copied().unwrap_or(1).max(1);
        let piece = channel.slot_len() / most_nodes;
        assert!(piece > 0, "a slot holds one element of each of {most_nodes} nodes");
        for start in (0..self.elements).step_by(piece) {
            let piece = start..(start + piece).min(self.elements);
            channel.rotate(most_nodes * piece.len());
            match two_shots {
                false => self.one_shot(channel, out, piece)?,
                true => self.two_shots(channel, out, piece, ranks)?,
            }
        }
        Ok(())
    }

    fn one_shot(
        &self,
        channel: &mut Channel,
        out: &mut [f32],
        piece: Range<usize>,
    ) -> Result<(), CollectiveError> {
        let wanted = overlap(&self.wanted, &piece);
        // What a rank alone wants, nobody reads in its slot.
        let alone = self.call.op == Op::ReduceScatter && !wanted.is_empty();
        let kept = if alone { wanted.clone() } else { piece.end..piece.end };
        self.put(channel.slot()?, out, &piece, kept);
        let peers = channel.publish(self.call, 0)?;
        if !wanted.is_empty() {
            let at = wanted.start - self.wanted.start;
            self.sum(&peers, &mut out[at..at + wanted.len()], &piece, wanted);
        }
        Ok(())
    }

    fn two_shots(
        &self,
        channel: &mut Channel,
        out: &mut [f32],
        piece: Range<usize>,
        ranks: usize,
    ) -> Result<(), CollectiveError> {
        let slice = |rank| slice_of(&piece, rank, ranks);
        let mine = slice(self.rank);
        self.put(channel.slot()?, out, &piece, mine.clone());
        let peers = channel.publish(self.call, 0)?;
        self.sum(&peers, &mut out[mine.clone()], &piece, mine.clone());

        let slot = &mut channel.slot()?[..mine.len()];
        copy(self.parallel, slot, &out[mine]);
        let peers = channel.publish(self.call, 0)?;
        for rank in (0..ranks).filter(|&r| r != self.rank) {
            let slice = slice(rank);
            let len = slice.len();
            copy(self.parallel, &mut out[slice], &peers.slot(rank)[..len]);
        }
        Ok(())
    }

    /// Puts a piece of every node of this rank into its slot, but for the elements `except`, which only we read.
    fn put(&self, slot: &mut [f32], out: &[f32], piece: &Range<usize>, except: Range<usize>) {
        for node in 0..self.plan.nodes_of_rank[self.rank] {
            let own = match self.own {
                Some(own) => &own[node * self.elements..][..self.elements],
                None => out,
            };
            let slot = &mut slot[node * piece.len()..][..piece.len()];
            for part in [piece.start..except.start, except.end..piece.end] {
                copy(self.parallel, &mut slot[part.start - piece.start..part.end - piece.start], &own[part]);
            }
        }
    }

    /// Sums the elements `range` of a piece into `out`.
    fn sum(&self, peers: &Peers<'_>, out: &mut [f32], piece: &Range<usize>, range: Range<usize>) {
        // The device need not be `Sync`: its threads get only what they read.
        let (own, owners, me, elements) = (self.own, &self.plan.nodes_of_rank, self.rank, self.elements);
        let item = |item: usize, r: Range<usize>| {
            let (rank, node) = owner(owners, item);
            match own {
                _ if rank != me => {
                    let at = node * piece.len() + r.start - piece.start;
                    Some(&peers.slot(rank)[at..at + r.len()])
                }
                Some(own) => Some(&own[node * elements..][r]),
                None => None,
            }
        };
        let (finish, start) = (self.finish, range.start);
        let bytes = range.len() * self.plan.finish.merges.len() * size_of::<f32>();
        let out = Shards::new(out);
        spread(self.parallel, range.len(), bytes, &|part| {
            // SAFETY: `parallel` calls with ranges that do not overlap.
            let out = unsafe { out.range(part.clone()) };
            finish.run(start + part.start..start + part.end, out, item);
        });
    }
}

/// The rank and its node that an item of a plan is.
fn owner(nodes_of_rank: &[usize], mut item: usize) -> (usize, usize) {
    for (rank, &nodes) in nodes_of_rank.iter().enumerate() {
        if item < nodes {
            return (rank, item);
        }
        item -= nodes;
    }
    unreachable!("a plan's items are the ranks' nodes")
}

/// The elements of a piece that a rank sums; they begin at cache lines.
fn slice_of(piece: &Range<usize>, rank: usize, ranks: usize) -> Range<usize> {
    let len = piece.len().div_ceil(ranks).next_multiple_of(16);
    let at = |rank: usize| piece.start + (rank * len).min(piece.len());
    at(rank)..at(rank + 1)
}

/// What two ranges have in common; an empty range inside the first if nothing.
pub(super) fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start).min(a.end);
    start..a.end.min(b.end).max(start)
}

/// Runs `work` over `0..items`, on the device's threads if it is worth while.
fn spread(parallel: Parallel<'_>, items: usize, bytes: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    match bytes <= SERIAL_BYTES {
        true => work(0..items),
        false => parallel(items, GRAIN, work),
    }
}

/// Copies, on the device's threads if it is worth while.
pub(super) fn copy<T: Copy + Send + Sync>(parallel: Parallel<'_>, to: &mut [T], from: &[T]) {
    assert_eq!(to.len(), from.len(), "a copy of the whole slice");
    let to = Shards::new(to);
    spread(parallel, from.len(), size_of_val(from), &|part| {
        // SAFETY: `parallel` calls with ranges that do not overlap.
        unsafe { to.range(part.clone()) }.copy_from_slice(&from[part]);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tensor::ReductionTree;

    use super::*;
    use crate::shared::layout::Layout;
    use crate::shared::region::Region;

    /// Two threads, uneven parts.
    fn two_threads(items: usize, grain: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        let first = (items / 3).next_multiple_of(grain).min(items);
        std::thread::scope(|scope| {
            scope.spawn(|| work(0..first));
            work(first..items);
        });
    }

    #[test]
    fn ranks_with_threads_of_their_own_give_the_bits_of_one() {
        let value = |leaf: usize, e: usize| {
            ((leaf * 7919 + e * 104_729) % 1009) as f32 * 1.1f32.powi(leaf as i32 * 9)
        };
        let tree = ReductionTree::over_heads(6, 4);
        let elements = 300_001;
        let expected: Vec<f32> =
            (0..elements).map(|e| tree.program(0..6).run(|leaf| value(leaf, e))[0]).collect();
        for leaves in [vec![0..3, 3..6], vec![0..2, 2..4, 4..6], vec![0..0, 0..5, 5..6]] {
            let nodes_of_rank = leaves.iter().map(|l| tree.cover(l.clone()).len()).collect();
            let plan = ReducePlan { nodes_of_rank, finish: tree.finish(&leaves) };
            let region = Region::for_threads(Layout::new(leaves.len(), 1 << 20)).expect("memory");
            let region = Arc::new(region);
            std::thread::scope(|scope| {
                for (rank, leaves) in leaves.iter().cloned().enumerate() {
                    let (region, plan, tree, expected) = (region.clone(), &plan, &tree, &expected);
                    scope.spawn(move || {
                        let mut channel = Channel::new(region, rank, Duration::ZERO);
                        let program = tree.program(leaves.clone());
                        let sums: Vec<_> =
                            (0..elements).map(|e| program.run(|i| value(leaves.start + i, e))).collect();
                        let nodes: Vec<f32> = (0..program.num_nodes())
                            .flat_map(|node| sums.iter().map(move |s| s[node]))
                            .collect();
                        let (own, mut out) = match program.num_nodes() {
                            1 => (None, nodes),
                            _ => (Some(nodes), vec![f32::NAN; elements]),
                        };
                        let call = Call { op: Op::AllReduce, size: elements, deadline: None };
                        let mut scratch = Scratch::default();
                        reduce(
                            &mut channel,
                            &call,
                            &mut scratch,
                            &two_threads,
                            own.as_deref(),
                            &mut out,
                            0..elements,
                            plan,
                        )
                        .expect("all ranks are here");
                        assert!(
                            out.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                            "{leaves:?}"
                        );
                    });
                }
            });
        }
    }
}
