//! What single steps look like.

mod preemption;
mod prefix_cache;

use scheduler::{Batch, CacheUse, ContextParallel, Request, Scheduler, SchedulerConfig, SchedulerError};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 8,
        block_size: 16,
        max_num_seqs: 4,
        max_num_batched_tokens: 10,
        context: ContextParallel::OFF,
        prefix_caching: true,
    }
}

fn request(id: u64, prompt_tokens: u32, max_tokens: usize) -> Request {
    let prompt = (0..prompt_tokens).map(|token| 1000 * id as u32 + token).collect();
    Request { id, prompt, max_tokens, cache: CacheUse::default() }
}

/// `(id, start, tokens, samples)` of each item.
type Shape = Vec<(u64, usize, usize, bool)>;

fn shape(batch: &Batch) -> Shape {
    batch.items.iter().map(|i| (i.id, i.start, i.tokens.len(), i.samples)).collect()
}

/// Runs one step whose every sampled token is 7; its shape, and who ended.
fn step(scheduler: &mut Scheduler) -> (Shape, Vec<u64>) {
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    let outputs: Vec<_> = batch.items.iter().filter(|i| i.samples).map(|i| (i.id, 7, false)).collect();
    (shape(&batch), scheduler.complete(&batch, &outputs))
}

#[test]
fn decode_rows_come_first_and_prompts_share_what_is_left() {
    let mut scheduler = Scheduler::new(config());
    scheduler.add(request(1, 8, 3)).expect("fits");
    scheduler.add(request(2, 12, 1)).expect("fits");
    assert_eq!(step(&mut scheduler), (vec![(1, 0, 8, true), (2, 0, 2, false)], vec![]));
    assert_eq!(step(&mut scheduler), (vec![(1, 8, 1, true), (2, 2, 9, false)], vec![]));
    assert_eq!(step(&mut scheduler), (vec![(1, 9, 1, true), (2, 11, 1, true)], vec![1, 2]));
    assert!(scheduler.schedule(usize::MAX).is_none() && scheduler.is_idle());
    assert_eq!(scheduler.num_free_blocks(), 8);
}

#[test]
fn blocks_are_taken_as_positions_grow() {
    let mut scheduler = Scheduler::new(config());
    scheduler.add(request(1, 15, 100)).expect("fits");
    let mut free_after = || {
        step(&mut scheduler);
        scheduler.num_free_blocks()
    };
    let blocks = [free_after(), free_after(), free_after(), free_after(), free_after()];
    // 10 positions, 15, 16, 17, 18.
    assert_eq!(blocks, [7, 7, 7, 6, 6]);
}

#[test]
fn blocks_say_who_holds_them_and_segments_are_not_torn() {
    let context = ContextParallel { ranks: 2, segment_blocks: 2 };
    let mut scheduler = Scheduler::new(SchedulerConfig { max_num_batched_tokens: 128, context, ..config() });
    // Each owner has room for two segments of 32 positions.
    let error = scheduler.add(request(1, 100, 29)).expect_err("129 tokens");
    assert!(error.to_string().contains("holds 128 tokens of one request"), "{error}");
    scheduler.add(request(1, 70, 2)).expect("two segments and a block");
    scheduler.add(request(2, 17, 1)).expect("a segment");
    scheduler.add(request(3, 16, 1)).expect("fits alone");
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    let owners = |item: usize| -> Vec<u32> { batch.items[item].block_table.iter().map(|b| b % 2).collect() };
    assert_eq!((owners(0), owners(1)), (vec![0, 0, 1, 1, 0], vec![1, 1]));
    assert_eq!(batch.items.len(), 2, "3 needs two blocks, one is free");
    assert_eq!(scheduler.num_free_blocks(), 1);
}

#[test]
fn nobody_overtakes_a_request_that_waits_for_blocks() {
    let mut scheduler = Scheduler::new(SchedulerConfig { max_num_batched_tokens: 200, ..config() });
    scheduler.add(request(1, 20, 20)).expect("fits");
    scheduler.add(request(2, 96, 9)).expect("fits alone");
    scheduler.add(request(3, 1, 1)).expect("fits");
    let (items, _) = step(&mut scheduler);
    assert_eq!(items, [(1, 0, 20, true)], "2 needs 7 blocks, 6 are free, 3 is behind 2");
    assert!(scheduler.abort(2));
    assert_eq!(step(&mut scheduler).0, [(1, 20, 1, true), (3, 0, 1, true)]);
}

