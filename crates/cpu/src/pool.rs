//! The threads of one rank.
//!
//! ```text
//!  caller:  write the job ─▶ epoch += 1 ─▶ (wake sleepers) ─▶ its own part ─▶ wait until pending = 0
//!  worker:  wait until the epoch moves ─▶ its part ─▶ pending −= 1 ─▶ (the last wakes a sleeping caller)
//! ```
//! Both waits spin for a short time and then sleep on a futex. There are no locks and no queues: a job is a
//! reference to a closure on the caller's stack, and every thread computes which part is its own, or takes pieces of a
//! range (`share.rs`).

mod share;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, futex, sched_getaffinity, sched_setaffinity};

use tensor::ThreadLog;

use crate::buffer::Disjoint;
use share::Share;

/// How long a thread spins before it sleeps: longer than the gaps between the operations of a step, shorter
/// than anything a user would notice.
const SPIN: Duration = Duration::from_micros(80);
/// Set in `pending` while the caller sleeps.
const CALLER_SLEEPS: u32 = 1 << 31;

type Job = dyn Fn(usize) + Sync;

#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// Counts jobs. Workers sleep on it.
    epoch: Padded<AtomicU32>,
    /// Workers that sleep or are about to.
    sleepers: Padded<AtomicU32>,
    /// Workers that have not finished the job. The caller sleeps on it.
    pending: Padded<AtomicU32>,
    /// The job and how many threads it is for; none: stop. Written by the caller while no worker is at work.
    job: UnsafeCell<Option<(*const Job, usize)>>,
    panicked: AtomicBool,
    /// The first worker's panic. Written by the worker that set `panicked`, read when all have finished.
    panic: UnsafeCell<Option<Box<dyn Any + Send>>>,
    spin: bool,
}

// SAFETY: `job` is written only between the last decrement of `pending` and the increment of `epoch`, and read
// only between that increment and the reader's own decrement; `panic` has one writer, see there.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is followed only while its closure lives, and the closure is `Sync`.
unsafe impl Send for Shared {}

/// A thread per core; the thread that owns the pool is the first.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Guards against a job that starts a job.
    busy: Cell<bool>,
    /// The owner's affinity before it was pinned.
    affinity_before: Option<CpuSet>,
    /// What each thread has still to do of a job of [`Pool::share`].
    shares: Vec<Padded<Share>>,
    unpinned: Vec<usize>,
    log: Arc<ThreadLog>,
}

