//! Attention over the KV cache.
//!
//! Work is cut into items: some rows of one sequence, the query heads of one KV head, and one or all segments
//! of 1,024 positions. An item walks its tiles of 64 positions: scores of 16 positions are 16 lanes, values are
//! added row by row with lanes over head_dim. Queries that see the same positions share what is loaded.

mod products;
mod state;
mod walk;

use std::marker::PhantomData;
use std::ops::Range;

use tensor::{AttentionSpec, KV_BLOCK, SequenceSpan};

use self::state::{Merge, Scratch, State};
use self::walk::Run;
use super::Exec;
use super::cache::CpuKv;
use crate::buffer::Disjoint;
use crate::simd::with_element;

/// Positions after which the running maximum and sum are updated.
const TILE: usize = 64;
/// Positions after which a new running maximum and sum begin.
const SEGMENT: usize = 1024;
const BLOCKS: usize = TILE / KV_BLOCK;
/// Queries of an item, if the heads of one row are not more.
const QUERIES: usize = 24;

/// Some rows of a sequence and one KV head, over some segments.
#[derive(Clone, Debug)]
struct Item {
    sequence: usize,
    rows: Range<usize>,
    kv_head: usize,
    segments: Range<usize>,
}

/// What all items share.
#[derive(Clone, Copy)]
struct Job<'a> {
    qkv: &'a [f32],
    kv: &'a CpuKv,
    sequences: &'a [SequenceSpan],
    spec: &'a AttentionSpec,
}

/// `out [rows, num_heads · head_dim]`.
pub(crate) fn attention(
    exec: &Exec,
    qkv: &[f32],
    kv: &CpuKv,
    sequences: &[SequenceSpan],
    spec: &AttentionSpec,
    out: &mut [f32],
) {
    let isa = exec.isa;
    if out.is_empty() {
        return;
    }
    assert_eq!(
        (spec.num_kv_heads, spec.head_dim),
        (kv.spec.num_kv_heads, kv.spec.head_dim),
        "the cache's heads"
    );
    let job = Job { qkv, kv, sequences, spec };
    let threads = exec.pool.threads();
    let mut items = job.items(QUERIES);
    let split = items.len() < 2 * threads && items.iter().any(|item| item.segments.len() > 1);
    if split {
        items = items.iter().flat_map(Item::by_segment).collect();
    }
    // The last rows of a sequence see the most: they come first.
    items.reverse();
    let most = items.iter().map(|item| job.queries(item)).max().unwrap_or(0);
    let scratch_len = Scratch::len(most, spec.head_dim);
    let mut memory = exec.scratch::<f32>(threads * scratch_len);
    let memory = Disjoint::new(memory.as_mut_slice());
    let scratch_of = |thread: usize| {
        // SAFETY: each thread asks for its own, once per item.
        Scratch::new(
            unsafe { memory.part(thread * scratch_len..(thread + 1) * scratch_len) },
            most,
            spec.head_dim,
        )
    };
    let out = Disjoint::new(out);
    let parts = if job.cost() < 1 << 15 { 1 } else { threads };
    let run = |item: &Item, scratch: &mut Scratch<'_>| {
        with_element!(kv.spec.dtype, E => isa.run(Run::<E> { job, item, scratch, of: PhantomData }));
    };
    if !split {
        return exec.pool.take_turns(items.len(), parts, |item, thread| {
            let mut scratch = scratch_of(thread);
            run(&items[item], &mut scratch);
            // SAFETY: each item has rows and heads of its own.
            unsafe { job.finish(&items[item], &mut scratch.total, &out) };
        });
    }
    let state_len = State::len(most, spec.head_dim);
    let mut partial = exec.scratch::<f32>(items.len() * state_len);
    let partial = Disjoint::new(partial.as_mut_slice());
    // SAFETY: here and below each item has a part of its own, and only one thread works on it.
    let part = |item: usize| unsafe { partial.part(item * state_len..(item + 1) * state_len) };
    exec.pool.take_turns(items.len(), parts, |item, thread| {
        let mut scratch = scratch_of(thread);
        run(&items[item], &mut scratch);
        part(item).copy_from_slice(scratch.total.data);
    });
    // Items were reversed, so the segments of one place lie side by side, the last first.
    let is_end = |&item: &usize| item + 1 == items.len() || !items[item].same_place(&items[item + 1]);
    let ends: Vec<usize> = (0..items.len()).filter(is_end).collect();
    exec.pool.take_turns(ends.len(), parts, |place, thread| {
        let first = if place == 0 { 0 } else { ends[place - 1] + 1 };
        let mut total = scratch_of(thread).total;
        total.clear();
        for item in (first..=ends[place]).rev() {
            let mut next = State::new(part(item), most, spec.head_dim);
            isa.run(Merge { total: &mut total, next: &mut next, queries: job.queries(&items[item]) });
        }
        // SAFETY: each place has rows and heads of its own.
        unsafe { job.finish(&items[first], &mut total, &out) };
    });
}