#[test]
fn a_step_keeps_to_its_budget_but_has_a_row_for_everyone() {
    let mut scheduler = Scheduler::new(config());
    scheduler.add(request(1, 1, 9)).expect("fits");
    scheduler.add(request(2, 1, 9)).expect("fits");
    scheduler.add(request(3, 30, 9)).expect("fits");
    let mut rows = |budget: usize| {
        let batch = scheduler.schedule(budget).expect("there is work");
        let outputs: Vec<_> = batch.items.iter().filter(|i| i.samples).map(|i| (i.id, 7, false)).collect();
        scheduler.complete(&batch, &outputs);
        (batch.num_decoding, batch.num_tokens())
    };
    let rows = [rows(0), rows(4), rows(0), rows(usize::MAX)];
    // 1; 1, 2 and two tokens of 3; one of everyone; max_num_batched_tokens.
    assert_eq!(rows, [(0, 1), (1, 4), (2, 3), (2, 10)]);
}

#[test]
fn chunks_follow_each_other_before_they_have_run() {
    let mut scheduler = Scheduler::new(config());
    scheduler.add(request(1, 25, 1)).expect("fits");
    for start in [0, 10] {
        let batch = scheduler.schedule(usize::MAX).expect("a chunk");
        assert_eq!(shape(&batch), [(1, start, 10, false)]);
        assert_eq!(scheduler.complete(&batch, &[]), []);
    }
    assert_eq!(step(&mut scheduler), (vec![(1, 20, 5, true)], vec![1]));
}

#[test]
fn no_more_sequences_run_than_a_step_has_tokens_for() {
    let mut scheduler = Scheduler::new(SchedulerConfig { max_num_batched_tokens: 2, ..config() });
    for id in 0..3 {
        scheduler.add(request(id, 1, 2)).expect("fits");
    }
    assert_eq!(step(&mut scheduler), (vec![(0, 0, 1, true), (1, 0, 1, true)], vec![]));
    assert_eq!(step(&mut scheduler), (vec![(0, 1, 1, true), (1, 1, 1, true)], vec![0, 1]));
    assert_eq!(step(&mut scheduler), (vec![(2, 0, 1, true)], vec![]));
}

#[test]
fn a_stop_ends_a_request_before_its_max_tokens() {
    let mut scheduler = Scheduler::new(config());
    scheduler.add(request(1, 4, 50)).expect("fits");
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    assert_eq!(scheduler.complete(&batch, &[(1, 9, true)]), [1]);
    assert!(scheduler.is_idle());
}

#[test]
fn an_id_may_come_back_while_the_step_of_its_aborted_namesake_runs() {
    let mut scheduler = Scheduler::new(config());
    scheduler.add(request(1, 4, 50)).expect("fits");
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    assert!(scheduler.abort(1) && !scheduler.abort(1));
    scheduler.add(request(1, 6, 2)).expect("the id is free");
    assert_eq!(scheduler.complete(&batch, &[(1, 9, true)]), []);
    assert_eq!(step(&mut scheduler).0, [(1, 0, 6, true)]);
}

#[test]
fn what_cannot_run_is_refused_with_its_numbers() {
    let mut scheduler = Scheduler::new(config());
    assert_eq!(scheduler.add(request(1, 0, 5)), Err(SchedulerError::EmptyPrompt { id: 1 }));
    assert_eq!(scheduler.add(request(1, 5, 0)), Err(SchedulerError::NoTokens { id: 1 }));
    scheduler.add(request(1, 5, 5)).expect("fits");
    assert_eq!(scheduler.add(request(1, 5, 5)), Err(SchedulerError::DuplicateId { id: 1 }));
    scheduler.add(request(2, 100, 28)).expect("exactly 128 tokens");
    let error = scheduler.add(request(3, 100, 29)).expect_err("129 tokens");
    assert_eq!(
        error.to_string(),
        "request 3: 100 prompt tokens and max_tokens 29 do not fit in the KV cache, which holds 128 tokens of one request (8 blocks of 16)"
    );
    assert!(scheduler.add(request(3, 1, usize::MAX)).is_err());
}

#[test]
#[should_panic(expected = "one output if it samples")]
fn a_missing_output_is_a_mistake() {
    let mut scheduler = Scheduler::new(config());
    scheduler.add(request(1, 4, 5)).expect("fits");
    let batch = scheduler.schedule(usize::MAX).expect("there is work");
    scheduler.complete(&batch, &[]);
}
