//! KV blocks that several ranks share by position.

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

    /// Blocks of each segment of a sequence of `blocks` blocks.
    pub(crate) fn segments(self, blocks: usize) -> impl Iterator<Item = usize> {
        let starts = (0..blocks).step_by(self.segment_blocks);
        starts.map(move |start| self.segment_blocks.min(blocks - start))
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
}
