//! The KV cache's blocks: sequences grow into them, share what they have in common, and leave contents behind.
//!
//! A running sequence holds the blocks of its table. Full blocks go into the [`PrefixTree`] in the step that fills
//! them, below the block before them, which the same sequence holds: so whoever holds a block in the tree holds what is
//! above it, and what nobody holds has only such blocks below it. A sequence that filled a block with what another
//! block in the tree has takes that one instead, for both have the same bits.

use crate::block_pool::BlockPool;
use crate::context::ContextParallel;
use crate::prefix_tree::{Parent, PrefixTree};
use crate::request::CacheUse;
use crate::scheduler::SchedulerConfig;

/// The blocks of one sequence.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    /// Held: block `i` has the positions from `i · block_size` on.
    pub blocks: Vec<u32>,
    /// So many of the first are in the tree.
    pub num_known: usize,
    /// Whether the tree has the same contents in a block that can't be taken instead: then nothing more of the sequence
    /// gets into the tree.
    is_apart: bool,
    salt: u64,
    /// Blocks that the sequence comes to at most.
    pub longest: usize,
}

/// Cached keys and values with which a sequence can begin.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Full blocks, to be shared.
    pub blocks: Vec<u32>,
    /// A block whose first positions are to be copied, and how many.
    pub part: Option<(u32, usize)>,
}

/// What a sequence begins with.
#[derive(Debug)]
pub(crate) struct Admission {
    pub table: BlockTable,
    /// Positions that are in the table already.
    pub num_cached: usize,
    /// The block to copy before the step, from and to.
    pub copy: Option<(u32, u32)>,
}

/// Hands out blocks.
#[derive(Debug)]
pub(crate) struct BlockManager {
    pub pool: BlockPool,
    pub tree: PrefixTree,
    block_size: usize,
    context: ContextParallel,
    caching: bool,
    /// The step being scheduled, and from which on each block in the tree is written when a step begins.
    step: u64,
    written: Vec<u64>,
    /// Held until the step is scheduled: it reads them, or writes to them, though no table has them.
    pinned: Vec<u32>,
}

impl BlockManager {
    pub fn new(config: &SchedulerConfig) -> Self {
        let SchedulerConfig { num_blocks, block_size, context, prefix_caching: caching, .. } = *config;
        assert!(block_size > 0, "a block has at least one position");
        assert!(context.ranks > 0, "blocks have an owner");
        assert!(context.segment_blocks > 0, "a segment has at least one block");
        BlockManager {
            pool: BlockPool::new(num_blocks, context),
            tree: PrefixTree::new(num_blocks),
            block_size,
            context,
            caching,
            step: 0,
            written: vec![0; num_blocks],
            pinned: Vec::new(),
        }
    }

    pub fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn context(&self) -> ContextParallel {
        self.context
    }

    /// Positions of the longest sequence that fits when it is alone.
    pub fn capacity(&self) -> usize {
        self.context.longest(self.num_blocks()).saturating_mul(self.block_size)
    }

    /// Blocks that nobody holds.
    pub fn num_available(&self) -> usize {
        (0..self.context.ranks).map(|owner| self.pool.available(owner)).sum()
    }