impl Item {
    fn by_segment(&self) -> impl Iterator<Item = Item> {
        self.segments.clone().map(|s| Item { segments: s..s + 1, ..self.clone() })
    }

    fn same_place(&self, other: &Item) -> bool {
        (self.sequence, &self.rows, self.kv_head) == (other.sequence, &other.rows, other.kv_head)
    }
}

impl Job<'_> {
    /// The query heads that read a KV head.
    fn heads_of(&self, kv_head: usize) -> Range<usize> {
        let AttentionSpec { group, first_in_group, num_heads, .. } = *self.spec;
        let at = |kv_head: usize| (kv_head * group).saturating_sub(first_in_group).min(num_heads);
        at(kv_head)..at(kv_head + 1)
    }

    /// The positions that a position sees.
    fn visible(&self, position: usize) -> Range<usize> {
        self.spec.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }

    fn position(&self, sequence: usize, row: usize) -> usize {
        let sequence = &self.sequences[sequence];
        sequence.start + row - sequence.rows.start
    }

    fn queries(&self, item: &Item) -> usize {
        item.rows.len() * self.heads_of(item.kv_head).len()
    }

    fn items(&self, queries: usize) -> Vec<Item> {
        let mut items = Vec::new();
        for (sequence, span) in self.sequences.iter().enumerate() {
            for kv_head in 0..self.spec.num_kv_heads {
                let heads = self.heads_of(kv_head).len();
                if heads == 0 {
                    continue;
                }
                let step = (queries / heads).max(1);
                for start in span.rows.clone().step_by(step) {
                    let rows = start..(start + step).min(span.rows.end);
                    let first = self.visible(self.position(sequence, start)).start;
                    let last = self.position(sequence, rows.end - 1);
                    items.push(Item {
                        sequence,
                        rows,
                        kv_head,
                        segments: first / SEGMENT..last / SEGMENT + 1,
                    });
                }
            }
        }
        items
    }

    /// Multiplications, roughly.
    fn cost(&self) -> usize {
        let positions: usize = self.sequences.iter().map(|s| s.rows.len() * (s.start + s.rows.len())).sum();
        positions * self.spec.num_heads * self.spec.head_dim
    }

    /// `o / l` to the output.
    ///
    /// # Safety
    /// Nobody else may write the rows and heads of `item`.
    unsafe fn finish(&self, item: &Item, total: &mut State<'_>, out: &Disjoint<'_, f32>) {
        let head_dim = self.spec.head_dim;
        let heads = self.heads_of(item.kv_head);
        for (query, (row, head)) in queries(item, &heads).enumerate() {
            let at = (row * self.spec.num_heads + head) * head_dim;
            // SAFETY: the caller's.
            let out = unsafe { out.part(at..at + head_dim) };
            let (_, l, o) = total.query(query);
            for (out, o) in out.iter_mut().zip(o) {
                *out = *o / *l;
            }
        }
    }
}

/// The queries (row, head) of an item, in their order.
#[inline(always)]
fn queries(item: &Item, heads: &Range<usize>) -> impl Iterator<Item = (usize, usize)> + use<> {
    let heads = heads.clone();
    item.rows.clone().flat_map(move |row| heads.clone().map(move |head| (row, head)))
}