impl Pool {
    /// # Panics
    /// If `threads` is 0, if `cores` is given and has not `threads` entries, or if a thread cannot be spawned.
    pub(crate) fn new(threads: usize, cores: Option<&[usize]>, spin: bool) -> Self {
        assert!(threads > 0, "a pool has at least one thread");
        assert!(
            cores.is_none_or(|c| c.len() == threads),
            "a pool of {threads} threads got {cores:?} as cores"
        );
        // Threads that outnumber their cores must not spin: each would keep another from its work.
        let own_cores = match cores {
            Some(cores) => cores.iter().collect::<std::collections::BTreeSet<_>>().len(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let shared = Arc::new(Shared {
            epoch: Padded(AtomicU32::new(0)),
            sleepers: Padded(AtomicU32::new(0)),
            pending: Padded(AtomicU32::new(0)),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            panic: UnsafeCell::new(None),
            spin: spin && threads <= own_cores,
        });
        let workers = (1..threads).map(|thread| {
            let (shared, core) = (shared.clone(), cores.map(|c| c[thread]));
            let name = format!("cpu-{thread}");
            std::thread::Builder::new().name(name).spawn(move || {
                core.map(pin);
                shared.work(thread);
            })
        });
        let workers = workers.collect::<Result<_, _>>().expect("the system gives a thread");
        let affinity_before = cores.and_then(|_| sched_getaffinity(None).ok());
        // Asked here, though each worker pins itself: what is refused to one thread is refused to all.
        let mut unpinned = Vec::new();
        for &core in cores.unwrap_or_default().iter().rev() {
            if !pin(core) {
                unpinned.push(core);
            }
        }
        let log = Arc::new(ThreadLog::new(threads));
        let shares = (0..threads).map(|_| Padded(Share::default())).collect();
        Pool { shared, workers, busy: Cell::new(false), affinity_before, shares, unpinned, log }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    pub(crate) fn unpinned(&self) -> &[usize] {
        &self.unpinned
    }

    /// Where the threads write when they work, while someone wants to know.
    pub(crate) fn log(&self) -> &Arc<ThreadLog> {
        &self.log
    }

    /// Calls `work(thread)` for every thread below `parts`, each on its own thread, and returns when all are
    /// done. A panic of any of them is raised again here.
    pub(crate) fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        debug_assert!(parts <= self.threads());
        if parts <= 1 || self.workers.is_empty() {
            return (0..parts).for_each(work);
        }
        let log = &*self.log;
        match log.is_on() {
            false => self.run_job(parts, work),
            true => self.run_job(parts, &|thread| log.share(thread, || work(thread))),
        }
    }

    fn run_job(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        assert!(!self.busy.replace(true), "an operation started another inside its threads");
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker uses the pointer after it has left `pending`, and this
        // function does not return before that.
        let job: *const Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &Job>(work) };
        shared.start(Some((job, parts)), self.workers.len());
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        shared.wait_until_done();
        self.busy.set(false);
        if let Err(panic) = own {
            shared.panicked.store(false, Relaxed);
            resume_unwind(panic);
        }
        if shared.panicked.swap(false, Acquire) {
            // SAFETY: all workers have finished, so nobody writes it.
            let panic = unsafe { (*shared.panic.get()).take() };
            resume_unwind(panic.unwrap_or_else(|| Box::new("a worker panicked")));
        }
    }

    /// Splits `0..items` into contiguous ranges, multiples of `grain` but for the last, one per thread at most.
    pub(crate) fn split(&self, items: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
        let grain = grain.max(1);
        let grains = items.div_ceil(grain);
        let parts = grains.min(self.threads());
        self.run(parts, &|part| {
            let at = |part: usize| (grains * part / parts * grain).min(items);
            work(at(part)..at(part + 1))
        });
    }

    /// Like [`Pool::split`], in pieces: each thread takes half of what is left of its own range, from the front; who has
    /// nothing left takes half of what the slowest still has, from the end. For work that takes so long that other
    /// programs may hold up one of the threads. The work also gets the number of its thread, and where that thread's range
    /// ends for now.
    ///
    /// # Panics
    /// If there are 2³² grains.
    pub(crate) fn share(&self, items: usize, grain: usize, work: impl Fn(Range<usize>, usize, usize) + Sync) {
        let grain = grain.max(1);
        let grains = items.div_ceil(grain);
        let parts = grains.min(self.threads());
        let shares = &self.shares[..parts];
        for (part, share) in shares.iter().enumerate() {
            share.0.set(grains * part / parts..grains * (part + 1) / parts);
        }
        let at = |grains: usize| (grains * grain).min(items);
        self.run(parts, &|thread| {
            let own = &shares[thread].0;
            loop {
                while let Some((piece, end)) = own.take_front() {
                    work(at(piece.start)..at(piece.end), thread, at(end));
                }
                let busy = shares.iter().map(|share| &share.0).filter(|share| !share.get().is_empty());
                let Some(slowest) = busy.max_by_key(|share| share.get().len()) else { return };
                if let Some(stolen) = slowest.take_back() {
                    own.set(stolen);
                }
            }
        });
    }

    /// Splits a slice into runs of whole units, like [`Pool::split`]: `work(first unit, their elements)`.
    pub(crate) fn split_mut<T: Send>(
        &self,
        of: &mut [T],
        unit: usize,
        grain: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        if unit == 0 {
            return;
        }
        let (len, all) = (of.len(), Disjoint::new(of));
        self.split(len.div_ceil(unit), grain, |units| {
            // SAFETY: the ranges of `split` do not overlap.
            let part = unsafe { all.part(units.start * unit..(units.end * unit).min(len)) };
            work(units.start, part)
        });
    }

    /// Calls `work(item, thread)` for every item; each thread takes the next when it has finished one. For items
    /// of unequal size, on at most `parts` threads.
    pub(crate) fn take_turns(&self, items: usize, parts: usize, work: impl Fn(usize, usize) + Sync) {
        let next = AtomicUsize::new(0);
        self.run(parts.min(items).min(self.threads()), &|thread| {
            loop {
                let item = next.fetch_add(1, Relaxed);
                if item >= items {
                    break;
                }
                work(item, thread);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.start(None, 0);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        if let Some(before) = &self.affinity_before {
            let _ = sched_setaffinity(None, before);
        }
    }
}

impl Shared {
    fn start(&self, job: Option<(*const Job, usize)>, workers: usize) {
        // SAFETY: no job is running, so no worker reads it.
        unsafe { *self.job.get() = job };
        self.pending.0.store(workers as u32, Relaxed);
        self.epoch.0.fetch_add(1, SeqCst);
        // SeqCst on both sides: either this sees the sleeper, or the sleeper sees the new epoch.
        if self.sleepers.0.load(SeqCst) > 0 {
            let _ = futex::wake(&self.epoch.0, futex::Flags::PRIVATE, i32::MAX as u32);
        }
    }

    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            // SAFETY: the epoch moved, so the job is written and stays until this worker leaves `pending`.
            let Some((job, parts)) = (unsafe { *self.job.get() }) else { return };
            if thread < parts {
                // SAFETY: the caller keeps the closure alive until this worker leaves `pending`.
                let result = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(thread) }));
                if let Err(panic) = result
                    && !self.panicked.swap(true, AcqRel)
                {
                    // SAFETY: only the first that panics comes here.
                    unsafe { *self.panic.get() = Some(panic) };
                }
            }
            if self.pending.0.fetch_sub(1, AcqRel) == CALLER_SLEEPS | 1 {
                let _ = futex::wake(&self.pending.0, futex::Flags::PRIVATE, 1);
            }
        }
    }

    fn wait_for_job(&self, seen: u32) -> u32 {
        let moved = || Some(self.epoch.0.load(Acquire)).filter(|&now| now != seen);
        if let Some(now) = self.spin_until(moved) {
            return now;
        }
        loop {
            self.sleepers.0.fetch_add(1, SeqCst);
            if self.epoch.0.load(SeqCst) == seen {
                // Whatever wakes it, a signal included, it looks again.
                let _ = futex::wait(&self.epoch.0, futex::Flags::PRIVATE, seen, None);
            }
            self.sleepers.0.fetch_sub(1, SeqCst);
            if let Some(now) = moved() {
                return now;
            }
        }
    }

    fn wait_until_done(&self) {
        let done = || (self.pending.0.load(Acquire) == 0).then_some(());
        if self.spin_until(done).is_some() {
            return;
        }
        let mut left = self.pending.0.fetch_or(CALLER_SLEEPS, AcqRel) | CALLER_SLEEPS;
        while left != CALLER_SLEEPS {
            let _ = futex::wait(&self.pending.0, futex::Flags::PRIVATE, left, None);
            left = self.pending.0.load(Acquire);
        }
        self.pending.0.store(0, Relaxed);
    }

    /// Asks again and again, for a bounded time.
    fn spin_until<T>(&self, ask: impl Fn() -> Option<T>) -> Option<T> {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if !self.spin {
            return None;
        }
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                std::hint::spin_loop();
                if let Some(answer) = ask() {
                    return Some(answer);
                }
            }
            if start.elapsed() > SPIN {
                return None;
            }
        }
    }
}