    /// Blocks that hold `positions`.
    pub fn blocks_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_size)
    }

    /// The longest beginning of `tokens` that is cached.
    pub fn find(&self, salt: u64, tokens: &[u32]) -> Found {
        let mut found = Found::default();
        let mut parent = Parent::Root(salt);
        let mut blocks = tokens.chunks_exact(self.block_size);
        for tokens in blocks.by_ref() {
            let Some(block) = self.tree.child(parent, tokens) else {
                found.part = self.find_part(parent, tokens);
                return found;
            };
            found.blocks.push(block);
            parent = Parent::Block(block);
        }
        found.part = self.find_part(parent, blocks.remainder());
        found
    }

    /// A block that begins like `tokens` and is written by steps before this one, for copies come before it.
    fn find_part(&self, parent: Parent, tokens: &[u32]) -> Option<(u32, usize)> {
        let closest = self.tree.closest(parent, tokens);
        let written = closest.filter(|&(block, n)| n > 0 && self.written[block as usize] <= self.step);
        written.max_by_key(|found| found.1)
    }

    /// Positions that were found.
    pub fn num_found(&self, found: &Found) -> usize {
        found.blocks.len() * self.block_size + found.part.map_or(0, |part| part.1)
    }

    /// Begins a sequence that knows `num_tokens` tokens and comes to `longest` positions, with what was found of it, if
    /// there is room for its tokens and the next one. What was found is used as far as the sequence could still end with
    /// it if it were alone.
    pub fn admit(
        &mut self,
        cache: CacheUse,
        mut found: Found,
        num_tokens: usize,
        longest: usize,
    ) -> Option<Admission> {
        let longest = self.blocks_for(longest);
        while !self.fits_alone(&found.blocks, None, longest) {
            let last = found.blocks.len().checked_sub(1).expect("what was added fits when nobody runs");
            found.blocks.truncate(last / self.context.segment_blocks * self.context.segment_blocks);
            found.part = None;
        }
        let needed = self.blocks_for(num_tokens + 1);
        if !self.has_room(&found, needed, longest) {
            found.part.take()?;
            if !self.has_room(&found, needed, longest) {
                return None;
            }
        }
        let num_cached = self.num_found(&found);
        let num_known = found.blocks.len();
        found.blocks.iter().for_each(|&block| self.pool.hold(block));
        let mut table =
            BlockTable { blocks: found.blocks, num_known, salt: cache.salt, longest, is_apart: false };
        let copy = found.part.map(|(from, _)| {
            self.pool.hold(from);
            self.pinned.push(from);
            let to = self.take(self.context.owner(from)).expect("there is room");
            table.blocks.push(to);
            (from, to)
        });
        Some(Admission { table, num_cached, copy })
    }

    /// Takes blocks until the table holds `positions`, or as many as there are; the positions that it holds then.
    pub fn grow(&mut self, table: &mut BlockTable, positions: usize) -> usize {
        while table.blocks.len() < self.blocks_for(positions) {
            let owner = self.next_owner(table);
            let Some(block) = self.take(owner) else { break };
            table.blocks.push(block);
        }
        positions.min(table.blocks.len() * self.block_size)
    }

    /// A block of an owner that nobody holds: a free one, else the least recently used.
    fn take(&mut self, owner: usize) -> Option<u32> {
        if self.pool.free()[owner].is_empty() {
            let evicted = self.pool.least_recently_used(owner)?;
            // Of one owner the least recently used has nothing below it; other owners' blocks may be below it.
            for block in self.tree.remove(evicted) {
                self.pool.forget(block);
            }
        }
        self.pool.take(owner)
    }

    /// Asserts that positions may be written: nobody else has their blocks, and they are not cached.
    pub fn check_writable(&self, table: &BlockTable, positions: std::ops::Range<usize>) {
        for &block in &table.blocks[positions.start / self.block_size..self.blocks_for(positions.end)] {
            let is_own = self.pool.holders(block) == 1 && !self.tree.contains(block);
            debug_assert!(is_own, "block {block} is written by who shares it");
        }
    }

    /// Puts the blocks into the tree that a step fills: `tokens` are those of its end and before.
    pub fn fill(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        if !self.caching || table.is_apart {
            return;
        }
        let filled = tokens.chunks_exact(self.block_size).enumerate().skip(table.num_known);
        for (i, tokens) in filled {
            let own = table.blocks[i];
            let parent = parent(table, i);
            match self.tree.child(parent, tokens) {
                None => self.learn(parent, tokens, own, self.step + 1),
                Some(same) if self.context.owner(same) == self.context.owner(own) => {
                    self.pool.hold(same);
                    table.blocks[i] = same;
                    self.pinned.push(own);
                }
                Some(_) => {
                    table.is_apart = true;
                    return;
                }
            }
            table.num_known = i + 1;
        }
    }

    fn learn(&mut self, parent: Parent, tokens: &[u32], block: u32, written: u64) {
        self.tree.insert(parent, tokens, block);
        self.written[block as usize] = written;
    }

    /// Takes back what a sequence holds, of which `tokens` are computed.
    pub fn release(&mut self, table: BlockTable, tokens: &[u32]) {
        let part = tokens.get(table.num_known * self.block_size..).unwrap_or(&[]);
        if self.caching && !table.is_apart && !part.is_empty() && part.len() < self.block_size {
            let parent = parent(&table, table.num_known);
            if self.tree.closest(parent, part).all(|(_, n)| n < part.len()) {
                self.learn(parent, part, table.blocks[table.num_known], self.step);
            }
        }
        // In reverse, so that a sequence's end is evicted before its beginning, and that a sequence alone gets the same
        // blocks again.
        for block in table.blocks.into_iter().rev() {
            self.pool.release(block, self.tree.contains(block));
        }
    }

    /// Notes that a step is scheduled: what is taken from now on is of another.
    pub fn end_step(&mut self) {
        for block in std::mem::take(&mut self.pinned) {
            self.pool.release(block, self.tree.contains(block));
        }
        self.step += 1;
    }
}

/// What comes before the `block`-th block of a sequence.
fn parent(table: &BlockTable, block: usize) -> Parent {
    match block.checked_sub(1) {
        Some(before) => Parent::Block(table.blocks[before]),
        None => Parent::Root(table.salt),
    }
}
