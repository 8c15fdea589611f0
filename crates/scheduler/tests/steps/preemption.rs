//! Who gives way when blocks run out.

use super::*;

/// Two requests that need three blocks of 4 each, of which there are five.
fn two_that_do_not_fit(prefix_caching: bool) -> Scheduler {
    let config = SchedulerConfig { num_blocks: 5, block_size: 4, prefix_caching, ..config() };
    let mut scheduler = Scheduler::new(config);
    scheduler.add(request(1, 4, 8)).expect("fits");
    scheduler.add(request(2, 4, 8)).expect("fits");
    scheduler
}

/// Runs to the end; each step's shape, and who was preempted in it.
fn all(scheduler: &mut Scheduler) -> Vec<(Shape, Vec<u64>)> {
    let mut steps = Vec::new();
    while let Some(batch) = scheduler.schedule(usize::MAX) {
        let outputs: Vec<_> = batch.items.iter().filter(|i| i.samples).map(|i| (i.id, 7, false)).collect();
        scheduler.complete(&batch, &outputs);
        steps.push((shape(&batch), batch.preempted));
    }
    steps
}

#[test]
fn the_latest_arrival_gives_way_and_computes_again_what_it_had() {
    let mut scheduler = two_that_do_not_fit(false);
    let steps = all(&mut scheduler);
    // At first each has a block, then two; the third of the first is the last one.
    assert_eq!(steps[4], (vec![(1, 7, 1, true), (2, 7, 1, true)], vec![]));
    assert_eq!(steps[5], (vec![(1, 8, 1, true)], vec![2]), "the fifth block is the first's");
    assert!(steps[6..8].iter().all(|step| step.0.len() == 1), "the second needs three blocks, two are free");
    assert_eq!(steps[8], (vec![(2, 0, 9, true)], vec![]), "its prompt and the five tokens that it had");
    assert_eq!((steps.len(), &steps[10].0), (11, &vec![(2, 10, 1, true)]), "its eighth token");
    assert_eq!(scheduler.counters().preemptions, 1);
    assert_eq!(scheduler.num_free_blocks(), 5);
}

#[test]
fn the_prefix_cache_remembers_what_a_preempted_request_had_computed() {
    let mut scheduler = two_that_do_not_fit(true);
    let steps = all(&mut scheduler);
    assert_eq!(steps[5], (vec![(1, 8, 1, true)], vec![2]));
    assert_eq!(steps[8], (vec![(2, 8, 1, true)], vec![]), "both of its blocks");
    let counters = scheduler.counters();
    assert_eq!((counters.prefix_queries, counters.prefix_hits), (8, 0), "prompts are counted once");
}

#[test]
fn it_says_when_a_request_starts_again() {
    let mut scheduler = two_that_do_not_fit(true);
    let mut started = Vec::new();
    while let Some(batch) = scheduler.schedule(usize::MAX) {
        started.extend(batch.items.iter().filter_map(|i| i.started.map(|cached| (i.id, cached))));
        let outputs: Vec<_> = batch.items.iter().filter(|i| i.samples).map(|i| (i.id, 7, false)).collect();
        scheduler.complete(&batch, &outputs);
    }
    assert_eq!(started, [(1, 0), (2, 0), (2, 8)]);
}

#[test]
fn a_preempted_request_keeps_its_place_before_those_that_came_later() {
    let mut scheduler = two_that_do_not_fit(true);
    while scheduler.counters().preemptions == 0 {
        step(&mut scheduler);
    }
    scheduler.add(request(3, 1, 1)).expect("fits");
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (1, 2));
    let steps = all(&mut scheduler);
    let first_of = |id| steps.iter().position(|step| step.0.iter().any(|item| item.0 == id));
    assert_eq!((first_of(2), first_of(3)), (Some(2), Some(2)), "together, when the first has ended");
    assert_eq!((steps[2].0[0].0, steps[2].0[1].0), (2, 3));
}

#[test]
fn a_request_that_waits_again_can_be_aborted() {
    let mut scheduler = two_that_do_not_fit(true);
    while scheduler.counters().preemptions == 0 {
        step(&mut scheduler);
    }
    assert!(scheduler.abort(2) && !scheduler.abort(2));
    assert!(all(&mut scheduler).iter().flat_map(|step| &step.0).all(|item| item.0 == 1));
    assert_eq!(scheduler.num_free_blocks(), 5);
}

#[test]
fn who_does_not_read_the_cache_reads_what_it_had_computed_itself() {
    let mut scheduler = Scheduler::new(SchedulerConfig { num_blocks: 5, block_size: 4, ..config() });
    scheduler.add(request(1, 4, 8)).expect("fits");
    let unread = CacheUse { salt: 0, reads: false };
    scheduler.add(Request { cache: unread, ..request(2, 4, 8) }).expect("fits");
    let steps = all(&mut scheduler);
    assert_eq!(steps[5].1, [2]);
    assert_eq!(steps[8].0, [(2, 8, 1, true)]);
}