/// Binds the calling thread to a core. False if the system refuses.
pub(crate) fn pin(core: usize) -> bool {
    if core >= CpuSet::MAX_CPU {
        return false;
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn add(to: &AtomicU64, n: u64) {
        to.fetch_add(n, Relaxed);
    }

    #[test]
    fn every_item_is_done_once_by_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            for spin in [false, true] {
                let pool = Pool::new(threads, None, spin);
                for items in [0, 1, 2, 7, 64, 1001] {
                    let counts: Vec<AtomicU64> = (0..items).map(|_| AtomicU64::new(0)).collect();
                    pool.split(items, 3, |range| range.for_each(|i| add(&counts[i], 1)));
                    pool.take_turns(items, threads, |i, _| add(&counts[i], 2));
                    pool.share(items, 3, |range, _, end| {
                        assert!(range.end <= end && end <= items);
                        range.for_each(|i| add(&counts[i], 4));
                    });
                    assert!(counts.iter().all(|c| c.load(Relaxed) == 7));
                }
            }
        }
    }

    #[test]
    fn who_is_held_up_leaves_its_work_to_others() {
        let pool = Pool::new(2, None, false);
        let done: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
        pool.share(64, 1, |range, thread, _| {
            // The first piece of thread 1 lasts until thread 0 has all the rest.
            while thread == 1 && done[0].load(Relaxed) < 48 {
                std::thread::yield_now();
            }
            add(&done[thread], range.len() as u64);
        });
        // If thread 1 comes late, not even its first piece is left to it.
        let done = done.map(AtomicU64::into_inner);
        assert!(done[0] >= 48 && done[0] + done[1] == 64, "{done:?}");
    }

    #[test]
    fn more_threads_than_cores_finish_quickly() {
        let pool = Pool::new(8, None, true);
        let count = AtomicU64::new(0);
        let start = Instant::now();
        for _ in 0..2000 {
            pool.run(8, &|_| add(&count, 1));
        }
        assert_eq!(count.load(Relaxed), 16000);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?} for 2000 jobs", start.elapsed());
    }

    #[test]
    fn ranges_are_multiples_of_the_grain_but_the_last() {
        let pool = Pool::new(3, None, false);
        pool.split(100, 16, |r| assert!(r.start % 16 == 0 && (r.end % 16 == 0 || r.end == 100)));
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_and_the_pool_goes_on() {
        for bad in 0..3 {
            let pool = Pool::new(3, None, true);
            for _ in 0..20 {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(3, &|t| assert_ne!(t, bad, "thread {bad} gives up"))
                }));
                let message = result.unwrap_err().downcast::<String>().unwrap();
                assert!(message.contains("gives up"));
                pool.run(3, &|_| ());
            }
        }
    }

    #[test]
    fn pinned_threads_run_and_a_core_that_is_not_there_is_reported() {
        let before = sched_getaffinity(None).unwrap();
        let pool = Pool::new(2, Some(&[0, 1023]), true);
        assert_eq!(pool.unpinned(), [1023]);
        pool.split(10, 1, |_| ());
        drop(pool);
        assert!(sched_getaffinity(None).unwrap() == before);
    }
}
