//! Attention over the KV cache.
//!
//! Work is cut into items: some rows of one sequence, the query heads of one KV head, and one or all segments
//! of 1,024 positions. An item walks its tiles of 64 positions: scores of 16 positions are 16 lanes, values are
//! added row by row with lanes over head_dim. Queries that see the same positions share what is loaded.

use std::marker::PhantomData;
use std::ops::Range;

use tensor::lanes::Lanes;
use tensor::{AttentionSpec, KV_BLOCK, SequenceSpan, math};

use super::Exec;
use super::cache::{CpuKv, padded};
use super::elementwise::soft_cap;
use super::rows::Tiles;
use super::tile::{accumulate, for_tiles};
use crate::buffer::Disjoint;
use crate::simd::{Element, F32x16, Kernel, LANES, with_element};

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
    assert_eq!((spec.num_kv_heads, spec.head_dim), (kv.spec.num_kv_heads, kv.spec.head_dim), "the cache's heads");
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
        Scratch::new(unsafe { memory.part(thread * scratch_len..(thread + 1) * scratch_len) }, most, spec.head_dim)
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
                    items.push(Item { sequence, rows, kv_head, segments: first / SEGMENT..last / SEGMENT + 1 });
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

/// Running maximum, sum and output of some queries: `[m | l | o [head_dim, padded]]`, each for all queries.
/// l = 0 until a query has seen something.
struct State<'a> {
    data: &'a mut [f32],
    queries: usize,
    width: usize,
}

impl<'a> State<'a> {
    fn len(queries: usize, head_dim: usize) -> usize {
        (queries * (2 + padded(head_dim))).next_multiple_of(LANES)
    }

    fn new(data: &'a mut [f32], queries: usize, head_dim: usize) -> Self {
        State { data, queries, width: padded(head_dim) }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.data.fill(0.0);
        self.data[..self.queries].fill(f32::NEG_INFINITY);
    }

    /// m, l and o of a query.
    #[inline(always)]
    fn query(&mut self, query: usize) -> (&mut f32, &mut f32, &mut [f32]) {
        let (m, rest) = self.data.split_at_mut(self.queries);
        let (l, o) = rest.split_at_mut(self.queries);
        (&mut m[query], &mut l[query], &mut o[query * self.width..(query + 1) * self.width])
    }

    /// Takes in the state of the segment that follows.
    #[inline(always)]
    fn merge<V: F32x16>(&mut self, next: &mut State<'_>, queries: usize) {
        for query in 0..queries {
            let (m1, l1, o1) = self.query(query);
            let (m2, l2, o2) = next.query(query);
            if *l2 == 0.0 {
                continue;
            }
            if *l1 == 0.0 {
                (*m1, *l1) = (*m2, *l2);
                o1.copy_from_slice(o2);
                continue;
            }
            let m = Lanes::max(*m1, *m2);
            let (c1, c2) = (math::exp(*m1 - m), math::exp(*m2 - m));
            (*m1, *l1) = (m, l1.fma(c1, *l2 * c2));
            for (o1, o2) in o1.as_chunks_mut::<LANES>().0.iter_mut().zip(o2.as_chunks::<LANES>().0) {
                V::load(o1).fma(V::splat(c1), V::load(o2).mul(V::splat(c2))).store(o1);
            }
        }
    }
}

struct Merge<'a, 'b> {
    total: &'a mut State<'b>,
    next: &'a mut State<'b>,
    queries: usize,
}

impl Kernel for Merge<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        self.total.merge::<V>(self.next, self.queries);
    }
}

/// What a thread needs for an item.
struct Scratch<'a> {
    /// The queries, tile after tile, interleaved: `[head_dim][rows]` each.
    x: &'a mut [f32],
    /// `[queries, TILE]`: scores, then weights.
    scores: &'a mut [f32],
    /// By how much a query's output shrinks in this tile.
    shrink: &'a mut [f32],
    segment: State<'a>,
    total: State<'a>,
}

impl<'a> Scratch<'a> {
    fn len(queries: usize, head_dim: usize) -> usize {
        let x = (queries * head_dim).next_multiple_of(LANES);
        queries * TILE + x + queries.next_multiple_of(LANES) + 2 * State::len(queries, head_dim)
    }

    fn new(data: &'a mut [f32], queries: usize, head_dim: usize) -> Self {
        let (scores, rest) = data.split_at_mut(queries * TILE);
        let (x, rest) = rest.split_at_mut((queries * head_dim).next_multiple_of(LANES));
        let (shrink, rest) = rest.split_at_mut(queries.next_multiple_of(LANES));
        let (segment, total) = rest.split_at_mut(State::len(queries, head_dim));
        let (segment, total) = (State::new(segment, queries, head_dim), State::new(total, queries, head_dim));
        Scratch { x, scores, shrink, segment, total }
    }
}

