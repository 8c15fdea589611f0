//! The two shots: every rank sums a slice of the elements out of everybody's compressed nodes, then the slices' sums,
//! compressed, go to everybody.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tensor::HostDevice;

use super::codec::{GROUP, WireDType};
use crate::finish::Finish;
use crate::{Collective, CollectiveError, ReducePlan};

/// Values that are worked on at once, so that those of all nodes stay in the nearest cache. Whole groups.
const PIECE: usize = 16 * GROUP;
/// Values up to this many stay on the caller: waking a pool costs more.
const SERIAL: usize = 16 * PIECE;

/// One reduction.
pub(super) struct Exchange<'a, D: HostDevice, C> {
    pub inner: &'a C,
    pub dev: &'a D,
    pub dtype: WireDType,
    pub plan: &'a ReducePlan,
    pub finish: &'a Finish,
    /// Elements of a node.
    pub elements: usize,
    /// The elements that each rank sums.
    pub slices: Vec<Range<usize>>,
}

/// Where an item of the tree is: this rank's own node, or one that came, from this word on.
#[derive(Clone, Copy)]
enum Item {
    Own(usize),
    Came(usize),
}

impl<D: HostDevice, C: Collective<D>> Exchange<'_, D, C> {
    /// Writes the sums of this rank's slice to `out`. Gives the words that were sent.
    pub fn sum_own_slice(&self, partial: &D::Tensor, out: &mut [f32]) -> Result<usize, CollectiveError> {
        let (dev, me) = (self.dev, self.inner.rank());
        let nodes = &self.plan.nodes_of_rank;
        let words = |rank: usize| self.dtype.words(self.slices[rank].len());
        let ranks = || 0..nodes.len();
        let to: Vec<usize> = ranks().map(|r| if r == me { 0 } else { nodes[me] * words(r) }).collect();
        let from: Vec<usize> = ranks().map(|r| if r == me { 0 } else { nodes[r] * words(me) }).collect();
        let mut send = dev.alloc(to.iter().sum(), 1);
        let own = dev.as_slice(partial);
        let mut rest = dev.as_mut_slice(&mut send);
        for rank in ranks().filter(|&r| r != me) {
            for node in 0..nodes[me] {
                let (part, tail) = rest.split_at_mut(words(rank));
                self.encode(&own[node * self.elements..][self.slices[rank].clone()], part);
                rest = tail;
            }
        }
        let came = self.inner.all_to_all(dev, &send, &to, &from)?;
        self.finish(own, dev.as_slice(&came), out);
        Ok(to.iter().sum())
    }

    /// Gives every rank the sums of all slices, out of `out`'s own slice. Gives the words that were sent.
    pub fn share_sums(&self, out: &mut [f32]) -> Result<usize, CollectiveError> {
        let (dev, me) = (self.dev, self.inner.rank());
        let words: Vec<usize> = self.slices.iter().map(|s| self.dtype.words(s.len())).collect();
        let mut part = dev.alloc(words[me], 1);
        self.encode(&out[self.slices[me].clone()], dev.as_mut_slice(&mut part));
        let all = self.inner.all_gather(dev, &part, &words)?;
        // A rank's own slice too: all ranks must go on with the same bits.
        let mut rest = dev.as_slice(&all);
        for (slice, &words) in self.slices.iter().zip(&words) {
            let (part, tail) = rest.split_at(words);
            self.decode(part, &mut out[slice.clone()]);
            rest = tail;
        }
        Ok(words[me])
    }

    fn encode(&self, values: &[f32], words: &mut [f32]) {
        let dtype = self.dtype;
        spread(self.dev, words, dtype.words(PIECE), values.len(), &|piece, words: &mut [f32], _| {
            let start = piece * PIECE;
            dtype.encode(&values[start..(start + PIECE).min(values.len())], words);
        });
    }

    fn decode(&self, words: &[f32], values: &mut [f32]) {
        let (dtype, len) = (self.dtype, values.len());
        spread(self.dev, values, PIECE, len, &|piece, values: &mut [f32], _| {
            dtype.decode(&words[piece * dtype.words(PIECE)..][..dtype.words(values.len())], values);
        });
    }

    /// Runs the tree over own nodes and those that came.
    fn finish(&self, own: &[f32], came: &[f32], out: &mut [f32]) {
        let (me, dtype, finish, elements) = (self.inner.rank(), self.dtype, self.finish, self.elements);
        let (first, words) = (self.slices[me].start, dtype.words(out.len()));
        let mut place = 0;
        let item = |(rank, node): (usize, usize)| match rank == me {
            true => Item::Own(node * elements + first),
            false => {
                place += words;
                Item::Came(place - words)
            }
        };
        let owners = self.plan.nodes_of_rank.iter().enumerate();
        let items: Vec<Item> =
            owners.flat_map(|(rank, &nodes)| (0..nodes).map(move |node| (rank, node))).map(item).collect();
        let work = items.len() * out.len();
        spread(self.dev, out, PIECE, work, &|piece, out: &mut [f32], values: &mut Vec<f32>| {
            values.resize(items.len() * PIECE, 0.0);
            let start = piece * PIECE;
            for (item, values) in items.iter().zip(values.chunks_mut(PIECE)) {
                if let Item::Came(word) = item {
                    let word = word + piece * dtype.words(PIECE);
                    dtype.decode(&came[word..][..dtype.words(out.len())], &mut values[..out.len()]);
                }
            }
            finish.run(0..out.len(), out, |i, range| {
                Some(match items[i] {
                    Item::Own(at) => &own[at + start..][range],
                    Item::Came(_) => &values[i * PIECE..][range],
                })
            });
        });
    }
}

/// What is done with one part: its number, the part, and memory that it may use.
type Work<'a> = dyn Fn(usize, &mut [f32], &mut Vec<f32>) + Sync + 'a;

/// Calls `work(piece, part, scratch)` for the parts of `out`, each `len` long but the last, on the device's threads if
/// `values` are many.
fn spread<D: HostDevice>(dev: &D, out: &mut [f32], len: usize, values: usize, work: &Work<'_>) {
    if values <= SERIAL {
        let mut scratch = Vec::new();
        return out.chunks_mut(len).enumerate().for_each(|(piece, part)| work(piece, part, &mut scratch));
    }
    let parts: Vec<_> = out.chunks_mut(len).map(Mutex::new).collect();
    dev.parallel(parts.len(), 1, &|range| {
        let mut scratch = Vec::new();
        for piece in range {
            // Nobody else has this piece: the lock only tells the compiler so.
            let mut part = parts[piece].lock().unwrap_or_else(PoisonError::into_inner);
            work(piece, &mut part, &mut scratch);
        }
    });
}
