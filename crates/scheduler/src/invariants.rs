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
        let free = self.blocks.free().len();
        let used: usize = self.running.iter().map(|s| s.table.blocks.len()).sum();
        assert_eq!(free + used, self.blocks.num_blocks(), "free and used blocks are all blocks");
        let promised: usize = self.running.iter().map(|s| s.table.promised).sum();
        assert_eq!(promised, self.blocks.promised(), "every promise was made to a running sequence");
        assert!(promised <= free, "{promised} blocks are promised, but only {free} are free");

        let mut has_holder = vec![false; self.blocks.num_blocks()];
        let held = self.running.iter().flat_map(|s| &s.table.blocks);
        for &block in self.blocks.free().iter().chain(held) {
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
