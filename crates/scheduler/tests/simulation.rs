//! Random workloads on a pretended model: whatever arrives, every request ends with exactly the tokens that it
//! would have got alone, in bounded time, and every block comes back.

mod pretended_model;

use std::collections::{BTreeMap, BTreeSet};

use pretended_model::{Model, Random, alone};
use scheduler::{Batch, ContextParallel, Request, Scheduler, SchedulerConfig};

const WORKLOADS: u64 = 10_000;

#[test]
fn every_request_ends_with_exactly_the_tokens_it_gets_alone() {
    let mut seen = Seen::default();
    for seed in 0..WORKLOADS {
        let _says_which = SeedOnPanic(seed);
        Simulation::new(seed).run(&mut seen);
    }
    // A simulation that never met these cases would prove nothing.
    assert!(
        seen.mixed_steps > 1000 && seen.chunked_prompts > 1000 && seen.waits_for_blocks > 1000,
        "{seen:?}"
    );
    assert!(seen.spread_sequences > 1000, "{seen:?}");
    assert!(seen.stops > 1000 && seen.lengths > 1000 && seen.aborts_in_flight > 100, "{seen:?}");
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

/// How often the workloads met what they are for.
#[derive(Debug, Default)]
struct Seen {
    mixed_steps: u64,
    chunked_prompts: u64,
    waits_for_blocks: u64,
    stops: u64,
    lengths: u64,
    aborts_in_flight: u64,
    /// Whose segments several owners hold.
    spread_sequences: u64,
}

struct Simulation {
    random: Random,
    config: SchedulerConfig,
    scheduler: Scheduler,
    model: Model,
    /// Requests that have not arrived yet, the next one last.
    to_come: Vec<Request>,
    /// What each request that arrived gets alone, and has got so far.
    expected: BTreeMap<u64, (Request, Vec<u32>)>,
    sampled: BTreeMap<u64, Vec<u32>>,
    /// In the order in which they first ran.
    started: Vec<u64>,
    ended: BTreeSet<u64>,
    aborted: BTreeSet<u64>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let config = SchedulerConfig {
            num_blocks: random.between(1, 40),
            block_size: [1, 2, 3, 16][random.between(0, 3)],
            max_num_seqs: random.between(1, 8),
            max_num_batched_tokens: random.between(1, 40),
            context: match random.between(0, 4) {
                0 | 1 => ContextParallel::OFF,
                ranks => ContextParallel { ranks, segment_blocks: random.between(1, 5) },
            },
        };
        let mut to_come = Vec::new();
        for id in (0..random.between(1, 20) as u64).rev() {
            let prompt_len = random.between(1, 60);
            let prompt = (0..prompt_len).map(|_| random.next() as u32 % 1000).collect();
            let request = Request { id, prompt, max_tokens: random.between(1, 30) };
            let blocks = (prompt_len + request.max_tokens).div_ceil(config.block_size);
            if config.context.blocks_that_fit(blocks) <= config.num_blocks {
                to_come.push(request);
            }
        }
        Simulation {
            random,
            config,
            scheduler: Scheduler::new(config),
            model: Model::new(config.num_blocks, config.block_size),
            to_come,
            expected: BTreeMap::new(),
            sampled: BTreeMap::new(),
            started: Vec::new(),
            ended: BTreeSet::new(),
            aborted: BTreeSet::new(),
        }
    }

    fn run(&mut self, seen: &mut Seen) {
        // Every step computes at least one position of one request, if it computes anything.
        let work: usize = self.to_come.iter().map(|r| r.prompt.len() + r.max_tokens).sum();
        let mut steps = 0;
        while !(self.to_come.is_empty() && self.scheduler.is_idle()) {
            self.arrive();
            if let Some(batch) = self.scheduler.schedule() {
                self.step(&batch, seen);
                steps += 1;
                assert!(steps <= work, "{steps} steps for {work} tokens of work");
            }
        }
        self.check_end(seen);
    }

    fn arrive(&mut self) {
        while !self.to_come.is_empty() && (self.scheduler.is_idle() || self.random.one_in(3)) {
            let request = self.to_come.pop().expect("not empty");
            self.sampled.insert(request.id, Vec::new());
            self.expected.insert(request.id, (request.clone(), alone(&request)));
            self.scheduler.add(request).expect("it fits");
        }
    }

    fn step(&mut self, batch: &Batch, seen: &mut Seen) {
        self.check_batch(batch, seen);
        let outputs: Vec<_> = batch.items.iter().filter_map(|item| self.model.run(item)).collect();
        if self.random.one_in(20) {
            self.abort_one(batch, seen);
        }
        for &(id, token, _) in outputs.iter().filter(|o| !self.aborted.contains(&o.0)) {
            self.sampled.get_mut(&id).expect("it arrived").push(token);
        }
        let ended = self.scheduler.complete(batch, &outputs);
        for id in ended {
            assert!(self.ended.insert(id), "request {id} ended twice");
        }
    }

    /// What every batch keeps to.
    fn check_batch(&mut self, batch: &Batch, seen: &mut Seen) {
        assert!(!batch.items.is_empty() && batch.items.len() <= self.config.max_num_seqs);
        assert!(batch.num_tokens() <= self.config.max_num_batched_tokens);
        let in_batch: BTreeSet<u64> = batch.items.iter().map(|item| item.id).collect();
        assert_eq!(in_batch.len(), batch.items.len(), "a request is in a batch once");
        for id in &self.started {
            let gone = self.ended.contains(id) || self.aborted.contains(id);
            assert_eq!(
                in_batch.contains(id),
                !gone,
                "who started gets further in every step until it ends: {id}"
            );
        }
        let is_decoding = |id: &u64| !self.sampled[id].is_empty();
        let decoding = batch.items.iter().filter(|item| is_decoding(&item.id)).count();
        assert!(
            batch.items[..decoding]
                .iter()
                .all(|item| is_decoding(&item.id) && item.tokens.len() == 1 && item.samples)
        );
        seen.mixed_steps += u64::from(decoding > 0 && decoding < batch.items.len());
        seen.chunked_prompts += batch.items.iter().filter(|item| !item.samples).count() as u64;
        self.started.extend(batch.items.iter().filter(|item| item.start == 0).map(|item| item.id));
        for item in &batch.items {
            let ContextParallel { ranks, segment_blocks } = self.config.context;
            for segment in item.block_table.chunks(segment_blocks) {
                let owner = |block: &u32| *block as usize % ranks;
                assert!(segment.iter().all(|b| owner(b) == owner(&segment[0])), "a segment has one owner");
            }
            let first = item.block_table.chunks(segment_blocks).map(|segment| segment[0] as usize % ranks);
            seen.spread_sequences += u64::from(first.collect::<BTreeSet<_>>().len() > 1);
        }
        let has_room = batch.items.len() < self.config.max_num_seqs
            && batch.num_tokens() < self.config.max_num_batched_tokens;
        seen.waits_for_blocks += u64::from(has_room && self.scheduler.num_waiting() > 0);
    }

    /// Aborts someone who waits or runs, between a step's start and its end.
    fn abort_one(&mut self, batch: &Batch, seen: &mut Seen) {
        let live: Vec<u64> = self.expected.keys().copied().filter(|id| !self.ended.contains(id)).collect();
        let id = live[self.random.between(0, live.len() - 1)];
        assert_eq!(self.scheduler.abort(id), self.aborted.insert(id), "request {id} can be aborted once");
        seen.aborts_in_flight += u64::from(batch.items.iter().any(|item| item.id == id));
    }

    fn check_end(&self, seen: &mut Seen) {
        assert_eq!(self.scheduler.num_free_blocks(), self.config.num_blocks, "all blocks came back");
        assert!(self.started.is_sorted(), "first come, first served: {:?}", self.started);
        for (id, (request, expected)) in &self.expected {
            let sampled = &self.sampled[id];
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
