//! Which owner gives which block of a sequence.
//!
//! All blocks of a segment are with one owner. A running sequence keeps to placements with which it would come to its last
//! token if it were alone: so the oldest always does, once everyone else has given up their blocks.

use crate::block_manager::{BlockManager, BlockTable, Found};

impl BlockManager {
    /// Whether a sequence can begin with what was found: its blocks up to `needed` are there, and once it has them it
    /// could come to `longest` if it were alone.
    pub fn has_room(&self, found: &Found, needed: usize, longest: usize) -> bool {
        let context = self.context();
        let mut left: Vec<usize> = (0..context.ranks).map(|owner| self.pool.available(owner)).collect();
        let part = found.part.map(|part| part.0);
        for &block in found.blocks.iter().chain(&part).filter(|&&block| self.pool.holders(block) == 0) {
            left[context.owner(block)] -= 1;
        }
        let mut alone = self.alone(&found.blocks);
        let mut have = found.blocks.len();
        let mut owner = found.blocks.last().map_or(0, |&block| context.owner(block));
        if let Some(part) = part {
            owner = context.owner(part);
            if left[owner] == 0 || alone[owner] == 0 {
                return false;
            }
            left[owner] -= 1;
            alone[owner] -= 1;
            have += 1;
        }
        let before = left.clone();
        let Some(owner) = context.place(&mut left, have..needed, owner) else { return false };
        for (alone, taken) in alone.iter_mut().zip(before.iter().zip(&left).map(|(a, b)| a - b)) {
            let Some(rest) = alone.checked_sub(taken) else { return false };
            *alone = rest;
        }
        context.place(&mut alone, needed..longest, owner).is_some()
    }

    /// Whether a sequence with these blocks, and `next` as the next one's owner, would get to `longest` if it were
    /// alone.
    pub fn fits_alone(&self, blocks: &[u32], next: Option<usize>, longest: usize) -> bool {
        if self.context().ranks == 1 {
            return true; // Any `longest` that was added does.
        }
        let mut left = self.alone(blocks);
        let mut owner = blocks.last().map_or(0, |&block| self.context().owner(block));
        let mut have = blocks.len();
        if let Some(next) = next {
            let Some(rest) = left[next].checked_sub(1) else { return false };
            left[next] = rest;
            (owner, have) = (next, have + 1);
        }
        self.context().place(&mut left, have..longest, owner).is_some()
    }

    /// Whether a sequence could come to its longest if it were alone.
    pub fn ends_alone(&self, table: &BlockTable) -> bool {
        self.fits_alone(&table.blocks, None, table.longest)
    }

    /// What each owner has beside these blocks.
    fn alone(&self, blocks: &[u32]) -> Vec<usize> {
        let of = |owner| self.context().blocks_of(owner, self.num_blocks());
        let mut left: Vec<usize> = (0..self.context().ranks).map(of).collect();
        blocks.iter().for_each(|&block| left[self.context().owner(block)] -= 1);
        left
    }

    /// Who gives the table's next block: within a segment who gave the last; a new segment goes to the owner with the
    /// most blocks that nobody holds, of those with which the sequence would end if it were alone.
    pub fn next_owner(&self, table: &BlockTable) -> usize {
        let context = self.context();
        if context.ranks == 1 {
            return 0;
        }
        match table.blocks.last() {
            Some(&last) if !table.blocks.len().is_multiple_of(context.segment_blocks) => context.owner(last),
            _ => {
                let available: Vec<usize> = (0..context.ranks).map(|o| self.pool.available(o)).collect();
                let fits = |&owner: &usize| self.fits_alone(&table.blocks, Some(owner), table.longest);
                context.by_most(&available).find(fits).expect("a running sequence would end if it were alone")
            }
        }
    }
}