/// All segments of an item, to `scratch.total`.
struct Run<'a, 'b, E> {
    job: Job<'a>,
    item: &'a Item,
    scratch: &'a mut Scratch<'b>,
    of: PhantomData<E>,
}

impl<E: Element> Kernel for Run<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let Scratch { x, scores, shrink, segment: later, total } = self.scratch;
        let mut walk = Walk::<E> {
            job: self.job,
            item: self.item,
            heads: self.job.heads_of(self.item.kv_head),
            x,
            scores,
            shrink,
            of: PhantomData,
        };
        walk.interleave_queries();
        total.clear();
        for (i, segment) in self.item.segments.clone().enumerate() {
            if i == 0 {
                walk.segment::<V>(segment, total);
            } else {
                later.clear();
                walk.segment::<V>(segment, later);
                total.merge::<V>(later, walk.queries());
            }
        }
    }
}

/// The walk of an item over its tiles.
struct Walk<'a, E> {
    job: Job<'a>,
    item: &'a Item,
    heads: Range<usize>,
    x: &'a mut [f32],
    scores: &'a mut [f32],
    shrink: &'a mut [f32],
    of: PhantomData<E>,
}

impl<E: Element> Walk<'_, E> {
    #[inline(always)]
    fn queries(&self) -> usize {
        self.item.rows.len() * self.heads.len()
    }

    #[inline(always)]
    fn row(&self, query: usize) -> usize {
        self.item.rows.start + query / self.heads.len()
    }

    /// The positions of a tile that a query sees, counted from the tile's first.
    #[inline(always)]
    fn visible(&self, query: usize, tile: usize) -> Range<usize> {
        let seen = self.job.visible(self.job.position(self.item.sequence, self.row(query)));
        let from = seen.start.saturating_sub(tile * TILE).min(TILE);
        from..seen.end.saturating_sub(tile * TILE).clamp(from, TILE)
    }

    /// Whether all queries see all positions of a tile.
    #[inline(always)]
    fn all_visible(&self, tile: usize) -> bool {
        self.visible(0, tile).end == TILE && self.visible(self.queries() - 1, tile).start == 0
    }

    fn interleave_queries(&mut self) {
        let head_dim = self.job.spec.head_dim;
        let tiles = Tiles::of(self.queries());
        for t in 0..tiles.count {
            let (query, end) = (tiles.start(t), tiles.start(t + 1));
            for q in query..end {
                let head = self.heads.start + q % self.heads.len();
                let at = self.row(q) * self.job.spec.qkv_cols() + head * head_dim;
                let from = &self.job.qkv[at..at + head_dim];
                let to = &mut self.x[query * head_dim..end * head_dim];
                for (to, from) in to[q - query..].iter_mut().step_by(end - query).zip(from) {
                    *to = *from;
                }
            }
        }
    }

    #[inline(always)]
    fn segment<V: F32x16>(&mut self, segment: usize, state: &mut State<'_>) {
        let position = |row| self.job.position(self.item.sequence, row);
        let first = self.job.visible(position(self.item.rows.start)).start.max(segment * SEGMENT);
        let end = (position(self.item.rows.end - 1) + 1).min((segment + 1) * SEGMENT);
        if first >= end {
            return;
        }
        for tile in first / TILE..end.div_ceil(TILE) {
            let from = first.saturating_sub(tile * TILE) / KV_BLOCK;
            let to = (end - tile * TILE).min(TILE).div_ceil(KV_BLOCK);
            let all = self.all_visible(tile);
            self.scores::<V>(tile, from..to);
            for query in 0..self.queries() {
                let seen = if all { 0..TILE } else { self.visible(query, tile) };
                if !seen.is_empty() {
                    let (m, l, _) = state.query(query);
                    let scores = &mut self.scores[query * TILE..(query + 1) * TILE];
                    self.shrink[query] = softmax::<V>(scores, seen, self.job.spec, m, l);
                }
            }
            if all {
                self.values_of_some::<V>(tile, 0..self.queries(), 0..TILE, state);
            } else {
                self.values_of_all::<V>(tile, state);
            }
        }
    }

    /// Scores of all queries and the blocks `blocks` of a tile.
    #[inline(always)]
    fn scores<V: F32x16>(&mut self, tile: usize, blocks: Range<usize>) {
        let tiles = Tiles::of(self.queries());
        for t in 0..tiles.count {
            let (query, end) = (tiles.start(t), tiles.start(t + 1));
            for_tiles!(V, end - query, blocks.len(), |R, P, r, p| {
                self.scores_tile::<V, R, P>(tile, query..end, r, blocks.start + p)
            });
        }
    }

    /// R queries, from the `r`-th of some that are interleaved on, times P blocks.
    #[inline(always)]
    fn scores_tile<V: F32x16, const R: usize, const P: usize>(
        &mut self,
        tile: usize,
        queries: Range<usize>,
        r: usize,
        block: usize,
    ) {
        let head_dim = self.job.spec.head_dim;
        let (mut keys, mut values): ([&[E::Bits]; P], [&[E::Bits]; P]) = ([&[]; P], [&[]; P]);
        for p in 0..P {
            let id = self.block(tile, block + p);
            keys[p] = self.job.kv.keys::<E>(id, self.item.kv_head);
            values[p] = self.job.kv.values::<E>(id, self.item.kv_head);
        }
        V::call(Scores::<E, R, P> {
            x: &self.x[queries.start * head_dim..queries.end * head_dim],
            x_stride: queries.len(),
            r,
            keys,
            values,
            scores: &mut self.scores[(queries.start + r) * TILE + block * KV_BLOCK..],
        });
    }

    #[inline(always)]
    fn block(&self, tile: usize, block: usize) -> u32 {
        self.job.sequences[self.item.sequence].block_table[tile * BLOCKS + block]
    }

    /// Adds a tile's weighted values to the queries that see some of them; queries that see the same together.
    #[inline(always)]
    fn values_of_all<V: F32x16>(&mut self, tile: usize, state: &mut State<'_>) {
        let queries = self.queries();
        let mut query = 0;
        while query < queries {
            let seen = self.visible(query, tile);
            let mut end = query + 1;
            while end < queries && self.visible(end, tile) == seen {
                end += 1;
            }
            if !seen.is_empty() {
                self.values_of_some::<V>(tile, query..end, seen, state);
            }
            query = end;
        }
    }

    #[inline(always)]
    fn values_of_some<V: F32x16>(
        &mut self,
        tile: usize,
        queries: Range<usize>,
        seen: Range<usize>,
        state: &mut State<'_>,
    ) {
        let tiles = Tiles::of(queries.len());
        for t in 0..tiles.count {
            let (start, end) = (queries.start + tiles.start(t), queries.start + tiles.start(t + 1));
            for_tiles!(V, end - start, state.width / LANES, |R, P, r, group| {
                self.values_tile::<V, R, P>(tile, start + r, group, seen.clone(), state)
            });
        }
    }

    #[inline(always)]
    fn values_tile<V: F32x16, const R: usize, const P: usize>(
        &mut self,
        tile: usize,
        query: usize,
        group: usize,
        seen: Range<usize>,
        state: &mut State<'_>,
    ) {
        let mut values: [&[E::Bits]; BLOCKS] = [&[]; BLOCKS];
        let mut next: [&[E::Bits]; BLOCKS] = [&[]; BLOCKS];
        let table = &self.job.sequences[self.item.sequence].block_table;
        for block in seen.start / KV_BLOCK..seen.end.div_ceil(KV_BLOCK) {
            let at = tile * BLOCKS + block;
            values[block] = self.job.kv.values::<E>(table[at], self.item.kv_head);
            let next_block = table.get(at + BLOCKS).unwrap_or(&table[at]);
            next[block] = self.job.kv.keys::<E>(*next_block, self.item.kv_head);
        }
        V::call(Values::<E, R, P> {
            weights: &self.scores[query * TILE..(query + R) * TILE],
            shrink: &self.shrink[query..query + R],
            values,
            next,
            width: state.width,
            first: group * LANES,
            seen,
            o: &mut state.data[2 * state.queries + query * state.width..][..R * state.width],
        });
    }
}

