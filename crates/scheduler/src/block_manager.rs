//! The KV cache's blocks: who holds which, and how many are promised.

use crate::context::ContextParallel;

/// The blocks of one sequence.
#[derive(Debug)]
pub(crate) struct BlockTable {
    /// Held: block `i` has the positions from `i · block_size` on.
    pub blocks: Vec<u32>,
    /// Promised, but not taken yet.
    pub promised: usize,
    /// Who gives the blocks of each segment, taken or promised.
    owners: Vec<usize>,
}

/// Hands out blocks. A block is promised before it is taken, so that taking it cannot fail.
#[derive(Debug)]
pub(crate) struct BlockManager {
    num_blocks: usize,
    block_size: usize,
    context: ContextParallel,
    /// Each owner's. The next to be taken is the last.
    free: Vec<Vec<u32>>,
    /// How many of each owner's free ones are promised.
    promised: Vec<usize>,
}

impl BlockManager {
    pub fn new(num_blocks: usize, block_size: usize, context: ContextParallel) -> Self {
        assert!(block_size > 0, "a block has at least one position");
        assert!(context.ranks > 0, "blocks have an owner");
        assert!(context.segment_blocks > 0, "a segment has at least one block");
        let last = u32::try_from(num_blocks).expect("block ids are u32");
        let of = |owner| (0..last).rev().filter(|&block| context.owner(block) == owner).collect();
        let free: Vec<Vec<u32>> = (0..context.ranks).map(of).collect();
        BlockManager { num_blocks, block_size, context, free, promised: vec![0; context.ranks] }
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn context(&self) -> ContextParallel {
        self.context
    }

    /// Positions of the longest sequence that fits when it is alone.
    pub fn capacity(&self) -> usize {
        self.context.longest(self.num_blocks).saturating_mul(self.block_size)
    }

    /// Each owner's free blocks, promised or not.
    pub fn free(&self) -> &[Vec<u32>] {
        &self.free
    }

    /// How many of each owner's free blocks are promised.
    pub fn promised(&self) -> &[usize] {
        &self.promised
    }

    /// Blocks that hold `positions`.
    pub fn blocks_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_size)
    }

    /// Promises the blocks of `positions`, if so many are free and not promised yet.
    ///
    /// Each segment goes to the owner with the most such blocks, the first of equals. That way a sequence is promised
    /// its blocks whenever there is a way: the last segment, the only short one, comes last, and nothing that leaves
    /// more with one owner leaves room for more whole segments.
    pub fn promise(&mut self, positions: usize) -> Option<BlockTable> {
        let blocks = self.blocks_for(positions);
        let mut left: Vec<usize> =
            self.free.iter().zip(&self.promised).map(|(free, promised)| free.len() - promised).collect();
        let mut owners = Vec::new();
        for segment in self.context.segments(blocks) {
            let (owner, most) = left.iter_mut().enumerate().rev().max_by_key(|(_, left)| **left)?;
            *most = most.checked_sub(segment)?;
            owners.push(owner);
        }
        for (segment, &owner) in self.context.segments(blocks).zip(&owners) {
            self.promised[owner] += segment;
        }
        Some(BlockTable { blocks: Vec::new(), promised: blocks, owners })
    }

    /// Takes promised blocks until the table holds `positions`.
    pub fn grow(&mut self, table: &mut BlockTable, positions: usize) {
        while table.blocks.len() < self.blocks_for(positions) {
            assert!(table.promised > 0, "{positions} positions are more than the sequence was admitted with");
            let owner = self.owner(table, table.blocks.len());
            table.promised -= 1;
            self.promised[owner] -= 1;
            table.blocks.push(self.free[owner].pop().expect("a promised block is free"));
        }
    }

    /// Takes back what a sequence holds and what it was promised.
    pub fn release(&mut self, table: BlockTable) {
        for (owner, promised) in self.promised_of(&table) {
            self.promised[owner] -= promised;
        }
        // In reverse, so that a sequence alone gets the same blocks again.
        for block in table.blocks.into_iter().rev() {
            self.free[self.context.owner(block)].push(block);
        }
    }

    /// Who gives the `block`-th block of a sequence.
    pub fn owner(&self, table: &BlockTable, block: usize) -> usize {
        table.owners[block / self.context.segment_blocks]
    }

    /// What a sequence is promised and by whom, segment by segment.
    pub fn promised_of(&self, table: &BlockTable) -> Vec<(usize, usize)> {
        let mut taken = table.blocks.len();
        let promised = self.context.segments(taken + table.promised).map(|segment| {
            let of_segment = segment.min(taken);
            taken -= of_segment;
            segment - of_segment
        });
        table.owners.iter().copied().zip(promised).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(manager: &BlockManager) -> usize {
        manager.free().iter().map(Vec::len).sum()
    }

    #[test]
    fn a_new_segment_goes_to_the_owner_with_the_most_blocks_that_nobody_has_or_was_promised() {
        // Owner 0 has blocks 0, 3, 6, 9, owner 1 has 1, 4, 7, owner 2 has 2, 5, 8.
        let context = ContextParallel { ranks: 3, segment_blocks: 2 };
        let mut manager = BlockManager::new(10, 1, context);
        let mut first = manager.promise(5).expect("of 10 blocks");
        manager.grow(&mut first, 3);
        assert_eq!((&first.blocks[..], first.promised), (&[0, 3, 1][..], 2));
        manager.grow(&mut first, 5);
        assert_eq!((&first.blocks[..], manager.promised()), (&[0, 3, 1, 4, 2][..], &[0, 0, 0][..]));
        let mut second = manager.promise(2).expect("two of an owner");
        manager.grow(&mut second, 1);
        assert_eq!((&second.blocks[..], manager.promised()), (&[6][..], &[1, 0, 0][..]));
        // Left are two blocks of owner 2, one of owner 1, and one of owner 0 that is promised.
        assert!(manager.promise(4).is_none(), "two segments of two");
        let third = manager.promise(3).expect("two of owner 2 and one of owner 1");
        assert_eq!(manager.promised(), [1, 1, 2]);
        for table in [first, third, second] {
            manager.release(table);
        }
        assert_eq!((free(&manager), manager.promised(), manager.capacity()), (10, &[0, 0, 0][..], 9));
    }

    #[test]
    fn a_sequence_is_promised_its_blocks_whenever_there_is_a_way() {
        // Every number of free blocks of two owners, and every length: against trying all ways.
        for (a, b, blocks) in (0..8).flat_map(|a| (0..8).flat_map(move |b| (1..16).map(move |n| (a, b, n)))) {
            let context = ContextParallel { ranks: 2, segment_blocks: 3 };
            let mut manager = BlockManager::new(16, 1, context);
            manager.free[0].truncate(a);
            manager.free[1].truncate(b);
            let segments: Vec<usize> = context.segments(blocks).collect();
            let fits = (0..1 << segments.len()).any(|way: u32| {
                let with = |owner| -> usize {
                    let own = segments.iter().enumerate().filter(|(i, _)| way >> i & 1 == owner);
                    own.map(|(_, blocks)| blocks).sum()
                };
                with(0) <= a && with(1) <= b
            });
            assert_eq!(manager.promise(blocks).is_some(), fits, "{blocks} of {a} and {b}");
        }
    }

    #[test]
    fn blocks_are_taken_as_positions_grow_and_all_come_back() {
        let mut manager = BlockManager::new(4, 16, ContextParallel::OFF);
        let mut table = manager.promise(33).expect("three of four blocks");
        assert_eq!((table.blocks.len(), free(&manager), manager.promised()), (0, 4, &[3][..]));
        manager.grow(&mut table, 16);
        assert_eq!(table.blocks, [0]);
        manager.grow(&mut table, 17);
        assert_eq!(table.blocks, [0, 1]);
        assert_eq!((free(&manager), manager.promised()), (2, &[1][..]));
        manager.release(table);
        assert_eq!((&manager.free()[0][..], manager.promised()), (&[3, 2, 1, 0][..], &[0][..]));
    }

    #[test]
    fn a_promised_block_is_not_promised_twice() {
        let mut manager = BlockManager::new(4, 16, ContextParallel::OFF);
        let first = manager.promise(48).expect("three of four blocks");
        assert!(manager.promise(17).is_none());
        let second = manager.promise(16).expect("the fourth");
        manager.release(first);
        assert!(manager.promise(48).is_some());
        manager.release(second);
    }

    #[test]
    #[should_panic(expected = "more than the sequence was admitted with")]
    fn nobody_takes_more_than_was_promised() {
        let mut manager = BlockManager::new(4, 16, ContextParallel::OFF);
        let mut table = manager.promise(16).expect("one of four blocks");
        manager.grow(&mut table, 17);
    }
}
