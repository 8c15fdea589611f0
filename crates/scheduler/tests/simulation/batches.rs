//! What every batch keeps to.

use std::collections::BTreeSet;

use scheduler::{Batch, BatchItem, ContextParallel, SchedulerConfig};

use crate::Simulation;
use crate::seen::Seen;

impl Simulation {
    /// What every batch keeps to.
    pub fn check_batch(&mut self, batch: &Batch, budget: usize, seen: &mut Seen) {
        let SchedulerConfig { max_num_seqs, max_num_batched_tokens, .. } = self.config;
        assert!(!batch.items.is_empty() && batch.items.len() <= max_num_seqs);
        assert!(batch.num_tokens() <= max_num_batched_tokens.min(budget.max(batch.items.len())));
        for id in &batch.preempted {
            assert_eq!(self.running.pop_last(), Some(*id), "the latest arrival goes first");
            let arrived = self.arrived.get_mut(id).expect("it arrived");
            arrived.preempted = true;
            let known = arrived.request.prompt.len() + arrived.sampled.len();
            seen.preempted_in_prompt += u64::from(arrived.computed + 1 < known);
        }
        seen.preemptions += batch.preempted.len() as u64;
        for (i, item) in batch.items.iter().enumerate() {
            self.check_item(i, batch, seen);
            if item.started.is_some() {
                assert!(self.running.last() < Some(&item.id), "nobody overtakes");
                self.running.insert(item.id);
            }
        }
        let in_batch: BTreeSet<u64> = batch.items.iter().map(|item| item.id).collect();
        assert_eq!(in_batch, self.running, "who runs gets further in every step");
        assert_eq!(in_batch.len(), batch.items.len(), "a request is in a batch once");
        let decoding = batch.num_decoding;
        assert!(batch.items[..decoding].iter().all(|item| item.tokens.len() == 1 && item.samples));
        seen.mixed_steps += u64::from(decoding > 0 && decoding < batch.items.len());
        self.check_copies(batch, seen);
        let has_room =
            batch.items.len() < max_num_seqs && batch.num_tokens() < max_num_batched_tokens.min(budget);
        seen.waits_for_blocks += u64::from(has_room && self.scheduler.num_waiting() > 0);
    }

    fn check_item(&mut self, index: usize, batch: &Batch, seen: &mut Seen) {
        let item = &batch.items[index];
        let arrived = self.arrived.get_mut(&item.id).expect("it arrived");
        seen.chunked_prompts += u64::from(!item.samples);
        if let Some(cached) = item.started {
            assert_eq!(item.start, cached, "it begins where the cache ends");
            assert!(cached == 0 || self.config.prefix_caching);
            seen.hits += u64::from(cached > 0);
            seen.resumed_from_cache += u64::from(cached > 0 && arrived.preempted);
            assert!(
                arrived.request.cache.reads || cached <= arrived.computed,
                "it computes all of its prompt"
            );
            if !arrived.preempted {
                self.started.push(item.id);
            }
            let size = self.config.block_size;
            let shared = &item.block_table[..cached / size];
            let of = |other: &BatchItem, block: &u32| {
                let table = &other.block_table;
                table.iter().position(|b| b == block).is_some_and(|i| (i + 1) * size > other.start)
            };
            let writes = |block: &&u32| batch.items[..index].iter().any(|other| of(other, block));
            seen.shared_in_a_step += shared.iter().filter(writes).count() as u64;
            arrived.computed = arrived.computed.max(cached);
        } else {
            assert!(item.start <= arrived.computed, "no position is skipped");
        }
        arrived.computed = arrived.computed.max(item.start + item.tokens.len());
        let ContextParallel { ranks, segment_blocks } = self.config.context;
        let owner = |block: &u32| *block as usize % ranks;
        let segments = || item.block_table.chunks(segment_blocks);
        assert!(
            segments().all(|segment| segment.iter().all(|block| owner(block) == owner(&segment[0]))),
            "a segment has one owner"
        );
        let owners: BTreeSet<usize> = segments().map(|segment| owner(&segment[0])).collect();
        seen.spread_sequences += u64::from(owners.len() > 1);
    }

    fn check_copies(&self, batch: &Batch, seen: &mut Seen) {
        let owner = |block: u32| block as usize % self.config.context.ranks;
        let to: BTreeSet<u32> = batch.copies.iter().map(|copy| copy.1).collect();
        assert_eq!(to.len(), batch.copies.len(), "a block is copied to once");
        let size = self.config.block_size;
        let written = batch.items.iter().flat_map(|item| &item.block_table[item.start / size..]);
        let written: BTreeSet<u32> = written.copied().collect();
        for &(from, to_) in &batch.copies {
            assert_eq!(owner(from), owner(to_), "copies stay with their owner");
            assert!(!to.contains(&from) && !written.contains(&from), "what is copied stays as it is");
            assert!(written.contains(&to_), "a copy is made for who writes to it");
        }
        seen.copies += batch.copies.len() as u64;
    }
}