/// The scores of R queries for P blocks.
struct Scores<'a, E: Element, const R: usize, const P: usize> {
    /// `[head_dim, x_stride]`, of which columns `r..r + R` are meant.
    x: &'a [f32],
    x_stride: usize,
    r: usize,
    keys: [&'a [E::Bits]; P],
    /// Needed soon.
    values: [&'a [E::Bits]; P],
    /// From the first query's first block on; rows of `TILE`.
    scores: &'a mut [f32],
}

impl<E: Element, const R: usize, const P: usize> Kernel for Scores<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let head_dim = self.x.len() / self.x_stride;
        assert!(self.r + R <= self.x_stride);
        // All queries of a tile are a constant stride apart, which the compiler should know.
        let x_stride = if V::TILED { R } else { self.x_stride };
        let mut x = [std::ptr::null(); R];
        for r in 0..R {
            x[r] = self.x.as_ptr().wrapping_add(self.r + r);
        }
        let w = self.keys.map(|keys| keys[..head_dim * LANES].as_ptr());
        let ahead = Some(self.values.map(<[_]>::as_ptr));
        let mut acc = [[V::splat(0.0); P]; R];
        // SAFETY: each query is head_dim long, each panel of keys head_dim groups of 16.
        unsafe { accumulate::<V, E, R, P>(&mut acc, x, x_stride, w, LANES, ahead, 0..head_dim) };
        for r in 0..R {
            for p in 0..P {
                acc[r][p].store(self.scores[r * TILE + p * KV_BLOCK..].first_chunk_mut().expect("a block of scores"));
            }
        }
    }
}

