//! The synchronisation of `shared`, model-checked: every interleaving (up to a number of preemptions) and
//! every outcome that the memory model allows. A lost wake-up shows as a deadlock, a missing
//! happens-before as a concurrent access to a slot or to a ring's memory.

#[allow(dead_code, missing_docs)]
#[path = "../src/shared/ring.rs"]
mod ring;
#[allow(dead_code, missing_docs)]
#[path = "../src/shared/sync.rs"]
mod sync;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering::*};
use loom::sync::{Arc, Condvar, Mutex};
use ring::{Pipe, Ring, UNIT};
use std::time::Duration;
use sync::{Patience, Rendezvous, Stop, Word, slot_of, slots};

/// The futex: a kernel compares and queues under a lock that wakers take, too.
struct LoomWord {
    value: AtomicU32,
    queue: Mutex<()>,
    woken: Condvar,
}

impl Word for LoomWord {
    fn load(&self) -> u32 {
        self.value.load(Acquire)
    }
    fn fetch_add(&self, by: u32) -> u32 {
        self.value.fetch_add(by, AcqRel)
    }
    fn fetch_or(&self, bits: u32) -> u32 {
        self.value.fetch_or(bits, AcqRel)
    }
    fn fetch_and(&self, bits: u32) -> u32 {
        self.value.fetch_and(bits, AcqRel)
    }
    fn replace(&self, from: u32, to: u32) -> bool {
        self.value.compare_exchange(from, to, AcqRel, Acquire).is_ok()
    }
}

impl LoomWord {
    fn new() -> Self {
        LoomWord { value: AtomicU32::new(0), queue: Mutex::new(()), woken: Condvar::new() }
    }

    fn sleep(&self, expected: u32) {
        let queue = self.queue.lock().unwrap();
        if self.value.load(Relaxed) == expected {
            drop(self.woken.wait(queue).unwrap());
        }
    }
    fn wake(&self) {
        let _queue = self.queue.lock().unwrap();
        self.woken.notify_all();
    }
}

struct Group {
    epochs: Vec<LoomWord>,
    failure: LoomWord,
    slots: Vec<UnsafeCell<u32>>,
    message: UnsafeCell<u32>,
    /// From rank 0 to rank 1.
    ring: Option<LoomRing>,
}

/// A ring of two units.
struct LoomRing {
    written: LoomWord,
    taken: LoomWord,
    units: [UnsafeCell<[u8; UNIT]>; 2],
}

impl Ring<LoomWord> for &LoomRing {
    fn written(&self) -> &LoomWord {
        &self.written
    }
    fn taken(&self) -> &LoomWord {
        &self.taken
    }
    fn units(&self) -> u32 {
        2
    }
    unsafe fn put(&self, at: u32, bytes: &[u8]) {
        for (unit, bytes) in self.units[at as usize..].iter().zip(bytes.chunks(UNIT)) {
            // SAFETY: loom checks that no other access happens at the same time, here and below.
            unit.with_mut(|unit| unsafe { (&mut *unit)[..bytes.len()].copy_from_slice(bytes) });
        }
    }
    unsafe fn get(&self, at: u32, len: usize, sink: &mut dyn FnMut(&[u8])) {
        for (i, unit) in self.units[at as usize..].iter().enumerate().take(len.div_ceil(UNIT)) {
            // SAFETY: as above.
            unit.with(|unit| sink(unsafe { &(&*unit)[..(len - i * UNIT).min(UNIT)] }));
        }
    }
}

impl Rendezvous for Group {
    type Word = LoomWord;
    fn ranks(&self) -> usize {
        self.epochs.len()
    }
    fn epoch(&self, rank: usize) -> &LoomWord {
        &self.epochs[rank]
    }
    fn failure(&self) -> &LoomWord {
        &self.failure
    }
    fn message_words(&self, _: usize) -> impl Iterator<Item = &LoomWord> {
        self.ring.iter().flat_map(|ring| [&ring.written, &ring.taken])
    }
    fn sleep(&self, word: &LoomWord, expected: u32, _: Option<Duration>) {
        word.sleep(expected);
    }
    fn wake(&self, word: &LoomWord) {
        word.wake();
    }
}

