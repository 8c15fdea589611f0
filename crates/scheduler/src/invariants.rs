//! What holds after every call, asserted in debug builds.

use crate::scheduler::Scheduler;

impl Scheduler {
    /// Panics if an invariant is broken. Nothing in release builds.
    pub(crate) fn check(&self) {
        if cfg!(debug_assertions) {
            self.check_blocks();
            self.check_sequences();
        }
    }

    fn check_blocks(&self) {
        let context = self.blocks.context();
        for (owner, free) in self.blocks.free().iter().enumerate() {
            let is_own = |&&block: &&u32| context.owner(block) == owner;
            assert!(free.iter().all(|block| is_own(&block)), "owner {owner} has another's blocks");
            let used = self.running.iter().flat_map(|s| &s.table.blocks).filter(is_own).count();
            let all = context.blocks_of(owner, self.blocks.num_blocks());
            assert_eq!(free.len() + used, all, "free and used blocks are all blocks of owner {owner}");
            let promised = self.running.iter().flat_map(|s| self.blocks.promised_of(&s.table));
            let promised: usize = promised.filter(|p| p.0 == owner).map(|p| p.1).sum();
            let noted = self.blocks.promised()[owner];
            assert_eq!(promised, noted, "every promise of owner {owner} was made to a running sequence");
            assert!(
                promised <= free.len(),
                "{promised} blocks are promised, but only {} are free",
                free.len()
            );
        }
        for table in self.running.iter().map(|s| &s.table) {
            let promised: usize = self.blocks.promised_of(table).iter().map(|p| p.1).sum();
            assert_eq!(promised, table.promised, "what is promised is promised by owners");
            for (i, &block) in table.blocks.iter().enumerate() {
                let owner = self.blocks.owner(table, i);
                assert_eq!(context.owner(block), owner, "all blocks of a segment are with one owner");
            }
        }
        let mut has_holder = vec![false; self.blocks.num_blocks()];
        let held = self.running.iter().flat_map(|s| &s.table.blocks);
        for &block in self.blocks.free().iter().flatten().chain(held) {
            assert!(!has_holder[block as usize], "block {block} has two holders");
            has_holder[block as usize] = true;
        }
    }

    fn check_sequences(&self) {
        let (seqs, budget) = (self.config.max_num_seqs, self.config.max_num_batched_tokens);
        assert!(self.running.len() <= seqs.min(budget), "{} sequences run", self.running.len());
        if self.in_flight {
            return; // What a step computes counts once it is completed.
        }
        for sequence in &self.running {
            let needed = self.blocks.blocks_for(sequence.num_computed());
            assert_eq!(sequence.table.blocks.len(), needed, "sequence {} holds what it needs", sequence.id);
        }
        let in_prompt = self.running.iter().filter(|s| !s.is_decoding()).count();
        assert!(
            in_prompt <= 1,
            "{in_prompt} sequences are inside their prompts, a step may not reach them all"
        );
    }
}
