//! What is known of queries while their positions are walked.

use tensor::lanes::Lanes;
use tensor::{AttentionSpec, math};

use std::ops::Range;

use super::{BLOCKS, TILE};
use crate::kernels::cache::padded;
use crate::kernels::elementwise::soft_cap;
use crate::simd::{F32x16, Kernel, LANES};

/// Running maximum, sum and output of some queries: `[m | l | o [head_dim, padded]]`, each for all queries.
/// l = 0 until a query has seen something.
pub(super) struct State<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) queries: usize,
    pub(super) width: usize,
}

impl<'a> State<'a> {
    pub(super) fn len(queries: usize, head_dim: usize) -> usize {
        (queries * (2 + padded(head_dim))).next_multiple_of(LANES)
    }

    pub(super) fn new(data: &'a mut [f32], queries: usize, head_dim: usize) -> Self {
        State { data, queries, width: padded(head_dim) }
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.data.fill(0.0);
        self.data[..self.queries].fill(f32::NEG_INFINITY);
    }

    /// m, l and o of a query.
    #[inline(always)]
    pub(super) fn query(&mut self, query: usize) -> (&mut f32, &mut f32, &mut [f32]) {
        let (m, rest) = self.data.split_at_mut(self.queries);
        let (l, o) = rest.split_at_mut(self.queries);
        (&mut m[query], &mut l[query], &mut o[query * self.width..(query + 1) * self.width])
    }

    /// Raises the maxima to the tile's largest scores, instead of which it leaves the factors by which what was added
    /// before shrinks: 0 if nothing was.
    #[inline(always)]
    pub(super) fn raise<V: F32x16>(&mut self, largest: &mut [f32]) {
        let maxima = self.data[..largest.len()].chunks_mut(LANES);
        for (m, largest) in maxima.zip(largest.chunks_mut(LANES)) {
            let old = V::load_first(m);
            let new = old.max(V::load_first(largest));
            let shrink = math::exp(old.sub(new));
            let nothing = V::splat(f32::NEG_INFINITY);
            nothing.select_lt(old, shrink, V::splat(0.0)).store_first(largest);
            new.store_first(m);
        }
    }

    /// Takes in the state of the segment that follows.
    #[inline(always)]
    pub(super) fn merge<V: F32x16>(&mut self, next: &mut State<'_>, queries: usize) {
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

pub(super) struct Merge<'a, 'b> {
    pub(super) total: &'a mut State<'b>,
    pub(super) next: &'a mut State<'b>,
    pub(super) queries: usize,
}

impl Kernel for Merge<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        self.total.merge::<V>(self.next, self.queries);
    }
}

/// What a thread needs for an item.
pub(super) struct Scratch<'a> {
    /// The queries, tile after tile, interleaved: `[head_dim][rows]` each.
    pub(super) x: &'a mut [f32],
    /// `[queries, TILE]`: scores, then weights.
    pub(super) scores: &'a mut [f32],
    /// By how much a query's output shrinks in this tile.
    pub(super) shrink: &'a mut [f32],
    pub(super) segment: State<'a>,
    pub(super) total: State<'a>,
}

impl<'a> Scratch<'a> {
    pub(super) fn len(queries: usize, head_dim: usize) -> usize {
        let x = (queries * head_dim).next_multiple_of(LANES);
        queries * TILE + x + queries.next_multiple_of(LANES) + 2 * State::len(queries, head_dim)
    }

    pub(super) fn new(data: &'a mut [f32], queries: usize, head_dim: usize) -> Self {
        let (scores, rest) = data.split_at_mut(queries * TILE);
        let (x, rest) = rest.split_at_mut((queries * head_dim).next_multiple_of(LANES));
        let (shrink, rest) = rest.split_at_mut(queries.next_multiple_of(LANES));
        let (segment, total) = rest.split_at_mut(State::len(queries, head_dim));
        let (segment, total) = (State::new(segment, queries, head_dim), State::new(total, queries, head_dim));
        Scratch { x, scores, shrink, segment, total }
    }
}

/// What the keys and values of a tile are to be multiplied by.
pub(super) struct Scales {
    pub(super) keys: [[f32; LANES]; BLOCKS],
    pub(super) values: [[f32; LANES]; BLOCKS],
}

/// Calls `f` with every group of a tile that has seen positions, and with those of its lanes that are, unless all are.
macro_rules! for_groups {
    ($seen:expr, |$group:ident, $lanes:ident| $f:expr) => {
        if $seen.len() == TILE {
            // A count that is known lets the groups overlap.
            for $group in 0..BLOCKS {
                let $lanes: Option<Range<usize>> = None;
                $f
            }
        } else {
            for $group in $seen.start / LANES..$seen.end.div_ceil(LANES) {
                let from = $seen.start.saturating_sub($group * LANES).min(LANES);
                let $lanes = Some(from..$seen.end.saturating_sub($group * LANES).clamp(from, LANES));
                $f
            }
        }
    };
}

/// Scales a query's scores of a tile, with the keys' scales first, and caps them. The largest; −∞ if none is seen.
#[inline(always)]
pub(super) fn largest<V: F32x16>(
    scores: &mut [[f32; LANES]; BLOCKS],
    seen: Range<usize>,
    scales: Option<&Scales>,
    spec: &AttentionSpec,
) -> f32 {
    let mut max = V::splat(f32::NEG_INFINITY);
    for_groups!(seen, |group, lanes| {
        let mut s = V::load(&scores[group]);
        if let Some(scales) = scales {
            s = s.mul(V::load(&scales.keys[group]));
        }
        s = s.mul(V::splat(spec.scale));
        if let Some(cap) = spec.softcap {
            s = soft_cap(s, cap);
        }
        if let Some(lanes) = lanes {
            s = s.keep(lanes.start, lanes.end, V::splat(f32::NEG_INFINITY));
        }
        max = s.max(max);
        s.store(&mut scores[group]);
    });
    max.largest()
}

/// Turns a query's scores of a tile into weights, with the values' scales last. The sum of the weights without these.
#[inline(always)]
pub(super) fn weights<V: F32x16>(
    scores: &mut [[f32; LANES]; BLOCKS],
    seen: Range<usize>,
    scales: Option<&Scales>,
    m: f32,
) -> f32 {
    let mut sum = V::splat(0.0);
    for_groups!(seen, |group, lanes| {
        let mut weights = math::exp(V::load(&scores[group]).sub(V::splat(m)));
        if let Some(lanes) = lanes {
            weights = weights.keep(lanes.start, lanes.end, V::splat(0.0));
        }
        sum = sum.add(weights);
        if let Some(scales) = scales {
            weights = weights.mul(V::load(&scales.values[group]));
        }
        weights.store(&mut scores[group]);
    });
    sum.sum_by_halves()
}
