//! KV blocks that several ranks share by position.

use std::ops::Range;

/// How a context group shares the KV cache: block `b` is with rank `b mod ranks`, and all blocks of a segment (so many
/// consecutive blocks of a sequence) are with one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextParallel {
    /// Ranks of the group; at least one.
    pub ranks: usize,
    /// Blocks of a segment; at least one.
    pub segment_blocks: usize,
}

impl ContextParallel {
    /// Every rank has every block.
    pub const OFF: ContextParallel = ContextParallel { ranks: 1, segment_blocks: usize::MAX };

    /// The rank that holds a block.
    pub fn owner(self, block: u32) -> usize {
        block as usize % self.ranks
    }

    /// How many of `num_blocks` a rank holds.
    pub fn blocks_of(self, rank: usize, num_blocks: usize) -> usize {
        (num_blocks + self.ranks - 1 - rank) / self.ranks
    }

    /// The smallest number of blocks, as many with every rank, in which a sequence of `blocks` blocks fits that is alone.
    pub fn blocks_that_fit(self, blocks: usize) -> usize {
        let (full, rest) = (blocks / self.segment_blocks, blocks % self.segment_blocks);
        let (rounds, left) = (full / self.ranks, full % self.ranks);
        let of_last_round = if left > 0 { self.segment_blocks } else { rest };
        (rounds * self.segment_blocks + of_last_round) * self.ranks
    }

    /// The block table of a sequence that is alone in [`ContextParallel::blocks_that_fit`] blocks: its segments go round.
    pub fn table_alone(self, blocks: usize) -> Vec<u32> {
        let block = |i: usize| {
            let (segment, rest) = (i / self.segment_blocks, i % self.segment_blocks);
            let (round, owner) = (segment / self.ranks, segment % self.ranks);
            ((round * self.segment_blocks + rest) * self.ranks + owner) as u32
        };
        (0..blocks).map(block).collect()
    }

    /// The most blocks of one sequence that fit in `num_blocks`, all of them free.
    pub fn longest(self, num_blocks: usize) -> usize {
        let of_ranks = || (0..self.ranks).map(|rank| self.blocks_of(rank, num_blocks));
        let full: usize = of_ranks().map(|blocks| blocks / self.segment_blocks).sum();
        let rest = of_ranks().map(|blocks| blocks % self.segment_blocks).max().unwrap_or(0);
        full * self.segment_blocks + rest
    }

    /// Places blocks of a sequence, taking them out of what each owner has `left`: the rest of a segment with the
    /// `owner` of the block before it, each new segment with the owner with the most left, the first of equals.
    /// Returns the last block's owner.
    ///
    /// That way they are placed whenever there is a way: the last segment, the only short one, comes last, and nothing
    /// that leaves more with one owner leaves room for more whole segments.
    pub(crate) fn place(self, left: &mut [usize], blocks: Range<usize>, mut owner: usize) -> Option<usize> {
        let mut next = blocks.start;
        while next < blocks.end {
            let into_segment = next % self.segment_blocks;
            if into_segment == 0 {
                owner = self.by_most(left).next()?;
            }
            let here = (self.segment_blocks - into_segment).min(blocks.end - next);
            left[owner] = left[owner].checked_sub(here)?;
            next += here;
        }
        Some(owner)
    }

    /// The owners by what they have left: the most first, of equals the first.
    pub(crate) fn by_most(self, left: &[usize]) -> impl Iterator<Item = usize> {
        let mut owners: Vec<usize> = (0..self.ranks).collect();
        owners.sort_by_key(|&owner| std::cmp::Reverse(left[owner]));
        owners.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_fits_in_as_many_blocks_as_it_is_said_to_need_and_not_in_one_round_less() {
        for ranks in 1..5 {
            for segment_blocks in [1, 3, 4] {
                let context = ContextParallel { ranks, segment_blocks };
                for blocks in 1..40 {
                    let needed = context.blocks_that_fit(blocks);
                    let mut table = context.table_alone(blocks);
                    let owner = |block: &u32| context.owner(*block);
                    let alike = |segment: &[u32]| segment.iter().all(|b| owner(b) == owner(&segment[0]));
                    assert!(table.chunks(segment_blocks).all(alike), "{context:?}: {table:?}");
                    table.sort_unstable();
                    table.dedup();
                    assert!(table.len() == blocks && (*table.last().unwrap() as usize) < needed);
                    assert!(context.longest(needed) >= blocks, "{context:?}: {blocks} in {needed}");
                    assert!(
                        context.longest(needed - ranks) < blocks,
                        "{context:?}: {blocks} in less than {needed}"
                    );
                }
            }
        }
        assert_eq!(ContextParallel::OFF.blocks_that_fit(7), 7);
        assert_eq!(ContextParallel::OFF.table_alone(3), [0, 1, 2]);
        assert_eq!(ContextParallel::OFF.longest(7), 7);
    }

    #[test]
    fn the_longest_sequence_can_be_placed_and_no_longer_one() {
        for (ranks, segment_blocks) in (1..5).flat_map(|r| (1..6).map(move |s| (r, s))) {
            let context = ContextParallel { ranks, segment_blocks };
            for num_blocks in 1..40 {
                let mut all: Vec<usize> =
                    (0..ranks).map(|rank| context.blocks_of(rank, num_blocks)).collect();
                let longest = context.longest(num_blocks);
                assert!(
                    context.place(&mut all.clone(), 0..longest, 0).is_some(),
                    "{context:?}: {num_blocks}"
                );
                assert!(context.place(&mut all, 0..longest + 1, 0).is_none(), "{context:?}: {num_blocks}");
            }
        }
    }

    #[test]
    fn blocks_are_placed_whenever_there_is_a_way() {
        // What two owners have left, where the placed blocks begin and how many they are: against trying all ways.
        let context = ContextParallel { ranks: 2, segment_blocks: 3 };
        for (a, b) in (0..8).flat_map(|a| (0..8).map(move |b| (a, b))) {
            for (start, blocks) in
                (0..3usize).flat_map(|start| (1..16usize).map(move |blocks| (start, blocks)))
            {
                let mut segments = vec![0; (start + blocks).div_ceil(3)];
                (start..start + blocks).for_each(|block| segments[block / 3] += 1);
                let fits = (0..1 << segments.len()).any(|way: usize| {
                    let with = |owner| -> usize {
                        let own = segments.iter().enumerate().filter(|(i, _)| way >> i & 1 == owner);
                        own.map(|(_, blocks)| blocks).sum()
                    };
                    // A segment that was begun stays with its owner, here the first.
                    (start == 0 || way & 1 == 0) && with(0) <= a && with(1) <= b
                });
                let mut left = [a, b];
                let placed = context.place(&mut left, start..start + blocks, 0);
                assert_eq!(placed.is_some(), fits, "{blocks} from {start} of {a} and {b}");
                assert!(placed.is_none() || left.iter().sum::<usize>() + blocks == a + b);
            }
        }
    }
}