const PATIENCE: Patience = Patience { spin: Duration::ZERO, deadline: None };

impl Group {
    fn new(ranks: usize, with_ring: bool) -> Arc<Self> {
        let unit = || UnsafeCell::new([0; UNIT]);
        let ring = LoomRing { written: LoomWord::new(), taken: LoomWord::new(), units: [unit(), unit()] };
        Arc::new(Group {
            epochs: (0..ranks).map(|_| LoomWord::new()).collect(),
            failure: LoomWord::new(),
            ring: with_ring.then_some(ring),
            slots: (0..slots(ranks)).map(|_| UnsafeCell::new(0)).collect(),
            message: UnsafeCell::new(0),
        })
    }

    /// A step as `shared` makes it: writes its slot, publishes, waits, reads the others' slots.
    fn step(&self, rank: usize, step: u32) -> Result<(), Stop> {
        if self.has_failed() {
            return Err(Stop::Failed);
        }
        let slot = |rank: usize| &self.slots[slot_of(self.ranks(), rank, step)];
        // SAFETY: loom checks that no other access happens at the same time, here and below.
        slot(rank).with_mut(|slot| unsafe { *slot = step * 10 + rank as u32 });
        self.publish(rank);
        self.wait(rank, step, &PATIENCE)?;
        for other in (0..self.ranks()).filter(|&other| other != rank) {
            // SAFETY: as above.
            assert_eq!(slot(other).with(|slot| unsafe { *slot }), step * 10 + other as u32);
        }
        Ok(())
    }

    /// The end of the ring of rank 0, or of rank 1.
    fn pipe(&self, rank: usize) -> Pipe<'_, Group, &LoomRing> {
        Pipe { group: self, ring: self.ring.as_ref().expect("a group with a ring"), peer: 1 - rank }
    }

    fn send(&self, message: &[u8]) -> Result<(), Stop> {
        self.pipe(0).send(message, &PATIENCE)
    }

    fn recv(&self) -> Result<Vec<u8>, Stop> {
        let (pipe, mut message) = (self.pipe(1), Vec::new());
        let len = pipe.begin(&PATIENCE)?;
        pipe.take(len, &PATIENCE, &mut |part| message.extend_from_slice(part))?;
        Ok(message)
    }

    fn fail_with(&self, message: u32) {
        // SAFETY: as above.
        self.fail(0, || self.message.with_mut(|m| unsafe { *m = message }));
    }

    fn why(&self) -> u32 {
        self.await_explanation();
        // SAFETY: as above.
        self.message.with(|m| unsafe { *m })
    }
}

/// Runs `work` on every rank of a group, rank 0 on this thread.
fn check(ranks: usize, preemptions: usize, work: fn(&Group, usize)) {
    check_group(ranks, preemptions, false, work);
}

/// The same, with a ring from rank 0 to rank 1.
fn check_ring(ranks: usize, preemptions: usize, work: fn(&Group, usize)) {
    check_group(ranks, preemptions, true, work);
}

fn check_group(ranks: usize, preemptions: usize, with_ring: bool, work: fn(&Group, usize)) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let group = Group::new(ranks, with_ring);
        let spawn = |rank| {
            let group = group.clone();
            loom::thread::spawn(move || work(&group, rank))
        };
        let others: Vec<_> = (1..ranks).map(spawn).collect();
        work(&group, 0);
        others.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
fn two_ranks_see_each_others_slots() {
    check(2, 3, |group, rank| (1..=3).for_each(|step| group.step(rank, step).unwrap()));
}

#[test]
fn three_ranks_see_each_others_slots() {
    check(3, 1, |group, rank| (1..=2).for_each(|step| group.step(rank, step).unwrap()));
}

