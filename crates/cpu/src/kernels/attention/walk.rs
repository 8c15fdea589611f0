//! The walk of an item over its segments and tiles.

use std::marker::PhantomData;
use std::ops::Range;

use tensor::lanes::Lanes;
use tensor::{KV_BLOCK, SEGMENT};

use super::products::{Scores, Values};
use super::state::{Scales, Scratch, State, largest, weights};
use super::{BLOCKS, Item, Job, TILE};
use crate::kernels::rows::Tiles;
use crate::kernels::tile::for_tiles;
use crate::simd::{Bf16, Element, F32x16, Kernel, KvElement, LANES};

/// All segments of an item, to `scratch.total`.
pub(super) struct Run<'a, 'b, E> {
    pub(super) job: Job<'a>,
    pub(super) item: &'a Item,
    pub(super) scratch: &'a mut Scratch<'b>,
    pub(super) of: PhantomData<E>,
}

impl<E: KvElement> Kernel for Run<'_, '_, E> {
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
    pub(super) job: Job<'a>,
    pub(super) item: &'a Item,
    pub(super) heads: Range<usize>,
    pub(super) x: &'a mut [f32],
    pub(super) scores: &'a mut [f32],
    pub(super) shrink: &'a mut [f32],
    pub(super) of: PhantomData<E>,
}

impl<E: KvElement> Walk<'_, E> {
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
                let at = self.row(q) * self.job.q_cols + head * head_dim;
                let from = &self.job.q[at..at + head_dim];
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
            let scales = E::SCALED.then(|| self.scales::<V>(tile, from..to));
            self.softmax::<V>(tile, all, scales.as_ref(), state);
            if all {
                self.values_of_some::<V>(tile, 0..self.queries(), 0..TILE, state);
            } else {
                self.values_of_all::<V>(tile, state);
            }
        }
    }

    /// Turns the scores of a tile into weights; updates maxima and sums. Each step is done for all queries before the
    /// next one: what a single query waits for, from its maximum to its sum, would take longer than the products.
    #[inline(always)]
    fn softmax<V: F32x16>(&mut self, tile: usize, all: bool, scales: Option<&Scales>, state: &mut State<'_>) {
        let queries = self.queries();
        for query in 0..queries {
            let seen = if all { 0..TILE } else { self.visible(query, tile) };
            self.shrink[query] = largest::<V>(scores_of(self.scores, query), seen, scales, self.job.spec);
        }
        state.raise::<V>(&mut self.shrink[..queries]);
        for query in 0..queries {
            let seen = if all { 0..TILE } else { self.visible(query, tile) };
            let (m, l, _) = state.query(query);
            let sum = weights::<V>(scores_of(self.scores, query), seen, scales, *m);
            *l = l.fma(self.shrink[query], sum);
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
        let mut keys: [&[E::Bits]; P] = [&[]; P];
        let mut next: [&[E::Bits]; P] = [&[]; P];
        for p in 0..P {
            let kv_head = self.item.kv_head;
            keys[p] = self.job.kv.keys::<E>(self.block(tile, block + p), kv_head);
            next[p] = self.job.kv.keys::<E>(self.next_block(tile, block + p), kv_head);
        }
        V::call(Scores::<E, R, P> {
            x: &self.x[queries.start * head_dim..queries.end * head_dim],
            x_stride: queries.len(),
            r,
            keys,
            next,
            scores: &mut self.scores[(queries.start + r) * TILE + block * KV_BLOCK..],
        });
    }

    /// Of the blocks `blocks` of a tile. Those of the next tile are needed soon.
    #[inline(always)]
    fn scales<V: F32x16>(&self, tile: usize, blocks: Range<usize>) -> Scales {
        let mut scales = Scales { keys: [[0.0; LANES]; BLOCKS], values: [[0.0; LANES]; BLOCKS] };
        for block in blocks {
            let of_block = self.job.kv.scales(self.block(tile, block), self.item.kv_head);
            let next = self.job.kv.scales(self.next_block(tile, block), self.item.kv_head);
            V::prefetch_far(next[0].as_ptr().cast());
            for (bits, to) in of_block.into_iter().zip([&mut scales.keys, &mut scales.values]) {
                Bf16::widen::<V>(bits).store(&mut to[block]);
            }
        }
        scales
    }

    #[inline(always)]
    fn block(&self, tile: usize, block: usize) -> u32 {
        self.job.sequences[self.item.sequence].block_table[tile * BLOCKS + block]
    }

    /// The same block of the next tile; where there is none here, of this one.
    #[inline(always)]
    fn next_block(&self, tile: usize, block: usize) -> u32 {
        let table = &self.job.sequences[self.item.sequence].block_table;
        let next = table.get((tile + 1) * BLOCKS + block).copied();
        next.filter(|&id| (id as usize) < self.job.kv.spec.blocks).unwrap_or_else(|| self.block(tile, block))
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
        for block in seen.start / KV_BLOCK..seen.end.div_ceil(KV_BLOCK) {
            values[block] = self.job.kv.values::<E>(self.block(tile, block), self.item.kv_head);
            next[block] = self.job.kv.values::<E>(self.next_block(tile, block), self.item.kv_head);
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

/// A query's scores.
#[inline(always)]
fn scores_of(scores: &mut [f32], query: usize) -> &mut [[f32; LANES]; BLOCKS] {
    let (groups, _) = scores[query * TILE..(query + 1) * TILE].as_chunks_mut();
    groups.first_chunk_mut().expect("a tile")
}
