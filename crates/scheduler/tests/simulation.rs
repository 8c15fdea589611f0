//! Random workloads on a pretended model: whatever arrives, every request ends with exactly the tokens that it
//! would have got alone, in bounded time, and every block comes back.

mod pretended_model;
mod workload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pretended_model::{Model, Random, alone};
use scheduler::{Batch, CacheUse, ContextParallel, Request, Scheduler, SchedulerConfig, SchedulerError};
use workload::Workload;

const WORKLOADS: u64 = 8_000;

#[test]
fn every_request_ends_with_exactly_the_tokens_it_gets_alone() {
    let mut seen = Seen::default();
    for seed in 0..WORKLOADS {
        let _says_which = SeedOnPanic(seed);
        Simulation::new(seed).run(&mut seen);
    }
    // A simulation that never met these cases would prove nothing.
    let Seen { mixed_steps, chunked_prompts, waits_for_blocks, stops, lengths, aborts_in_flight, .. } = seen;
    let batching = [mixed_steps, chunked_prompts, waits_for_blocks, stops, lengths, aborts_in_flight];
    let Seen { spread_sequences, steps_ahead, preemptions, resumed_from_cache, preempted_in_prompt, .. } =
        seen;
    let blocks = [spread_sequences, steps_ahead, preemptions, resumed_from_cache, preempted_in_prompt];
    let Seen { hits, copies, evictions, shared_in_a_step, unread_prompts, refused, .. } = seen;
    let caching = [hits, copies, evictions, shared_in_a_step, unread_prompts, refused];
    let often = |cases: &[u64]| cases.iter().all(|&n| n > 500);
    assert!(often(&batching) && often(&blocks) && often(&caching), "{seen:?}");
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
    /// Steps that were scheduled before the one before them had run.
    steps_ahead: u64,
    preemptions: u64,
    /// Preempted requests that found some of what they had computed.
    resumed_from_cache: u64,
    preempted_in_prompt: u64,
    hits: u64,
    copies: u64,
    /// Blocks that left the cache.
    evictions: u64,
    /// Blocks that one item writes and a later one of the same step reads.
    shared_in_a_step: u64,
    /// Requests that computed all of a prompt that was cached.
    unread_prompts: u64,
    /// Requests too long for the pool.
    refused: u64,
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

    /// What every batch keeps to.
    fn check_batch(&mut self, batch: &Batch, budget: usize, seen: &mut Seen) {
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
            let of = |other: &scheduler::BatchItem, block: &u32| {
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