/// Adds the weighted values of a tile to R queries, P · 16 elements of them.
struct Values<'a, E: Element, const R: usize, const P: usize> {
    /// `[R, TILE]`
    weights: &'a [f32],
    shrink: &'a [f32],
    /// `[16, width]` each.
    values: [&'a [E::Bits]; BLOCKS],
    /// The keys of the next tile, needed soon.
    next: [&'a [E::Bits]; BLOCKS],
    width: usize,
    /// First of the elements.
    first: usize,
    seen: Range<usize>,
    /// `[R, width]`
    o: &'a mut [f32],
}

impl<E: Element, const R: usize, const P: usize> Kernel for Values<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let (first, width, seen) = (self.first, self.width, self.seen);
        assert!(first + P * LANES <= width && self.weights.len() == R * TILE && seen.end <= TILE);
        let mut acc = [[V::splat(0.0); P]; R];
        for r in 0..R {
            for p in 0..P {
                let o = self.o[r * width + first + p * LANES..].first_chunk().expect("a group");
                acc[r][p] = V::load(o).mul(V::splat(self.shrink[r]));
            }
        }
        for block in seen.start / KV_BLOCK..seen.end.div_ceil(KV_BLOCK) {
            let values = &self.values[block][..KV_BLOCK * width];
            let (mut x, mut w, mut ahead) = ([std::ptr::null(); R], [std::ptr::null(); P], [std::ptr::null(); P]);
            for r in 0..R {
                x[r] = self.weights[r * TILE + block * KV_BLOCK..].as_ptr();
            }
            for p in 0..P {
                w[p] = values[first + p * LANES..].as_ptr();
                ahead[p] = self.next[block].as_ptr().wrapping_add(first + p * LANES);
            }
            let from = seen.start.saturating_sub(block * KV_BLOCK);
            let to = (seen.end - block * KV_BLOCK).min(KV_BLOCK);
            // SAFETY: 16 weights per query and block; 16 rows of values, `width` apart, with P groups from
            // `first` on in each.
            unsafe { accumulate::<V, E, R, P>(&mut acc, x, 1, w, width, Some(ahead), from..to) };
        }
        for r in 0..R {
            for p in 0..P {
                acc[r][p].store(self.o[r * width + first + p * LANES..].first_chunk_mut().expect("a group"));
            }
        }
    }
}

/// Turns a query's scores of a tile into weights; updates its maximum and sum. Gives the factor by which what
/// was added before shrinks.
#[inline(always)]
fn softmax<V: F32x16>(
    scores: &mut [f32],
    seen: Range<usize>,
    spec: &AttentionSpec,
    m: &mut f32,
    l: &mut f32,
) -> f32 {
    let groups = scores.as_chunks_mut::<LANES>().0;
    // A group's lanes that are seen.
    let lanes = |group: usize| {
        let from = seen.start.saturating_sub(group * LANES).min(LANES);
        from..seen.end.saturating_sub(group * LANES).clamp(from, LANES)
    };
    let mut max = V::splat(f32::NEG_INFINITY);
    for group in seen.start / LANES..seen.end.div_ceil(LANES) {
        let mut s = V::load(&groups[group]).mul(V::splat(spec.scale));
        if let Some(cap) = spec.softcap {
            s = soft_cap(s, cap);
        }
        let lanes = lanes(group);
        if lanes.len() < LANES {
            s = s.keep(lanes.start, lanes.end, V::splat(f32::NEG_INFINITY));
        }
        max = s.max(max);
        s.store(&mut groups[group]);
    }
    let new = Lanes::max(*m, max.largest());
    let shrink = if *l == 0.0 { 0.0 } else { math::exp(*m - new) };
    let mut sum = V::splat(0.0);
    for group in seen.start / LANES..seen.end.div_ceil(LANES) {
        let lanes = lanes(group);
        let mut weights = math::exp(V::load(&groups[group]).sub(V::splat(new)));
        if lanes.len() < LANES {
            weights = weights.keep(lanes.start, lanes.end, V::splat(0.0));
        }
        sum = sum.add(weights);
        weights.store(&mut groups[group]);
    }
    *m = new;
    *l = l.fma(shrink, sum.sum_by_halves());
    shrink
}
