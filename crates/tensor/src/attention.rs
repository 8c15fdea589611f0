//! What attention works on: heads, the KV cache, and the segments of positions (NUMERICS.md, rule 4), which ranks can
//! share among each other.

use std::ops::Range;

use crate::{HeadSpan, KV_BLOCK, KvDType, SequenceSpan};

/// Positions that attention sums on their own before it merges them with those before them.
pub const SEGMENT: usize = 1024;

/// One layer's KV cache on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Number of blocks of [`crate::KV_BLOCK`] positions that are here.
    pub blocks: usize,
    /// Which of all blocks those are.
    pub share: KvShare,
    /// KV heads that this rank holds.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Stored type. Rounded to nearest, ties to even, when written.
    pub dtype: KvDType,
}

/// Attention of one layer on one rank, over a matrix whose columns are `[q heads | k heads | v heads]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads on this rank.
    pub num_heads: usize,
    /// KV heads on this rank.
    pub num_kv_heads: usize,
    /// Query heads that share one KV head, in the whole model.
    pub group: usize,
    /// Place of this rank's first query head inside its group: local query head `h` reads local KV head
    /// `(h + first_in_group) / group`.
    pub first_in_group: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Scores are `(q · k) · scale`.
    pub scale: f32,
    /// `Some(c)`: scores become `c · tanh(score / c)`.
    pub softcap: Option<f32>,
    /// `Some(w)`: position `i` sees positions `j` with `i − w < j ≤ i`.
    pub window: Option<usize>,
}

impl AttentionSpec {
    /// The query heads' columns.
    pub fn q(&self) -> HeadSpan {
        HeadSpan { first_col: 0, heads: self.num_heads, head_dim: self.head_dim }
    }
    /// The key heads' columns.
    pub fn k(&self) -> HeadSpan {
        HeadSpan {
            first_col: self.num_heads * self.head_dim,
            heads: self.num_kv_heads,
            head_dim: self.head_dim,
        }
    }
    /// The value heads' columns.
    pub fn v(&self) -> HeadSpan {
        let first_col = (self.num_heads + self.num_kv_heads) * self.head_dim;
        HeadSpan { first_col, heads: self.num_kv_heads, head_dim: self.head_dim }
    }
    /// Columns of the matrix that [`crate::Device::attention`] reads.
    pub fn qkv_cols(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

/// Which of all KV blocks a rank holds: block `b` is with owner `b mod owners`, there as block `b / owners`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShare {
    /// Ranks that share the blocks.
    pub owners: usize,
    /// This one among them.
    pub owner: usize,
}

impl KvShare {
    /// All blocks.
    pub const WHOLE: KvShare = KvShare { owners: 1, owner: 0 };

    /// Where a block is among those that are here, if it is here.
    pub fn local(self, block: u32) -> Option<u32> {
        let owners = self.owners as u32;
        (block % owners == self.owner as u32).then_some(block / owners)
    }

    /// The pairs of blocks that are here, by their places.
    ///
    /// # Panics
    /// If only one block of a pair is.
    pub fn local_pairs(self, pairs: &[(u32, u32)]) -> impl Iterator<Item = (u32, u32)> {
        pairs.iter().filter_map(move |&(from, to)| match (self.local(from), self.local(to)) {
            (None, None) => None,
            (Some(from), Some(to)) => Some((from, to)),
            _ => panic!("blocks {from} and {to} have different owners"),
        })
    }
}

impl KvSpec {
    /// Whether a block is another rank's, or within this cache.
    pub(crate) fn holds(&self, block: u32) -> bool {
        self.share.local(block).is_none_or(|local| (local as usize) < self.blocks)
    }
}

/// A segment of which a row sees something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenSegment {
    /// The row of the step.
    pub row: usize,
    /// The segment: position `p` is in segment `p / SEGMENT`.
    pub segment: usize,
    /// The positions of it that the row sees; at least one.
    pub positions: Range<usize>,
    /// The block of the first of them. Those of the others have the same owner.
    pub block: u32,
}

impl SeenSegment {
    /// Who holds the segment.
    pub fn owner(&self, owners: usize) -> usize {
        self.block as usize % owners
    }
}

/// What `rows` of a step see: row after row, for each its segments in ascending order.
pub fn seen_segments(
    sequences: &[SequenceSpan],
    window: Option<usize>,
    rows: Range<usize>,
) -> impl Iterator<Item = SeenSegment> {
    sequences.iter().flat_map(move |sequence| {
        let own = sequence.rows.start.max(rows.start)..sequence.rows.end.min(rows.end);
        own.flat_map(move |row| {
            let end = sequence.start + row - sequence.rows.start + 1;
            let first = window.map_or(0, |window| end.saturating_sub(window));
            (first / SEGMENT..end.div_ceil(SEGMENT)).map(move |segment| {
                let positions = first.max(segment * SEGMENT)..end.min((segment + 1) * SEGMENT);
                let block = sequence.block_table[positions.start / KV_BLOCK];
                SeenSegment { row, segment, positions, block }
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_with_one_owner_and_nobody_has_two_at_one_place() {
        for owners in 1..5 {
            let mut places = std::collections::BTreeSet::new();
            for block in 0..40 {
                let shares = (0..owners).map(|owner| KvShare { owners, owner });
                let here: Vec<_> =
                    shares.filter_map(|share| Some((share.owner, share.local(block)?))).collect();
                assert_eq!(here.len(), 1, "block {block} of {owners} owners");
                assert!(places.insert(here[0]) && (here[0].1 as usize) < 40usize.div_ceil(owners));
            }
        }
    }

    #[test]
    fn a_row_sees_the_segments_up_to_its_own_but_none_outside_of_its_window() {
        let block_table: Vec<u32> =
            (0..192).map(|block| if block / 64 == 1 { 2 * block + 1 } else { 2 * block }).collect();
        let sequences = [SequenceSpan { rows: 0..2, start: 2047, block_table }];
        let seen = |window, rows: Range<usize>| -> Vec<_> {
            let of = |s: SeenSegment| (s.row, s.segment, s.owner(2), s.positions);
            seen_segments(&sequences, window, rows).map(of).collect()
        };
        let whole = [(0, 0, 0, 0..1024), (0, 1, 1, 1024..2048)];
        assert_eq!(seen(None, 0..1), whole);
        assert_eq!(seen(None, 1..2).len(), 3);
        assert_eq!(seen(Some(1), 0..2), [(0, 1, 1, 2047..2048), (1, 2, 0, 2048..2049)]);
        assert_eq!(seen(Some(2), 1..2), [(1, 1, 1, 2047..2048), (1, 2, 0, 2048..2049)]);
        assert_eq!(seen(None, 2..9), []);
    }
}
