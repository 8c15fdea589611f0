//! What holds after every call, asserted in debug builds.

use std::collections::BTreeMap;

use crate::prefix_tree::Parent;
use crate::scheduler::Scheduler;

/// In pools of more blocks it would take longer to look at all of them after every call than a small model's step takes.
const MAX_BLOCKS: usize = 4096;

impl Scheduler {
    /// Panics if an invariant is broken. Nothing in release builds.
    pub(crate) fn check(&self) {
        if cfg!(debug_assertions) {
            if self.blocks.num_blocks() <= MAX_BLOCKS {
                self.check_blocks();
                self.check_tree();
            }
            self.check_tables();
            self.check_sequences();
        }
    }

    fn check_blocks(&self) {
        let (pool, tree, context) = (&self.blocks.pool, &self.blocks.tree, self.blocks.context());
        let mut holders = BTreeMap::new();
        for block in self.running.iter().flat_map(|s| &s.table.blocks) {
            *holders.entry(*block).or_insert(0) += 1;
        }
        for (owner, free) in pool.free().iter().enumerate() {
            let is_own = |&&block: &&u32| context.owner(block) == owner;
            assert!(free.iter().all(|block| is_own(&block)), "owner {owner} has another's blocks");
            assert!(pool.cached(owner).all(|block| is_own(&&block)), "owner {owner} has another's blocks");
            assert!(free.iter().all(|&block| !tree.contains(block)), "a free block has contents");
            assert!(pool.cached(owner).all(|block| tree.contains(block)), "a cached block has none");
            let used = holders.keys().filter(is_own).count();
            let (free, cached, all) =
                (free.len(), pool.cached(owner).count(), context.blocks_of(owner, pool.num_blocks()));
            assert_eq!(free + cached + used, all, "free, cached and used are all blocks of owner {owner}");
        }
        for block in 0..pool.num_blocks() as u32 {
            let held = holders.get(&block).copied().unwrap_or(0);
            assert_eq!(pool.holders(block), held, "every reference to block {block} has a holder");
        }
        // With the sums above: no block is in two of the three.
        let nobodys = pool.free().iter().flatten().copied();
        let nobodys = nobodys.chain((0..context.ranks).flat_map(|owner| pool.cached(owner)));
        nobodys.for_each(|block| assert_eq!(pool.holders(block), 0, "block {block} is held and free"));
    }

    fn check_tree(&self) {
        let (pool, tree, context) = (&self.blocks.pool, &self.blocks.tree, self.blocks.context());
        for block in 0..pool.num_blocks() as u32 {
            let Some((parent, tokens)) = tree.entry(block) else { continue };
            assert!((1..=self.blocks.block_size()).contains(&tokens.len()));
            assert_eq!(tree.child(parent, tokens), Some(block), "a block is found by its tokens");
            if tokens.len() < self.blocks.block_size() {
                assert_eq!(pool.holders(block), 0, "who holds block {block} would write to it");
            }
            if let Parent::Block(parent) = parent {
                let (_, before) = tree.entry(parent).expect("what comes before a block is in the tree");
                assert_eq!(before.len(), self.blocks.block_size(), "a block follows a full one");
                assert!(
                    pool.holders(block) <= pool.holders(parent),
                    "who holds a block in the tree holds what comes before it"
                );
                let both_cached = pool.holders(parent) == 0;
                assert!(
                    !both_cached || pool.released(block) < pool.released(parent),
                    "what comes before a block is evicted after it"
                );
            }
        }
        assert!(self.config.prefix_caching || pool.num_cached() == 0);
        assert_eq!(pool.num_cached(), (0..context.ranks).map(|owner| pool.cached(owner).count()).sum());
    }

    fn check_tables(&self) {
        let (tree, context) = (&self.blocks.tree, self.blocks.context());
        for sequence in &self.running {
            let table = &sequence.table;
            let mut path = Parent::Root(sequence.cache.salt);
            let tokens = sequence.tokens.chunks(self.blocks.block_size());
            for (&block, tokens) in table.blocks[..table.num_known].iter().zip(tokens) {
                assert_eq!(tree.entry(block), Some((path, tokens)), "the tree knows what {block} contains");
                path = Parent::Block(block);
            }
            for (i, &block) in table.blocks.iter().enumerate() {
                let first = table.blocks[i / context.segment_blocks * context.segment_blocks];
                let (owner, of_segment) = (context.owner(block), context.owner(first));
                assert_eq!(owner, of_segment, "all blocks of a segment are with one owner");
                let is_own = self.blocks.pool.holders(block) == 1 && !tree.contains(block);
                assert!(i < table.num_known || is_own, "only what is in the tree is shared");
            }
            let ends = self.blocks.ends_alone(table);
            assert!(ends, "sequence {} would not come to its last token if it were alone", sequence.id);
        }
    }

    fn check_sequences(&self) {
        let (seqs, budget) = (self.config.max_num_seqs, self.config.max_num_batched_tokens);
        assert!(self.running.len() <= seqs.min(budget), "{} sequences run", self.running.len());
        let arrivals = self.running.iter().chain(&self.waiting).map(|s| s.arrival);
        assert!(arrivals.is_sorted(), "nobody overtakes");
        if self.in_flight {
            return; // What a step computes counts once it is completed.
        }
        for sequence in &self.running {
            let needed = self.blocks.blocks_for(sequence.num_computed());
            assert_eq!(sequence.table.blocks.len(), needed, "sequence {} holds what it needs", sequence.id);
        }
        let before_last = self.running.split_last().map_or(&[][..], |(_, before)| before);
        assert!(
            before_last.iter().all(|s| s.is_decoding()),
            "only the last to run is inside its prompt, so a step reaches all"
        );
    }
}
