//! What every backend of [`Collective`] must do. Each backend's tests call [`run`], or [`run_rank`] where ranks are
//! processes.

mod ends;
mod messages;
mod moves;
mod sums;
mod waits;

use std::sync::Mutex;
use std::time::Duration;

use tensor::Device;

use crate::Collective;

/// A deadline that no check reaches unless something hangs.
const LONG: Duration = Duration::from_secs(60);
/// A deadline that is waited for.
const SHORT: Duration = Duration::from_millis(100);

/// Makes a check whose patience is waited out. Whoever was only held up by a busy machine comes in time where there is more of it: so
/// the check is made again with four times as much until it gives no reason why not, and that is long only where something is wrong.
///
/// # Panics
/// With the last reason, if a quarter of a minute would not do.
pub fn patiently(first: Duration, check: impl Fn(Duration) -> Result<(), String>) {
    let mut patience = first;
    while let Err(why) = check(patience) {
        patience *= 4;
        assert!(patience < LONG / 4, "{why}");
    }
}

/// Runs all checks on groups of `ranks` threads and panics at the first that does not hold.
///
/// `make_group(ranks, deadline)` makes the ranks of a fresh group, `make_device(rank)` a rank's device on its thread.
pub fn run<D: Device, C: Collective<D> + Send>(
    ranks: usize,
    make_group: impl Fn(usize, Duration) -> Vec<C> + Sync,
    make_device: impl Fn(usize) -> D + Sync,
) {
    let on_all = |deadline: Duration, work: &(dyn Fn(usize, C, D) + Sync)| {
        let group = make_group(ranks, deadline);
        assert_eq!(group.len(), ranks);
        std::thread::scope(|scope| {
            for (rank, group) in group.into_iter().enumerate() {
                let make_device = &make_device;
                scope.spawn(move || work(rank, group, make_device(rank)));
            }
        });
    };
    Checks { ranks, on_all: &on_all }.run();
}

/// Runs one rank's part of all checks. Every rank's process calls it, with its own `rank`.
///
/// `make_rank(deadline)` joins a fresh group; all ranks call it in the same order.
pub fn run_rank<D: Device, C: Collective<D>>(
    rank: usize,
    ranks: usize,
    make_rank: impl Fn(Duration) -> C + Sync,
    make_device: impl Fn(usize) -> D + Sync,
) {
    let on_all = |deadline: Duration, work: &(dyn Fn(usize, C, D) + Sync)| {
        work(rank, make_rank(deadline), make_device(rank));
    };
    Checks { ranks, on_all: &on_all }.run();
}

/// Runs a rank's work on a fresh group with a deadline.
type OnAll<'a, D, C> = &'a (dyn Fn(Duration, &(dyn Fn(usize, C, D) + Sync)) + Sync);

/// The checks. What ranks do in one is a function of the rank alone, so that they may be processes.
struct Checks<'a, D, C> {
    ranks: usize,
    on_all: OnAll<'a, D, C>,
}

impl<D: Device, C: Collective<D>> Checks<'_, D, C> {
    fn run(&self) {
        self.trees();
        self.sizes();
        self.gathers();
        self.exchanges();
        self.broadcasts();
        self.mixed_calls();
        if self.ranks > 1 {
            self.a_late_rank_is_waited_for();
            self.each_sender_is_waited_for_by_itself();
            self.a_message_that_is_there_is_not_waited_for();
            self.a_wait_in_vain_is_counted();
            self.messages_keep_their_order();
            self.messages_and_collectives_mix();
            self.a_message_may_be_larger_than_any_buffer();
            self.matrices_keep_their_place_among_messages();
            self.a_matrix_of_another_size_is_an_error();
            self.nothing_is_there_until_it_was_sent();
            self.what_was_sent_before_the_end_arrives();
            self.a_missing_rank_is_named();
            self.a_missing_message_is_named();
            self.nobody_is_sent_more_than_he_takes_without_an_end();
            self.a_failure_ends_all();
            self.an_end_ends_all();
            self.an_abort_ends_every_wait();
        }
    }

    /// Runs `work`, which waits a short deadline out, on all ranks of fresh groups: [patiently], for a rank that was held up may be
    /// missing like the one that is. `work` gives a reason if that may be so.
    fn on_all_in_vain(&self, work: impl Fn(usize, C, D, Duration) -> Result<(), String> + Sync) {
        patiently(SHORT, |deadline| {
            let late = Mutex::new(None);
            (self.on_all)(deadline, &|rank, group, dev| {
                let prepared = group.prepare(&dev).map_err(|error| format!("prepare: {error}"));
                if let Err(why) = prepared.and_then(|_| work(rank, group, dev, deadline)) {
                    *late.lock().expect("nobody panics with it") = Some(why);
                }
            });
            // The ranks may be processes, and all or none of them try again.
            let others = Mutex::new(Vec::new());
            self.on_all(LONG, |_, group, _| {
                let is_late = late.lock().expect("nobody panics with it").is_some();
                let all = group.all_gather_host(&[f32::from(is_late)]).expect("all_gather_host");
                *others.lock().expect("nobody panics with it") = all.concat();
            });
            let others = others.into_inner().expect("nobody panics with it");
            let own = late.into_inner().expect("nobody panics with it");
            match others.iter().position(|&is_late| is_late > 0.0) {
                None => Ok(()),
                Some(rank) => Err(own.unwrap_or_else(|| format!("rank {rank} says why"))),
            }
        });
    }

    /// Runs `work` on all ranks of a fresh group. The group ends when `work` does.
    fn on_all(&self, deadline: Duration, work: impl Fn(usize, C, D) + Sync) {
        (self.on_all)(deadline, &|rank, group, dev| {
            assert_eq!((group.rank(), group.size()), (rank, self.ranks));
            group.prepare(&dev).expect("prepare");
            work(rank, group, dev);
        });
    }
}

fn hash(a: u32, b: u32) -> u32 {
    let h = (a.wrapping_mul(0x9E37_79B9) ^ b).wrapping_mul(0x85EB_CA6B);
    let h = (h ^ h >> 13).wrapping_mul(0xC2B2_AE35);
    h ^ h >> 16
}

/// Numbers of very different sizes, so that their sum depends on the order.
fn value(a: u32, b: u32) -> f32 {
    const SCALES: [f32; 5] = [1e-3, 1e-1, 1.0, 30.0, 1e4];
    let h = hash(a, b);
    (h as f32 / u32::MAX as f32 - 0.5) * SCALES[h as usize % 5]
}

/// Bytes that say where they belong.
fn bytes(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| hash(seed, i) as u8).collect()
}

/// Numbers that say where they belong.
fn values(seed: u32, len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| value(seed, i)).collect()
}

/// Something different for each ordered pair of ranks and each case.
fn of_pair(from: usize, to: usize, case: usize) -> u32 {
    hash(hash(from as u32, to as u32), case as u32)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Takes a moment that is different for each seed.
fn dawdle(seed: u32) {
    (0..seed % 10_000).for_each(|_| std::hint::spin_loop());
}
