//! `all_reduce` and `reduce_scatter`: whoever sums an element has all nodes of it, and runs the tree's program.
//!
//! * Direct: every rank sends its nodes to all and sums all elements for itself. One delay.
//! * Two phases: every rank gets all nodes of a slice of the elements and sums those, then the sums are gathered. Two
//!   delays, but a rank sends each of its nodes once in all, not once to everybody.
//!
//! Halving recursively (nodes of a subtree are added on the way) is left out: it needs a delay for each level,
//! twice, and moves as many bytes as two phases do.

use std::ops::Range;
use std::sync::Mutex;

use super::gather::{all_gather, cut};
use super::team::Team;
use super::{Call, Wire};
use crate::finish::Finish;
use crate::{CollectiveError, ReducePlan};

/// Bytes that two phases must save a rank to be worth another delay: some 50 µs on a link of 25 Gbit/s.
const TWO_PHASES_SAVE_BYTES: usize = 128 << 10;
/// Payloads up to this many bytes are summed by the caller: waking a pool costs more.
const SERIAL_BYTES: usize = 64 << 10;
/// Elements that a thread sums at a time.
const GRAIN: usize = 8192;

/// A device's [`tensor::HostDevice::parallel`].
pub(crate) type Parallel<'a> = &'a dyn Fn(usize, usize, &(dyn Fn(Range<usize>) + Sync));

/// Memory that one call leaves for the next.
#[derive(Default)]
pub(crate) struct Scratch {
    finish: Finish,
    /// The others' nodes.
    nodes: Vec<f32>,
}

/// What one call works on.
pub(crate) struct Reduce<'a, W> {
    pub team: &'a Team<'a, W>,
    pub call: &'a Call,
    pub parallel: Parallel<'a>,
    pub plan: &'a ReducePlan,
    /// Elements of a node.
    pub elements: usize,
}

impl<W: Wire> Reduce<'_, W> {
    /// Sums all elements on every rank. `own` holds this rank's nodes, or `out` does if it has but one.
    pub fn all(
        &self,
        scratch: &mut Scratch,
        own: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        if !self.two_phases() {
            self.collect(scratch, own.unwrap_or(&*out), &|_| 0..self.elements)?;
            self.sum(scratch, own, out, 0..self.elements);
            return Ok(());
        }
        let slices = slices(self.elements, self.team.len());
        let mine = slices[self.team.me].clone();
        self.collect(scratch, own.unwrap_or(&*out), &|r| slices[r].clone())?;
        self.sum(scratch, own, &mut out[mine.clone()], mine);
        let mut parts = cut(out, slices.iter().map(Range::len));
        all_gather(self.team, self.call, &mut parts)
    }

    /// Sums this rank's elements; `slices` has those of each. `out` is for this rank's.
    pub fn scatter(
        &self,
        scratch: &mut Scratch,
        own: &[f32],
        out: &mut [f32],
        slices: &[Range<usize>],
    ) -> Result<(), CollectiveError> {
        self.collect(scratch, own, &|r| slices[r].clone())?;
        self.sum(scratch, Some(own), out, slices[self.team.me].clone());
        Ok(())
    }

    /// What all ranks decide alike: whether the busiest of them would send that much less.
    fn two_phases(&self) -> bool {
        let (n, bytes) = (self.team.len(), self.elements * size_of::<f32>());
        let most = self.plan.nodes_of_rank.iter().max().copied().unwrap_or(0);
        let directly = most * bytes * (n - 1);
        n > 1 && directly.saturating_sub((most + 1) * bytes / n * (n - 1)) > TWO_PHASES_SAVE_BYTES
    }

    /// Sends each rank its slice of our nodes, and puts the others' nodes of our slice into the scratch, one after
    /// the other.
    fn collect(
        &self,
        scratch: &mut Scratch,
        own: &[f32],
        slice: &dyn Fn(usize) -> Range<usize>,
    ) -> Result<(), CollectiveError> {
        let (team, plan) = (self.team, self.plan);
        assert_eq!(plan.finish.merges.len(), plan.nodes_of_rank.iter().sum(), "items are the ranks' nodes");
        scratch.finish.set(&plan.finish);
        let len = slice(team.me).len();
        let theirs: usize = team.others().map(|r| plan.nodes_of_rank[r]).sum();
        scratch.nodes.resize(theirs * len, 0.0);

        let mut sends = Vec::with_capacity(team.len() * 2);
        for r in team.others() {
            let slice = slice(r);
            let node = |node: usize| &own[node * self.elements..][slice.clone()];
            match plan.nodes_of_rank[team.me] {
                // Ranks wait for each other also where nothing is to be sent.
                0 => sends.push(team.to(r, &[])),
                // Whole nodes lie side by side.
                nodes if slice.len() == self.elements => {
                    sends.push(team.to(r, bytemuck::cast_slice(&own[..nodes * self.elements])));
                }
                nodes => sends.extend((0..nodes).map(|n| team.to(r, bytemuck::cast_slice(node(n))))),
            }
        }
        let mut receives = Vec::with_capacity(sends.len());
        let mut rest = &mut scratch.nodes[..];
        for r in (0..team.len()).filter(|&r| r != team.me) {
            let (nodes, tail) = rest.split_at_mut(plan.nodes_of_rank[r] * len);
            rest = tail;
            match plan.nodes_of_rank[r] {
                0 => receives.push(team.from(r, &mut [])),
                _ if len == self.elements => receives.push(team.from(r, bytemuck::cast_slice_mut(nodes))),
                n if len == 0 => receives.extend((0..n).map(|_| team.from(r, &mut []))),
                _ => receives
                    .extend(nodes.chunks_mut(len).map(|node| team.from(r, bytemuck::cast_slice_mut(node)))),
            }
        }
        team.wire.exchange(self.call, &sends, &mut receives)
    }

    /// Sums the elements `range`, which `out` is for. `own: None`: it holds this rank's only node of them.
    fn sum(&self, scratch: &Scratch, own: Option<&[f32]>, out: &mut [f32], range: Range<usize>) {
        let (me, owners, elements) = (self.team.me, &self.plan.nodes_of_rank, self.elements);
        let (nodes, len, first) = (&scratch.nodes, range.len(), range.start);
        let item = |item: usize, r: Range<usize>| {
            let before: usize = owners[..me].iter().sum();
            match item.checked_sub(before) {
                Some(node) if node < owners[me] => own.map(|own| &own[node * elements..][r]),
                _ => {
                    let other = if item < before { item } else { item - owners[me] };
                    Some(&nodes[other * len..][r.start - first..r.end - first])
                }
            }
        };
        let finish = &scratch.finish;
        if out.len() * self.plan.finish.merges.len() * size_of::<f32>() <= SERIAL_BYTES {
            return finish.run(range, out, item);
        }
        let blocks: Vec<_> = out.chunks_mut(GRAIN).map(Mutex::new).collect();
        (self.parallel)(blocks.len(), 1, &|some| {
            for block in some {
                let out = &mut **blocks[block].lock().expect("each block is taken once");
                let start = first + block * GRAIN;
                finish.run(start..start + out.len(), out, item);
            }
        });
    }
}

/// Elements cut for ranks as evenly as cache lines allow.
pub(crate) fn slices(elements: usize, ranks: usize) -> Vec<Range<usize>> {
    let len = elements.div_ceil(ranks).next_multiple_of(16);
    let at = |rank: usize| (rank * len).min(elements);
    (0..ranks).map(|rank| at(rank)..at(rank + 1)).collect()
}
