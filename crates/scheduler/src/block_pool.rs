//! Who holds which blocks: counts of holders, free blocks, and those that nobody holds but whose contents are known.

use std::collections::BTreeMap;

use crate::context::ContextParallel;

/// Counts holders of blocks. Of contents it knows only what it is told.
#[derive(Debug)]
pub(crate) struct BlockPool {
    context: ContextParallel,
    /// Holders of each block.
    holders: Vec<u32>,
    /// Each owner's blocks without holder and contents. The next to be taken is the last.
    free: Vec<Vec<u32>>,
    /// Each owner's blocks without holder, but with contents, by when they were released.
    cached: Vec<BTreeMap<u64, u32>>,
    /// When each cached block was released.
    released: Vec<u64>,
    num_releases: u64,
}

impl BlockPool {
    pub fn new(num_blocks: usize, context: ContextParallel) -> Self {
        let last = u32::try_from(num_blocks).expect("block ids are u32");
        let of = |owner| (0..last).rev().filter(|&block| context.owner(block) == owner).collect();
        BlockPool {
            context,
            holders: vec![0; num_blocks],
            free: (0..context.ranks).map(of).collect(),
            cached: vec![BTreeMap::new(); context.ranks],
            released: vec![0; num_blocks],
            num_releases: 0,
        }
    }

    pub fn num_blocks(&self) -> usize {
        self.holders.len()
    }

    pub fn holders(&self, block: u32) -> u32 {
        self.holders[block as usize]
    }

    /// Each owner's free blocks.
    pub fn free(&self) -> &[Vec<u32>] {
        &self.free
    }

    /// An owner's cached blocks, least recently used first.
    pub fn cached(&self, owner: usize) -> impl Iterator<Item = u32> {
        self.cached[owner].values().copied()
    }

    pub fn num_cached(&self) -> usize {
        self.cached.iter().map(BTreeMap::len).sum()
    }

    /// Blocks that an owner can give.
    pub fn available(&self, owner: usize) -> usize {
        self.free[owner].len() + self.cached[owner].len()
    }

    /// When a cached block was released; later releases have greater numbers.
    pub fn released(&self, block: u32) -> u64 {
        self.released[block as usize]
    }

    /// Adds a holder to a block that is held or cached.
    pub fn hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders += 1;
        if *holders == 1 {
            let cached = self.cached[self.context.owner(block)].remove(&self.released[block as usize]);
            assert_eq!(cached, Some(block), "a free block is taken, not held");
        }
    }

    /// Takes a holder away. Without holders the block is cached if it has contents, else free.
    pub fn release(&mut self, block: u32, has_contents: bool) {
        let holders = &mut self.holders[block as usize];
        *holders = holders.checked_sub(1).expect("a released block has a holder");
        if *holders > 0 {
            return;
        }
        let owner = self.context.owner(block);
        match has_contents {
            true => {
                self.num_releases += 1;
                self.released[block as usize] = self.num_releases;
                self.cached[owner].insert(self.num_releases, block);
            }
            false => self.free[owner].push(block),
        }
    }

    /// Makes a cached block free.
    pub fn forget(&mut self, block: u32) {
        let owner = self.context.owner(block);
        let cached = self.cached[owner].remove(&self.released[block as usize]);
        assert_eq!(cached, Some(block), "only contents that nobody holds are forgotten");
        self.free[owner].push(block);
    }

    /// An owner's least recently used cached block.
    pub fn least_recently_used(&self, owner: usize) -> Option<u32> {
        self.cached(owner).next()
    }

    /// Takes a free block of an owner: it has one holder then.
    pub fn take(&mut self, owner: usize) -> Option<u32> {
        let block = self.free[owner].pop()?;
        self.holders[block as usize] = 1;
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_cached_or_free_once_its_last_holder_is_gone() {
        let mut pool = BlockPool::new(3, ContextParallel::OFF);
        let blocks = [pool.take(0), pool.take(0), pool.take(0)];
        assert_eq!((blocks, pool.take(0)), ([Some(0), Some(1), Some(2)], None));
        pool.hold(1);
        pool.release(1, true);
        assert_eq!(pool.available(0), 0, "it has another holder");
        pool.release(1, true);
        pool.release(0, true);
        pool.release(2, false);
        assert_eq!((pool.cached(0).collect::<Vec<_>>(), &pool.free()[0][..]), (vec![1, 0], &[2][..]));
        pool.hold(1);
        pool.release(1, true);
        assert_eq!(pool.least_recently_used(0), Some(0), "1 was used since");
        pool.forget(0);
        assert_eq!((pool.take(0), pool.take(0), pool.available(0)), (Some(0), Some(2), 1));
    }

    #[test]
    #[should_panic(expected = "a released block has a holder")]
    fn a_block_is_not_released_twice() {
        let mut pool = BlockPool::new(1, ContextParallel::OFF);
        pool.take(0);
        pool.release(0, false);
        pool.release(0, false);
    }
}