#[test]
fn a_clean_end_is_silent() {
    check(2, 3, |group, rank| {
        (1..=2).for_each(|step| group.step(rank, step).unwrap());
        group.end(rank);
    });
}

#[test]
fn a_failure_ends_who_waits() {
    check(3, 1, |group, rank| match rank {
        2 => group.fail_with(7),
        _ => {
            assert_eq!(group.step(rank, 1), Err(Stop::Failed));
            assert_eq!(group.why(), 7);
        }
    });
}

#[test]
fn the_first_of_two_failures_wins() {
    check(3, 2, |group, rank| {
        if rank > 0 {
            group.fail_with(rank as u32);
        } else {
            assert_eq!(group.step(0, 1), Err(Stop::Failed));
        }
        let first = group.why();
        assert!(first == 1 || first == 2);
        assert_eq!(group.why(), first);
    });
}

#[test]
fn an_end_is_noticed_by_who_waits_for_another_rank() {
    // Rank 0 waits for rank 1 first, which never comes.
    check(3, 2, |group, rank| match rank {
        0 => {
            assert_eq!(group.step(0, 1), Err(Stop::Ended(2)));
            group.fail_with(2);
        }
        1 => {}
        _ => group.end(2),
    });
}

#[test]
fn all_who_wait_learn_of_an_end() {
    check(3, 1, |group, rank| match rank {
        2 => group.end(2),
        _ => {
            let stop = group.step(rank, 1).unwrap_err();
            assert!(stop == Stop::Ended(2) || stop == Stop::Failed);
            group.fail_with(2);
        }
    });
}

#[test]
fn an_end_between_steps_spoils_only_the_next() {
    check(2, 3, |group, rank| {
        group.step(rank, 1).unwrap();
        match rank {
            0 => assert_eq!(group.step(0, 2), Err(Stop::Ended(1))),
            _ => group.end(1),
        }
    });
}

#[test]
fn messages_arrive_in_order_and_stream_through_a_full_ring() {
    check_ring(2, 2, |group, rank| match rank {
        0 => [&b"a message"[..], b"second"].into_iter().for_each(|m| group.send(m).unwrap()),
        _ => {
            assert_eq!(group.recv().unwrap(), b"a message", "larger than what is left beside its length");
            assert_eq!(group.recv().unwrap(), b"second");
        }
    });
}

#[test]
fn messages_do_not_disturb_steps() {
    check_ring(2, 2, |group, rank| {
        if rank == 0 {
            group.send(b"early").unwrap();
        }
        group.step(rank, 1).unwrap();
        if rank == 1 {
            assert!(group.pipe(1).has_begun().unwrap(), "a message that was sent before the step");
            assert_eq!(group.recv().unwrap(), b"early");
        }
        group.step(rank, 2).unwrap();
    });
}

#[test]
fn what_was_sent_before_an_end_arrives_and_then_nothing_is_awaited() {
    check_ring(2, 3, |group, rank| match rank {
        0 => {
            group.send(b"last").unwrap();
            group.end(0);
        }
        _ => {
            assert_eq!(group.recv().unwrap(), b"last");
            assert_eq!(group.recv(), Err(Stop::Ended(0)));
        }
    });
}

#[test]
fn an_end_is_noticed_by_who_sends() {
    check_ring(2, 3, |group, rank| match rank {
        0 => assert_eq!((0..).find_map(|_| group.send(b"more").err()), Some(Stop::Ended(1))),
        _ => group.end(1),
    });
}

#[test]
fn a_failure_ends_sender_and_receiver() {
    check_ring(3, 1, |group, rank| match rank {
        0 => assert_eq!((0..).find_map(|_| group.send(b"more").err()), Some(Stop::Failed)),
        1 => assert_eq!(group.pipe(1).begin(&PATIENCE).and_then(|_| group.step(1, 1)), Err(Stop::Failed)),
        _ => group.fail_with(7),
    });
}
