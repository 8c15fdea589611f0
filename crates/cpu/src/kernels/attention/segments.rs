//! Attention in two halves, for ranks that share a KV cache by position: each does the segments that are here, and
//! merges what all did for its query heads.
//!
//! Of the first half an item is some rows, the query heads of one KV head and one segment; of the second, one row
//! and query head.

use std::ops::Range;

use tensor::lanes::Lanes;
use tensor::{AttentionSpec, KV_BLOCK, KvShare, SEGMENT, SequenceSpan, math, seen_segments};

use super::state::State;
use super::{Item, Job, QUERIES, queries};
use crate::buffer::Disjoint;
use crate::kernels::cache::CpuKv;
use crate::kernels::{Exec, grain};
use crate::simd::{F32x16, Kernel, LANES};

/// A block that is another owner's, in a table of those that are here.
const ELSEWHERE: u32 = u32::MAX;

/// The segments here that rows see, in the order of [`tensor::Device::attention_segments`].
pub(crate) struct Own {
    rows: Range<usize>,
    /// Of each row, where its segments begin; at the end, how many there are.
    starts: Vec<usize>,
    segments: Vec<usize>,
}

impl Own {
    pub(crate) fn new(
        share: KvShare,
        sequences: &[SequenceSpan],
        window: Option<usize>,
        rows: Range<usize>,
    ) -> Self {
        let (mut starts, mut segments) = (vec![0; rows.len() + 1], Vec::new());
        for seen in seen_segments(sequences, window, rows.clone()) {
            if share.local(seen.block).is_some() {
                segments.push(seen.segment);
                starts[seen.row - rows.start + 1] += 1;
            }
        }
        for row in 0..rows.len() {
            starts[row + 1] += starts[row];
        }
        Own { rows, starts, segments }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    /// Which of them a row's segment is, if the row sees something of it.
    fn place(&self, row: usize, segment: usize) -> Option<usize> {
        let row = row - self.rows.start;
        let of_row = self.starts[row]..self.starts[row + 1];
        let at = self.segments[of_row.clone()].binary_search(&segment).ok()?;
        Some(of_row.start + at)
    }
}

/// `q [t, num_heads · head_dim]`, `out [num_heads · own.len(), 2 + head_dim]`.
pub(crate) fn attention_segments(
    exec: &Exec,
    q: &[f32],
    kv: &CpuKv,
    sequences: &[SequenceSpan],
    spec: &AttentionSpec,
    own: &Own,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    let here = sequences.iter().map(|sequence| SequenceSpan {
        block_table: sequence
            .block_table
            .iter()
            .map(|&b| kv.spec.share.local(b).unwrap_or(ELSEWHERE))
            .collect(),
        ..sequence.clone()
    });
    let here: Vec<SequenceSpan> = here.collect();
    let job = Job::new(q, spec.num_heads * spec.head_dim, kv, &here, spec);
    let mut items: Vec<Item> = job
        .items(QUERIES, own.rows.clone())
        .iter()
        .flat_map(Item::by_segment)
        .filter(|i| job.is_here(i))
        .collect();
    items.reverse();
    let out = Disjoint::new(out);
    job.run(exec, &items, job.most_queries(&items), |item, total| {
        // SAFETY: each item has rows, heads and a segment of its own.
        unsafe { job.write(&items[item], own, total, &out) };
    });
}

impl Job<'_> {
    /// Whether the one segment of an item is here.
    fn is_here(&self, item: &Item) -> bool {
        let seen = self.visible(self.position(item.sequence, item.rows.start)).start;
        let first = seen.max(item.segments.start * SEGMENT);
        self.sequences[item.sequence].block_table[first / KV_BLOCK] != ELSEWHERE
    }

    /// `[m, l, o]` of the queries that see something of an item's one segment.
    ///
    /// # Safety
    /// Nobody else may write the rows, heads and segment of `item`.
    unsafe fn write(&self, item: &Item, own: &Own, total: &mut State<'_>, out: &Disjoint<'_, f32>) {
        let width = 2 + self.spec.head_dim;
        let heads = self.heads_of(item.kv_head);
        for (query, (row, head)) in queries(item, &heads).enumerate() {
            let Some(place) = own.place(row, item.segments.start) else { continue };
            let at = (head * own.len() + place) * width;
            // SAFETY: the caller's.
            let out = unsafe { out.part(at..at + width) };
            let (m, l, o) = total.query(query);
            out[..2].copy_from_slice(&[*m, *l]);
            out[2..].copy_from_slice(&o[..self.spec.head_dim]);
        }
    }
}

/// `parts [num_heads · seen, 2 + head_dim]`, one owner's after the other's; `out [rows.len(), num_heads · head_dim]`.
pub(crate) fn merge_segments(
    exec: &Exec,
    parts: &[f32],
    owners: usize,
    sequences: &[SequenceSpan],
    spec: &AttentionSpec,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let (heads, head_dim, isa) = (spec.num_heads, spec.head_dim, exec.isa);
    // Of each segment its owner, and which it is of the owner's; a row's lie side by side.
    let (mut starts, mut segments, mut of_owner) = (vec![0; rows.len() + 1], Vec::new(), vec![0; owners]);
    for seen in seen_segments(sequences, spec.window, rows.clone()) {
        let owner = seen.owner(owners);
        segments.push((owner, of_owner[owner]));
        of_owner[owner] += 1;
        starts[seen.row - rows.start + 1] = segments.len();
    }
    assert_eq!(parts.len(), heads * segments.len() * (2 + head_dim), "all owners' parts");
    let firsts = of_owner.iter().scan(0, |sum, n| Some(std::mem::replace(sum, *sum + heads * n)));
    let firsts: Vec<usize> = firsts.collect();
    let part = |head: usize, &(owner, index): &(usize, usize)| {
        let at = (firsts[owner] + head * of_owner[owner] + index) * (2 + head_dim);
        &parts[at..at + 2 + head_dim]
    };
    let cost = head_dim * segments.len().div_ceil(rows.len().max(1)) * 4;
    exec.pool.split_mut(out, head_dim, grain(cost), |first, out| {
        for (i, out) in out.chunks_mut(head_dim).enumerate() {
            let (row, head) = ((first + i) / heads, (first + i) % heads);
            let mut of_row = segments[starts[row]..starts[row + 1]].iter().map(|place| part(head, place));
            let begin = of_row.next().expect("a row sees at least itself");
            let (mut m, mut l) = (begin[0], begin[1]);
            out.copy_from_slice(&begin[2..]);
            for next in of_row {
                let new = Lanes::max(m, next[0]);
                let (c1, c2) = (math::exp(m - new), math::exp(next[0] - new));
                (m, l) = (new, l.fma(c1, next[1] * c2));
                isa.run(Join { o: out, next: &next[2..], c1, c2 });
            }
            out.iter_mut().for_each(|o| *o /= l);
        }
    });
}

/// `o = fma(o, c1, next · c2)`.
struct Join<'a> {
    o: &'a mut [f32],
    next: &'a [f32],
    c1: f32,
    c2: f32,
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let (o, o_tail) = self.o.as_chunks_mut::<LANES>();
        let (next, next_tail) = self.next.as_chunks::<LANES>();
        for (o, next) in o.iter_mut().zip(next) {
            V::load(o).fma(V::splat(self.c1), V::load(next).mul(V::splat(self.c2))).store(o);
        }
        for (o, next) in o_tail.iter_mut().zip(next_tail) {
            *o = o.fma(self.c1, next * self.c2);
        }
    }
}
