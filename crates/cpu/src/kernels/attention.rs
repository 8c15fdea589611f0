//! Attention over the KV cache.
//!
//! Work is cut into items: some rows of one sequence, the query heads of one KV head, and one or all segments
//! of 1,024 positions. An item walks its tiles of 64 positions: scores of 16 positions are 16 lanes, values are
//! added row by row with lanes over head_dim. Queries that see the same positions share what is loaded.

mod products;
mod segments;
mod state;
mod walk;

pub(crate) use self::segments::{Own, attention_segments, merge_segments};

use std::marker::PhantomData;
use std::ops::Range;

use tensor::{AttentionSpec, KV_BLOCK, KvShare, SEGMENT, SequenceSpan};

use self::state::{Merge, Scratch, State};
use self::walk::Run;
use super::Exec;
use super::cache::CpuKv;
use crate::buffer::Disjoint;
use crate::simd::with_kv_element;

/// Positions after which the running maximum and sum are updated.
const TILE: usize = 64;
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
    /// Rows of `q_cols`, which begin with the query heads.
    q: &'a [f32],
    q_cols: usize,
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
    if out.is_empty() {
        return;
    }
    assert!(kv.spec.share == KvShare::WHOLE, "all blocks are here");
    let rows = 0..sequences.last().map_or(0, |s| s.rows.end);
    let job = Job::new(qkv, spec.qkv_cols(), kv, sequences, spec);
    let (threads, isa) = (exec.pool.threads(), exec.isa);
    let mut items = job.items(QUERIES, rows);
    let split = items.len() < 2 * threads && items.iter().any(|item| item.segments.len() > 1);
    if split {
        items = items.iter().flat_map(Item::by_segment).collect();
    }
    // The last rows of a sequence see the most: they come first.
    items.reverse();
    let most = job.most_queries(&items);
    let out = Disjoint::new(out);
    if !split {
        // SAFETY: each item has rows and heads of its own.
        return job.run(exec, &items, most, |item, total| unsafe { job.finish(&items[item], total, &out) });
    }
    let state_len = State::len(most, spec.head_dim);
    let mut memory = exec.scratch::<f32>((items.len() + threads) * state_len);
    let (partial, totals) = memory.as_mut_slice().split_at_mut(items.len() * state_len);
    let (partial, totals) = (Disjoint::new(partial), Disjoint::new(totals));
    // SAFETY: here and below each item has a part of its own, and only one thread works on it.
    let part = |item: usize| unsafe { partial.part(item * state_len..(item + 1) * state_len) };
    job.run(exec, &items, most, |item, total| part(item).copy_from_slice(total.data));
    // Items were reversed, so the segments of one place lie side by side, the last first.
    let is_end = |&item: &usize| item + 1 == items.len() || !items[item].same_place(&items[item + 1]);
    let ends: Vec<usize> = (0..items.len()).filter(is_end).collect();
    exec.pool.take_turns(ends.len(), job.parts(exec), |place, thread| {
        let first = if place == 0 { 0 } else { ends[place - 1] + 1 };
        // SAFETY: each thread has one of its own.
        let total = unsafe { totals.part(thread * state_len..(thread + 1) * state_len) };
        let mut total = State::new(total, most, spec.head_dim);
        total.clear();
        for item in (first..=ends[place]).rev() {
            let mut next = State::new(part(item), most, spec.head_dim);
            let queries = job.queries(&items[item]);
            isa.run(Merge { total: &mut total, next: &mut next, queries });
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

impl<'a> Job<'a> {
    fn new(
        q: &'a [f32],
        q_cols: usize,
        kv: &'a CpuKv,
        sequences: &'a [SequenceSpan],
        spec: &'a AttentionSpec,
    ) -> Self {
        let (heads, of_cache) =
            ((spec.num_kv_heads, spec.head_dim), (kv.spec.num_kv_heads, kv.spec.head_dim));
        assert_eq!(heads, of_cache, "the cache's heads");
        Job { q, q_cols, kv, sequences, spec }
    }

    /// Walks all items, on all threads; `then` gets the number of each and what came of it.
    fn run(&self, exec: &Exec, items: &[Item], most: usize, then: impl Fn(usize, &mut State<'_>) + Sync) {
        let (parts, head_dim, isa) = (self.parts(exec), self.spec.head_dim, exec.isa);
        let scratch_len = Scratch::len(most, head_dim);
        let mut memory = exec.scratch::<f32>(exec.pool.threads() * scratch_len);
        let memory = Disjoint::new(memory.as_mut_slice());
        exec.pool.take_turns(items.len(), parts, |item, thread| {
            // SAFETY: each thread asks for its own, once per item.
            let own = unsafe { memory.part(thread * scratch_len..(thread + 1) * scratch_len) };
            let mut scratch = Scratch::new(own, most, head_dim);
            with_kv_element!(self.kv.spec.dtype, E => {
                let run = Run::<E> { job: *self, item: &items[item], scratch: &mut scratch, of: PhantomData };
                isa.run(run);
            });
            then(item, &mut scratch.total);
        });
    }

    /// Threads that are worth waking.
    fn parts(&self, exec: &Exec) -> usize {
        if self.cost() < 1 << 15 { 1 } else { exec.pool.threads() }
    }

    fn most_queries(&self, items: &[Item]) -> usize {
        items.iter().map(|item| self.queries(item)).max().unwrap_or(0)
    }

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

    /// What `rows` are cut into.
    fn items(&self, queries: usize, rows: Range<usize>) -> Vec<Item> {
        let mut items = Vec::new();
        for (sequence, span) in self.sequences.iter().enumerate() {
            let own = span.rows.start.max(rows.start)..span.rows.end.min(rows.end);
            for kv_head in 0..self.spec.num_kv_heads {
                let heads = self.heads_of(kv_head).len();
                if heads == 0 {
                    continue;
                }
                let step = (queries / heads).max(1);
                for start in own.clone().step_by(step) {
                    let rows = start..(start + step).min(own.end);
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
