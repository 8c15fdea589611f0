//! The KV cache's blocks: who holds which, and how many are promised.

/// The blocks of one sequence.
#[derive(Debug)]
pub(crate) struct BlockTable {
    /// Held: block `i` has the positions from `i · block_size` on.
    pub blocks: Vec<u32>,
    /// Promised, but not taken yet.
    pub promised: usize,
}

/// Hands out blocks. A block is promised before it is taken, so that taking it cannot fail.
#[derive(Debug)]
pub(crate) struct BlockManager {
    num_blocks: usize,
    block_size: usize,
    /// The next to be taken is the last.
    free: Vec<u32>,
    /// How many of the free ones are promised.
    promised: usize,
}

impl BlockManager {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "a block has at least one position");
        let last = u32::try_from(num_blocks).expect("block ids are u32");
        BlockManager { num_blocks, block_size, free: (0..last).rev().collect(), promised: 0 }
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Positions that all blocks together hold.
    pub fn capacity(&self) -> usize {
        self.num_blocks.saturating_mul(self.block_size)
    }

    /// The free blocks, promised or not.
    pub fn free(&self) -> &[u32] {
        &self.free
    }

    /// How many of the free blocks are promised.
    pub fn promised(&self) -> usize {
        self.promised
    }

    /// Blocks that hold `positions`.
    pub fn blocks_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_size)
    }

    /// Promises the blocks of `positions`, if so many are free and not promised yet.
    pub fn promise(&mut self, positions: usize) -> Option<BlockTable> {
        let promised = self.blocks_for(positions);
        if promised > self.free.len() - self.promised {
            return None;
        }
        self.promised += promised;
        Some(BlockTable { blocks: Vec::new(), promised })
    }

    /// Takes promised blocks until the table holds `positions`.
    pub fn grow(&mut self, table: &mut BlockTable, positions: usize) {
        while table.blocks.len() < self.blocks_for(positions) {
            assert!(table.promised > 0, "{positions} positions are more than the sequence was admitted with");
            table.promised -= 1;
            self.promised -= 1;
            table.blocks.push(self.free.pop().expect("a promised block is free"));
        }
    }

    /// Takes back what a sequence holds and what it was promised.
    pub fn release(&mut self, table: BlockTable) {
        self.promised -= table.promised;
        // In reverse, so that a sequence alone gets the same blocks again.
        self.free.extend(table.blocks.into_iter().rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_as_positions_grow_and_all_come_back() {
        let mut manager = BlockManager::new(4, 16);
        let mut table = manager.promise(33).expect("three of four blocks");
        assert_eq!((table.blocks.len(), manager.free().len(), manager.promised()), (0, 4, 3));
        manager.grow(&mut table, 16);
        assert_eq!(table.blocks, [0]);
        manager.grow(&mut table, 17);
        assert_eq!(table.blocks, [0, 1]);
        assert_eq!((manager.free().len(), manager.promised()), (2, 1));
        manager.release(table);
        assert_eq!((manager.free(), manager.promised()), (&[3, 2, 1, 0][..], 0));
    }

    #[test]
    fn a_promised_block_is_not_promised_twice() {
        let mut manager = BlockManager::new(4, 16);
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
        let mut manager = BlockManager::new(4, 16);
        let mut table = manager.promise(16).expect("one of four blocks");
        manager.grow(&mut table, 17);
    }
}
