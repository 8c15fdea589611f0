//! How ranks wait for each other: one word per rank, no locks, no clock while nobody is late.
//!
//! Ranks go through numbered steps together. In a step a rank writes its slot, *publishes* (adds one to the
//! epoch in its word) and *waits* until every epoch has reached the step; then it may read all slots of
//! that step. A word also holds who is affected by it:
//!
//! ```text
//!  31 … 24   23 … 2   1       0
//!  nudges    epoch    ENDED   SLEEPING
//! ```
//!
//! A waiter that is about to sleep sets SLEEPING in the word it waits for, looks whether the group has
//! failed, and sleeps only if the word still is what it saw. The owner's publish changes the epoch and wakes
//! only if SLEEPING was set. News that is not an epoch (a failure, a rank that ended) is written first; then
//! every word is *nudged*: changed, so that whoever is about to sleep on it does not, and woken. All this is
//! read-modify-write on one word, so its modification order alone proves that no wake-up is lost; there is
//! no Dekker pattern and no sequentially consistent fence. `tests/loom.rs` checks it.
//!
//! This file knows nothing of memory, so that the model checker can run it on its own atomics.

use std::time::{Duration, Instant};

const SLEEPING: u32 = 1;
const ENDED: u32 = 1 << 1;
const EPOCH: u32 = 1 << 2;
const NUDGE: u32 = 1 << 24;
/// Epochs are compared modulo this; ranks are never more than one apart.
const EPOCHS: u32 = NUDGE / EPOCH;

/// Values of the failure word. It only grows.
const CLAIMED: u32 = 1;
const EXPLAINED: u32 = 2;

/// Looks at a word between two looks at the clock.
const LOOKS: usize = 64;

/// An atomic word that a thread can sleep on. Loads acquire, read-modify-writes acquire and release.
pub trait Word {
    /// The value now.
    fn load(&self) -> u32;
    /// Adds, wrapping, and returns the value before.
    fn fetch_add(&self, by: u32) -> u32;
    /// Sets bits and returns the value before.
    fn fetch_or(&self, bits: u32) -> u32;
    /// Keeps only `bits` and returns the value before.
    fn fetch_and(&self, bits: u32) -> u32;
    /// Replaces `from` by `to` and says whether it did.
    fn replace(&self, from: u32, to: u32) -> bool;
    /// Sleeps until woken if the word is `expected`; may return early.
    fn sleep(&self, expected: u32, at_most: Option<Duration>);
    /// Wakes all who sleep on this word.
    fn wake(&self);
}

/// How long a wait may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Polls for this long before it sleeps.
    pub spin: Duration,
    /// Gives up after this long.
    pub deadline: Option<Duration>,
}

/// Why a wait ended early.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// The group has failed.
    Failed,
    /// A rank ended before it reached the step.
    Ended(usize),
    /// The deadline passed without these ranks.
    Missing(Vec<usize>),
}

fn reached(word: u32, step: u32) -> bool {
    (word / EPOCH).wrapping_sub(step) % EPOCHS < EPOCHS / 2
}

/// A group's words, and what ranks do with them.
pub trait Rendezvous {
    /// The words.
    type Word: Word;
    /// Ranks in the group.
    fn ranks(&self) -> usize;
    /// A rank's word; 0 at the start.
    fn epoch(&self, rank: usize) -> &Self::Word;
    /// The failure word; 0 at the start.
    fn failure(&self) -> &Self::Word;

    /// Says that `rank` has written what others read in its next step.
    fn publish(&self, rank: usize) {
        let word = self.epoch(rank);
        if word.fetch_add(EPOCH) & SLEEPING != 0 {
            // Who sets SLEEPING between the two is woken for nothing, and looks again.
            word.fetch_and(!SLEEPING);
            word.wake();
        }
    }

    /// Returns when all ranks but `me`, who has, have published `step`.
    fn wait(&self, me: usize, step: u32, patience: &Patience) -> Result<(), Stop> {
        (0..self.ranks()).filter(|&rank| rank != me).try_for_each(|rank| self.wait_for(rank, step, patience))
    }

    /// Returns when `rank` has published `step`: polls, then sleeps.
    fn wait_for(&self, rank: usize, step: u32, patience: &Patience) -> Result<(), Stop> {
        let word = self.epoch(rank);
        let mut began = None;
        while !patience.spin.is_zero() {
            for _ in 0..LOOKS {
                if reached(word.load(), step) {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            self.look(step)?;
            let now = Instant::now();
            if now.duration_since(*began.get_or_insert(now)) >= patience.spin {
                break;
            }
        }
        let gives_up = patience.deadline.map(|d| began.unwrap_or_else(Instant::now) + d);
        while !reached(word.load(), step) {
            let seen = word.fetch_or(SLEEPING) | SLEEPING;
            if reached(seen, step) {
                break;
            }
            self.look(step)?;
            let left = gives_up.map(|t| t.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Stop::Missing(self.missing(rank, step)));
            }
            word.sleep(seen, left);
        }
        Ok(())
    }

    /// Whether something happened because of which `step` cannot complete.
    fn look(&self, step: u32) -> Result<(), Stop> {
        if self.has_failed() {
            return Err(Stop::Failed);
        }
        (0..self.ranks()).try_for_each(|rank| match self.epoch(rank).load() {
            word if word & ENDED != 0 && !reached(word, step) => Err(Stop::Ended(rank)),
            _ => Ok(()),
        })
    }

    /// The ranks that have not published `step`, `known` among them.
    fn missing(&self, known: usize, step: u32) -> Vec<usize> {
        (0..self.ranks()).filter(|&r| r == known || !reached(self.epoch(r).load(), step)).collect()
    }

    /// Whether a rank has failed.
    fn has_failed(&self) -> bool {
        self.failure().load() != 0
    }

    /// Fails the group. `explain` writes why, unless another rank was first.
    fn fail(&self, explain: impl FnOnce()) {
        if self.failure().replace(0, CLAIMED) {
            explain();
            self.failure().fetch_add(EXPLAINED - CLAIMED);
            self.failure().wake();
            (0..self.ranks()).for_each(|rank| self.nudge(rank));
        }
    }

    /// Returns when what [`Rendezvous::fail`] explained can be read.
    fn await_explanation(&self) {
        while self.failure().load() != EXPLAINED {
            self.failure().sleep(CLAIMED, None);
        }
    }

    /// Says that `rank` makes no more calls. Nobody minds who does not wait for it.
    fn end(&self, rank: usize) {
        self.epoch(rank).fetch_or(ENDED);
        (0..self.ranks()).for_each(|other| self.nudge(other));
    }

    /// Makes everybody who sleeps on a word, or is about to, look again.
    fn nudge(&self, rank: usize) {
        let word = self.epoch(rank);
        if word.fetch_add(NUDGE) & SLEEPING != 0 {
            word.wake();
        }
    }
}
