//! What users of a scheduler with a budget wait for, on a virtual clock.

use std::collections::BTreeMap;

use scheduler::{Batch, CacheUse, ContextParallel, Request, Scheduler, SchedulerConfig, StepBudget};

use super::{MACHINES, Machine, Random};

/// A server on a pretended machine, and when each request got its tokens.
struct Server {
    machine: Machine,
    scheduler: Scheduler,
    budget: StepBudget,
    random: Random,
    now_s: f64,
    tokens_s: BTreeMap<u64, Vec<f64>>,
}

impl Server {
    fn new(machine: Machine) -> Server {
        let config = SchedulerConfig {
            num_blocks: 4096,
            block_size: 16,
            max_num_seqs: 64,
            max_num_batched_tokens: 8192,
            context: ContextParallel::OFF,
            prefix_caching: true,
        };
        let (scheduler, budget) = (Scheduler::new(config), StepBudget::default());
        Server { machine, scheduler, budget, random: Random(3), now_s: 0.0, tokens_s: BTreeMap::new() }
    }

    fn add(&mut self, id: u64, prompt_tokens: usize, max_tokens: usize) {
        let prompt = (0..prompt_tokens).map(|_| self.random.next() as u32).collect();
        let request = Request { id, prompt, max_tokens, cache: CacheUse::default() };
        self.scheduler.add(request).expect("fits");
    }

    fn schedule(&mut self) -> Option<Batch> {
        let decoding = self.scheduler.num_decoding();
        self.scheduler.schedule(self.budget.rows(decoding, usize::MAX))
    }

    /// Whether there was a step.
    fn step(&mut self) -> bool {
        let Some(batch) = self.schedule() else { return false };
        let noise = 1.0 + 0.1 * self.random.between(0, 100) as f64 / 100.0;
        let seconds = self.machine.step_s(batch.num_tokens()) * noise;
        self.now_s += seconds;
        self.budget.observe(batch.num_decoding, batch.num_tokens() - batch.num_decoding, seconds);
        let sampling: Vec<u64> = batch.items.iter().filter(|i| i.samples).map(|i| i.id).collect();
        let outputs: Vec<_> = sampling.iter().map(|&id| (id, self.random.next() as u32, false)).collect();
        self.scheduler.complete(&batch, &outputs);
        for id in sampling {
            self.tokens_s.entry(id).or_default().push(self.now_s);
        }
        true
    }

    /// Times between a request's tokens, the shortest first.
    fn gaps_s(&self, id: u64) -> Vec<f64> {
        let mut gaps: Vec<f64> = self.tokens_s[&id].windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }
}

#[test]
fn no_gap_of_a_running_stream_is_four_times_its_median_while_a_long_prompt_arrives() {
    for machine in MACHINES {
        let mut server = Server::new(machine);
        // A request of before, from which the machine is known.
        server.add(0, 100, 40);
        while server.step() {}
        for id in 1..=4 {
            server.add(id, 32, 400);
        }
        // Not while they are in their prompts.
        while server.tokens_s.get(&4).is_none_or(|tokens| tokens.len() < 100) {
            assert!(server.step());
        }
        let arrived_s = server.now_s;
        server.add(5, 2000, 1);
        while server.step() {}
        for id in 1..=4 {
            let gaps = server.gaps_s(id);
            let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
            // A machine whose rows take long has eight prompt rows in a step, whatever they take.
            let least = machine.step_s(4 + 8) / machine.step_s(4);
            let most = 4.0_f64.max(1.3 * least);
            assert!(longest < most * median, "{machine:?}: {longest} s, the median is {median} s");
        }
        // Two thirds of a step are the prompt's.
        let (alone_s, waited_s) = (machine.step_s(2000), server.tokens_s[&5][0] - arrived_s);
        assert!(waited_s < 2.5 * alone_s, "{machine:?}: {waited_s} s, {alone_s} s alone");
    }
}
