//! What requests find of those before them.

use super::*;

fn scheduler(num_blocks: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig { num_blocks, block_size: 4, max_num_batched_tokens: 100, ..config() })
}

fn ask(id: u64, prompt: &[u32], max_tokens: usize) -> Request {
    Request { id, prompt: prompt.to_vec(), max_tokens, cache: CacheUse::default() }
}

/// Adds a request and schedules its first step.
fn begin(scheduler: &mut Scheduler, request: Request) -> Batch {
    scheduler.add(request).expect("fits");
    scheduler.schedule(usize::MAX).expect("there is work")
}

/// Completes a step whose sampled tokens are 7, 8, and so on.
fn end(scheduler: &mut Scheduler, batch: &Batch) -> Vec<u64> {
    let sampling = batch.items.iter().filter(|item| item.samples);
    let outputs: Vec<_> = sampling.zip(7..).map(|(item, token)| (item.id, token, false)).collect();
    scheduler.complete(batch, &outputs)
}

/// Runs one request, alone, to its end; its first batch.
fn run(scheduler: &mut Scheduler, request: Request) -> Batch {
    let first = begin(scheduler, request);
    end(scheduler, &first);
    while let Some(batch) = scheduler.schedule(usize::MAX) {
        end(scheduler, &batch);
    }
    first
}

fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn a_prompt_that_begins_alike_shares_blocks_while_both_run() {
    let mut scheduler = scheduler(8);
    let batch = begin(&mut scheduler, ask(1, &tokens(0..9), 5));
    assert_eq!((batch.items[0].started, &batch.items[0].block_table[..]), (Some(0), &[0, 1, 2][..]));
    end(&mut scheduler, &batch);
    let batch = begin(&mut scheduler, ask(2, &[0, 1, 2, 3, 4, 5, 6, 7, 99], 1));
    let second = &batch.items[1];
    assert_eq!((second.started, second.start, &second.tokens[..]), (Some(8), 8, &[99][..]));
    assert_eq!((&second.block_table[..], &batch.copies[..]), (&[0, 1, 3][..], &[][..]));
    assert_eq!(scheduler.usage().used, 4);
    assert_eq!(batch.items[0].started, None, "it started before");
    let counters = scheduler.counters();
    assert_eq!((counters.prefix_queries, counters.prefix_hits), (18, 8));
}

#[test]
fn requests_of_one_step_share_what_it_computes() {
    let mut scheduler = scheduler(8);
    for id in 1..=3 {
        scheduler.add(ask(id, &tokens(0..10), 1)).expect("fits");
    }
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    let parts: Vec<_> = batch.items.iter().map(|item| (item.start, item.tokens.len())).collect();
    assert_eq!(parts, [(0, 10), (8, 2), (8, 2)]);
    assert!(batch.items.iter().all(|item| item.block_table[..2] == [0, 1]));
    assert_eq!(batch.copies, [], "what the step writes is not there to be copied before it");
}

#[test]
fn a_prompt_that_goes_on_inside_a_block_gets_a_copy_of_it() {
    let mut scheduler = scheduler(8);
    run(&mut scheduler, ask(1, &tokens(0..8), 1));
    let batch = begin(&mut scheduler, ask(2, &[0, 1, 2, 3, 4, 5, 99, 98], 1));
    let item = &batch.items[0];
    assert_eq!((item.started, &item.tokens[..]), (Some(6), &[99, 98][..]));
    let copied_to = item.block_table[1];
    assert_eq!(batch.copies, [(1, copied_to)]);
    assert!(copied_to > 1, "a block of its own");
}

#[test]
fn the_last_token_of_a_prompt_is_computed_though_all_is_cached() {
    let mut scheduler = scheduler(8);
    run(&mut scheduler, ask(1, &tokens(0..8), 1));
    let batch = begin(&mut scheduler, ask(2, &tokens(0..8), 1));
    let item = &batch.items[0];
    assert_eq!((item.started, &item.tokens[..], batch.copies.len()), (Some(7), &[7][..], 1));
    assert_eq!(scheduler.cached_prefix(&tokens(0..8), 0), 7);
    assert_eq!(scheduler.cached_prefix(&tokens(0..9), 0), 8);
    assert_eq!(scheduler.cached_prefix(&[], 0), 0);
}

#[test]
fn the_next_turn_finds_what_was_generated_but_for_the_last_token() {
    let mut scheduler = scheduler(8);
    run(&mut scheduler, ask(1, &tokens(0..5), 6));
    let turn: Vec<u32> = [&tokens(0..5)[..], &[7; 6], &[50, 51]].concat();
    let batch = run(&mut scheduler, ask(2, &turn, 1));
    assert_eq!(batch.items[0].started, Some(10), "of 11, of which the last was sampled and not computed");
    assert_eq!(batch.copies.len(), 1, "the last two are inside a block");
}

#[test]
fn sequences_that_come_to_the_same_blocks_share_them() {
    let mut scheduler = scheduler(8);
    scheduler.add(ask(1, &[1, 2, 3], 9)).expect("fits");
    scheduler.add(ask(2, &[1, 2, 3], 9)).expect("fits");
    for (used, free) in [(2, 6), (1, 7), (3, 5)] {
        let batch = scheduler.schedule(usize::MAX).expect("there is work");
        let outputs: Vec<_> = batch.items.iter().map(|item| (item.id, 7, false)).collect();
        scheduler.complete(&batch, &outputs);
        // Two blocks; full and the same; one more for each.
        assert_eq!((scheduler.usage().used, scheduler.num_free_blocks()), (used, free));
    }
}

