//! What the next step runs.

use crate::batch::Batch;
use crate::scheduler::Scheduler;

/// A step while it is put together.
struct Step {
    batch: Batch,
    /// Tokens that it has room for.
    budget: usize,
}

impl Scheduler {
    /// The next step, or `None` when no request is left. It has `budget` tokens, but no more than
    /// `max_num_batched_tokens` and no fewer than running sequences.
    ///
    /// Sequences that decode come first, one row each; what is left goes to the prompts, in order of arrival. If one
    /// needs a block and there is none, the latest arrival of those that run, itself perhaps, waits again, and nobody
    /// is admitted. Else the first of those that wait is admitted when there are blocks for all of its tokens and one
    /// more; behind one that has to wait everyone waits.
    ///
    /// # Panics
    /// If the last batch was not completed.
    pub fn schedule(&mut self, budget: usize) -> Option<Batch> {
        assert!(!self.in_flight, "the last batch must be completed before the next is scheduled");
        let budget = budget.max(self.running.len()).max(1).min(self.config.max_num_batched_tokens);
        let mut step = Step { batch: Batch::default(), budget };
        self.run_all(true, &mut step);
        step.batch.num_decoding = step.batch.items.len();
        self.run_all(false, &mut step);
        while step.budget > 0 && step.batch.preempted.is_empty() && self.admit(&mut step.batch) {
            self.run(self.running.len() - 1, &mut step);
            assert!(step.batch.preempted.is_empty(), "who is admitted has room");
        }
        self.blocks.end_step();
        self.counters.preemptions += step.batch.preempted.len() as u64;
        self.in_flight = !step.batch.items.is_empty();
        self.check();
        assert!(self.in_flight || self.is_idle(), "whoever was added fits when nobody runs");
        self.in_flight.then_some(step.batch)
    }

    fn run_all(&mut self, decoding: bool, step: &mut Step) {
        let mut next = 0;
        while let Some(sequence) = self.running.get(next) {
            if sequence.is_decoding() == decoding {
                self.run(next, step);
            }
            next += 1;
        }
    }

    /// Puts as many of a sequence's pending tokens into the step as it has room for.
    fn run(&mut self, index: usize, step: &mut Step) {
        while let Some(sequence) = self.running.get_mut(index) {
            let start = sequence.num_computed();
            let wanted = start + sequence.num_pending().min(step.budget);
            assert!(wanted > start, "a step has room for a token of every running sequence");
            let end = self.blocks.grow(&mut sequence.table, wanted);
            if end > start {
                self.blocks.check_writable(&sequence.table, start..end);
                step.batch.items.push(sequence.item(end - start));
                self.blocks.fill(&mut sequence.table, &sequence.tokens[..end]);
                // Without blocks for all that it wanted nobody else begins.
                step.budget = if end == wanted { step.budget - (end - start) } else { 0 };
                return;
            }
            step.batch.preempted.push(self.preempt());
        }
    }

    /// Lets the latest arrival of those that run wait again.
    fn preempt(&mut self) -> u64 {
        let mut sequence = self.running.pop().expect("somebody runs");
        assert!(!self.running.is_empty(), "a sequence has its blocks when it is alone");
        let (table, tokens) = sequence.stop();
        self.blocks.release(table, tokens);
        let id = sequence.id;
        self.waiting.push_front(sequence);
        id
    }

    /// Lets the first of those that wait run, if it may.
    fn admit(&mut self, batch: &mut Batch) -> bool {
        let most = self.config.max_num_seqs.min(self.config.max_num_batched_tokens);
        if self.running.len() == most {
            return false;
        }
        let Some(sequence) = self.waiting.front() else { return false };
        let found = self.blocks.find(sequence.cache.salt, sequence.findable());
        let (num_tokens, longest) = (sequence.tokens.len(), sequence.longest());
        let Some(admission) = self.blocks.admit(sequence.cache, found, num_tokens, longest) else {
            return false;
        };
        let mut sequence = self.waiting.pop_front().expect("it is the first");
        if self.config.prefix_caching && sequence.cache.reads && sequence.is_new() {
            self.counters.prefix_queries += num_tokens as u64;
            self.counters.prefix_hits += admission.num_cached as u64;
        }
        sequence.begin(admission.table, admission.num_cached);
        batch.copies.extend(admission.copy);
        self.running.push(sequence);
        true
    }
}
