//! Random workloads on a pretended model: whatever arrives, every request ends with exactly the tokens that it
//! would have got alone, in bounded time, and every block comes back.

mod batches;
mod pretended_model;
mod random;
mod seen;
mod workload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pretended_model::{Model, alone};
use random::Random;
use scheduler::{Batch, CacheUse, ContextParallel, Request, Scheduler, SchedulerConfig, SchedulerError};
use seen::Seen;
use workload::Workload;

const WORKLOADS: u64 = 8_000;

#[test]
fn every_request_ends_with_exactly_the_tokens_it_gets_alone() {
    let mut seen = Seen::default();
    for seed in 0..WORKLOADS {
        let _says_which = SeedOnPanic(seed);
        Simulation::new(seed).run(&mut seen);
    }
    seen.check();
}

/// Prints the seed of the workload that failed.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the workload of seed {} failed: run it alone with Simulation::new({0})", self.0);
        }
    }
}

/// A request that arrived.
struct Arrived {
    request: Request,
    expected: Vec<u32>,
    sampled: Vec<u32>,
    /// Positions that steps computed, or that it found cached.
    computed: usize,
    preempted: bool,
}

struct Simulation {
    random: Random,
    config: SchedulerConfig,
    scheduler: Scheduler,
    model: Model,
    workload: Workload,
    arrived: BTreeMap<u64, Arrived>,
    /// In the order in which they first ran.
    started: Vec<u64>,
    running: BTreeSet<u64>,
    ended: BTreeSet<u64>,
    aborted: BTreeSet<u64>,
    /// Steps that were scheduled and have not run.
    flight: VecDeque<Batch>,
    /// Requests that have left, by their number of tokens.
    work: usize,
    steps: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let config = SchedulerConfig {
            num_blocks: random.between(1, 40),
            block_size: [1, 2, 3, 4, 16][random.between(0, 4)],
            max_num_seqs: random.between(1, 8),
            max_num_batched_tokens: random.between(1, 40),
            context: match random.between(0, 4) {
                0 | 1 => ContextParallel::OFF,
                ranks => ContextParallel { ranks, segment_blocks: random.between(1, 5) },
            },
            prefix_caching: !random.one_in(4),
        };
        let mut scheduler = Scheduler::new(config);
        let endless = Request { id: 0, prompt: vec![0], max_tokens: usize::MAX, cache: CacheUse::default() };
        let Err(SchedulerError::TooLong { capacity, .. }) = scheduler.add(endless) else {
            panic!("nothing endless fits")
        };
        Simulation {
            workload: Workload::new(&mut random, capacity),
            random,
            config,
            scheduler,
            model: Model::new(config.num_blocks, config.block_size),
            arrived: BTreeMap::new(),
            started: Vec::new(),
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
            aborted: BTreeSet::new(),
            flight: VecDeque::new(),
            work: 0,
            steps: 0,
        }
    }

    fn run(&mut self, seen: &mut Seen) {
        while !(self.workload.is_over() && self.scheduler.is_idle() && self.flight.is_empty()) {
            self.arrive(seen);
            let ahead = self.random.between(1, 3);
            while self.flight.len() < ahead && self.schedule(seen) {}
            if self.random.one_in(20) {
                self.abort_one(seen);
            }
            if let Some(batch) = self.flight.pop_front() {
                self.collect(&batch);
            }
        }
        self.check_end(seen);
    }

    fn arrive(&mut self, seen: &mut Seen) {
        while !self.workload.is_over() && (self.scheduler.is_idle() || self.random.one_in(3)) {
            let request = self.workload.next(&mut self.random);
            let found = self.scheduler.cached_prefix(&request.prompt, request.cache.salt);
            assert!(found < request.prompt.len(), "the last token is always computed");
            match self.scheduler.add(request.clone()) {
                Ok(()) => {
                    seen.unread_prompts += u64::from(!request.cache.reads && found > 0);
                    self.work += request.prompt.len() + request.max_tokens;
                    let expected = alone(&request);
                    let (sampled, computed, preempted) = (Vec::new(), 0, false);
                    let id = request.id;
                    self.arrived.insert(id, Arrived { request, expected, sampled, computed, preempted });
                }
                Err(error) => {
                    assert!(matches!(error, SchedulerError::TooLong { .. }), "{error}");
                    seen.refused += 1;
                }
            }
        }
    }

    /// Schedules a step, if there is one and no tokens have to come first.
    fn schedule(&mut self, seen: &mut Seen) -> bool {
        if self.flight.back().is_some_and(|batch| batch.items.iter().any(|item| item.samples)) {
            return false;
        }
        let budget = self.random.between(0, 2 * self.config.max_num_batched_tokens);
        let before = self.scheduler.usage();
        let Some(batch) = self.scheduler.schedule(budget) else { return false };
        // The oldest request is computed further in every step, and never again from its beginning.
        self.steps += 1;
        assert!(self.steps <= self.work, "{} steps for {} tokens of work", self.steps, self.work);
        let after = self.scheduler.usage();
        if batch.items.iter().all(|item| item.started.is_none_or(|cached| cached == 0)) {
            seen.evictions += before.cached.saturating_sub(after.cached) as u64;
        }
        seen.steps_ahead += u64::from(!self.flight.is_empty());
        self.check_batch(&batch, budget, seen);
        if !batch.items.iter().any(|item| item.samples) {
            assert_eq!(self.scheduler.complete(&batch, &[]), []);
        }
        self.flight.push_back(batch);
        true
    }

    /// Runs a step.
    fn collect(&mut self, batch: &Batch) {
        let outputs = self.model.run(batch, |id| self.arrived[&id].request.cache.salt);
        for &(id, token, _) in outputs.iter().filter(|output| !self.aborted.contains(&output.0)) {
            self.arrived.get_mut(&id).expect("it arrived").sampled.push(token);
        }
        if outputs.is_empty() {
            return;
        }
        for id in self.scheduler.complete(batch, &outputs) {
            assert!(self.ended.insert(id), "request {id} ended twice");
            self.running.remove(&id);
            let Arrived { request, sampled, .. } = &self.arrived[&id];
            self.workload.ended(&mut self.random, request, sampled);
        }
    }

    /// Aborts someone who waits or runs, while steps are on their way.
    fn abort_one(&mut self, seen: &mut Seen) {
        let is_live = |id: &u64| !self.ended.contains(id) && !self.aborted.contains(id);
        let live: Vec<u64> = self.arrived.keys().copied().filter(is_live).collect();
        if live.is_empty() {
            return;
        }
        let id = live[self.random.between(0, live.len() - 1)];
        assert!(self.scheduler.abort(id) && !self.scheduler.abort(id), "request {id} can be aborted once");
        self.aborted.insert(id);
        self.running.remove(&id);
        let in_flight = self.flight.iter().any(|batch| batch.items.iter().any(|item| item.id == id));
        seen.aborts_in_flight += u64::from(in_flight);
    }

    fn check_end(&self, seen: &mut Seen) {
        assert_eq!(self.scheduler.num_free_blocks(), self.config.num_blocks, "all blocks came back");
        assert_eq!(self.scheduler.usage().used, 0, "nobody holds one");
        assert!(self.started.is_sorted(), "first come, first served: {:?}", self.started);
        for (id, Arrived { request, expected, sampled, .. }) in &self.arrived {
            if self.aborted.contains(id) {
                assert!(
                    expected.starts_with(sampled),
                    "request {id}: {sampled:?} instead of a start of {expected:?}"
                );
            } else {
                assert!(self.ended.contains(id), "request {id} did not end");
                assert_eq!(sampled, expected, "request {id}");
                let by_length = expected.len() == request.max_tokens;
                *(if by_length { &mut seen.lengths } else { &mut seen.stops }) += 1;
            }
        }
    }
}