#[test]
fn salts_keep_requests_apart() {
    let mut scheduler = scheduler(8);
    run(&mut scheduler, ask(1, &tokens(0..9), 1));
    assert_eq!(
        [scheduler.cached_prefix(&tokens(0..9), 0), scheduler.cached_prefix(&tokens(0..9), 1)],
        [8, 0]
    );
    let salted = Request { cache: CacheUse { salt: 1, reads: true }, ..ask(2, &tokens(0..9), 1) };
    assert_eq!(run(&mut scheduler, salted).items[0].started, Some(0));
}

#[test]
fn a_request_that_does_not_read_computes_its_prompt_and_leaves_it_to_others() {
    let mut scheduler = scheduler(8);
    let unread = |id| Request { cache: CacheUse { salt: 0, reads: false }, ..ask(id, &tokens(0..9), 2) };
    run(&mut scheduler, unread(1));
    assert_eq!(run(&mut scheduler, unread(2)).items[0].started, Some(0));
    assert_eq!(run(&mut scheduler, ask(3, &tokens(0..9), 1)).items[0].started, Some(8));
    assert_eq!(scheduler.counters().prefix_queries, 9, "only the third asked");
    assert_eq!(scheduler.usage().cached, 3, "everything is there once");
}

#[test]
fn the_least_recently_used_is_evicted_first_and_its_end_before_its_beginning() {
    let mut scheduler = scheduler(6);
    let prompts = [tokens(0..9), tokens(100..109), tokens(200..205)];
    let found = |scheduler: &Scheduler| prompts.each_ref().map(|p| scheduler.cached_prefix(p, 0));
    run(&mut scheduler, ask(1, &prompts[0], 1));
    run(&mut scheduler, ask(2, &prompts[1], 1));
    assert_eq!((found(&scheduler), scheduler.usage().cached), ([8, 8, 0], 6));
    run(&mut scheduler, ask(3, &prompts[0], 1));
    run(&mut scheduler, ask(4, &prompts[2], 1));
    assert_eq!(found(&scheduler), [8, 4, 4], "the second prompt's last two blocks");
    let usage = scheduler.usage();
    assert_eq!((usage.blocks, usage.used, usage.cached, scheduler.num_free_blocks()), (6, 0, 6, 6));
}

#[test]
fn without_a_prefix_cache_nothing_is_kept() {
    let config = SchedulerConfig { max_num_batched_tokens: 100, prefix_caching: false, ..config() };
    let mut scheduler = Scheduler::new(config);
    for id in 1..=2 {
        assert_eq!(run(&mut scheduler, ask(id, &tokens(0..60), 9)).items[0].started, Some(0));
    }
    assert_eq!((scheduler.usage().cached, scheduler.counters().prefix_queries), (0, 0));
}

#[test]
fn a_cached_prefix_keeps_its_owners_and_copies_stay_with_them() {
    let context = ContextParallel { ranks: 2, segment_blocks: 2 };
    let config =
        SchedulerConfig { num_blocks: 16, block_size: 4, max_num_batched_tokens: 100, context, ..config() };
    let mut scheduler = Scheduler::new(config);
    run(&mut scheduler, ask(1, &tokens(0..16), 1));
    let batch = begin(&mut scheduler, ask(2, &[&tokens(0..10)[..], &[99; 7]].concat(), 1));
    let owners: Vec<u32> = batch.items[0].block_table.iter().map(|block| block % 2).collect();
    assert_eq!((batch.items[0].started, &owners[..4]), (Some(10), &[0, 0, 1, 1][..]));
    let [(from, to)] = batch.copies[..] else { panic!("one copy") };
    assert_eq!((from % 2, to % 2), (1, 1));
}

#[test]
fn what_is_cached_is_not_used_where_a_request_could_not_end_with_it() {
    // Each of two owners has room for a segment of three blocks and for two blocks of another.
    let context = ContextParallel { ranks: 2, segment_blocks: 3 };
    let mut scheduler =
        Scheduler::new(SchedulerConfig { num_blocks: 10, block_size: 1, context, ..config() });
    scheduler.add(ask(1, &[10, 11, 12], 2)).expect("fits");
    scheduler.add(ask(2, &[20, 21, 22], 2)).expect("fits");
    let owners = |batch: &Batch| -> Vec<u32> { batch.items[0].block_table.iter().map(|b| b % 2).collect() };
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    end(&mut scheduler, &batch);
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    assert_eq!(owners(&batch), [0, 0, 0, 0], "both owners had two blocks left");
    assert_eq!(end(&mut scheduler, &batch), [1, 2]);
    // The second segment of this one is whole, and the first owner has no room for two.
    let prompt = [10, 11, 12, 7, 50];
    assert_eq!(scheduler.cached_prefix(&prompt, 0), 4);
    let batch = run(&mut scheduler, ask(3, &prompt, 3));
    assert_eq!((batch.items[0].started, owners(&batch)), (Some(3), vec![0, 0, 0, 1, 1]));
}
