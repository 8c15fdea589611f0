//! How ranks wait for each other: one word per rank, no locks, no clock while nobody is late.
//!
//! Ranks go through numbered steps together. In a step a rank writes its slot, *publishes* (adds one to the
//! epoch in its word) and *waits* until every epoch has reached the step; then it may read the others' slots of
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
pub const EPOCHS: u32 = NUDGE / EPOCH;

/// Values of the failure word, above them the rank whose failure it is. It only grows.
const CLAIMED: u32 = 1;
const EXPLAINED: u32 = 2;
const FAILED_RANK: u32 = 4;
/// Who fails explains at once, unless its process is killed before it is done.
const EXPLAINS_WITHIN: Duration = Duration::from_secs(1);

/// Slots of a group.
pub fn slots(ranks: usize) -> usize {
    if ranks == 2 { 2 } else { 2 * ranks }
}

/// The slot that a rank writes in a step.
///
/// Each rank has two, which it writes in turn: the others may still read the one before. Two ranks have one each and
/// swap them: a rank writes what it has read itself in the step before, so that every line goes to and fro between two
/// caches. To write lines that it wrote before, it would first have to take them away from the reader, line by line,
/// which costs up to seven times as much.
pub fn slot_of(ranks: usize, rank: usize, step: u32) -> usize {
    let turn = step as usize % 2;
    if ranks == 2 { (rank + turn) % 2 } else { 2 * rank + turn }
}

/// Looks at a word between two looks at the clock.
const LOOKS: usize = 64;

/// An atomic word. Loads acquire, read-modify-writes acquire and release.
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
    count(word).wrapping_sub(step) % EPOCHS < EPOCHS / 2
}

/// The epoch in a word, modulo [`EPOCHS`].
pub fn count(word: u32) -> u32 {
    word / EPOCH % EPOCHS
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
    /// The words on which who sends to a rank, or receives from it, may sleep (see `ring`).
    fn message_words(&self, _rank: usize) -> impl Iterator<Item = &Self::Word> {
        std::iter::empty()
    }
    /// Sleeps until woken if the word is `expected`; may return early.
    fn sleep(&self, word: &Self::Word, expected: u32, at_most: Option<Duration>);
    /// Wakes all who sleep on a word.
    fn wake(&self, word: &Self::Word);

    /// Says that `rank` has written what others read in its next step.
    fn publish(&self, rank: usize) {
        self.advance(self.epoch(rank), 1);
    }

    /// Adds to the epoch in a word, and wakes who sleeps on it.
    fn advance(&self, word: &Self::Word, by: u32) {
        if word.fetch_add(by * EPOCH) & SLEEPING != 0 {
            // Who sets SLEEPING between the two is woken for nothing, and looks again.
            word.fetch_and(!SLEEPING);
            self.wake(word);
        }
    }

    /// Returns when all ranks but `me`, who has, have published `step`.
    fn wait(&self, me: usize, step: u32, patience: &Patience) -> Result<(), Stop> {
        (0..self.ranks()).filter(|&rank| rank != me).try_for_each(|rank| self.wait_for(rank, step, patience))
    }

    /// Whether all ranks but `me` have published `step`.
    fn are_there(&self, me: usize, step: u32) -> bool {
        (0..self.ranks()).all(|rank| rank == me || reached(self.epoch(rank).load(), step))
    }

    /// Returns when `rank` has published `step`.
    fn wait_for(&self, rank: usize, step: u32, patience: &Patience) -> Result<(), Stop> {
        let missing = || self.missing(rank, step);
        self.wait_on(self.epoch(rank), |word| reached(word, step), patience, || self.look(step), missing)
    }

    /// Returns when a word is as wanted: polls, then sleeps. `look` says what else may end the wait, `missing` for
    /// whom it was.
    fn wait_on(
        &self,
        word: &Self::Word,
        wanted: impl Fn(u32) -> bool,
        patience: &Patience,
        look: impl Fn() -> Result<(), Stop>,
        missing: impl Fn() -> Vec<usize>,
    ) -> Result<(), Stop> {
        let mut began = None;
        while !patience.spin.is_zero() {
            for _ in 0..LOOKS {
                if wanted(word.load()) {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            look()?;
            let now = Instant::now();
            if now.duration_since(*began.get_or_insert(now)) >= patience.spin {
                break;
            }
        }
        let gives_up = patience.deadline.map(|d| began.unwrap_or_else(Instant::now) + d);
        while !wanted(word.load()) {
            let seen = word.fetch_or(SLEEPING) | SLEEPING;
            if wanted(seen) {
                break;
            }
            look()?;
            let left = gives_up.map(|t| t.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Stop::Missing(missing()));
            }
            self.sleep(word, seen, left);
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

    /// Whether something happened because of which nothing more comes from `rank`, and nothing goes there.
    fn look_at(&self, rank: usize) -> Result<(), Stop> {
        match self.epoch(rank).load() {
            _ if self.has_failed() => Err(Stop::Failed),
            word if word & ENDED != 0 => Err(Stop::Ended(rank)),
            _ => Ok(()),
        }
    }

    /// The ranks that have not published `step`, `known` among them.
    fn missing(&self, known: usize, step: u32) -> Vec<usize> {
        (0..self.ranks()).filter(|&r| r == known || !reached(self.epoch(r).load(), step)).collect()
    }

    /// Whether a rank has failed.
    fn has_failed(&self) -> bool {
        self.failure().load() != 0
    }

    /// Fails the group because of `rank`. `explain` writes why, unless another rank was first.
    fn fail(&self, rank: usize, explain: impl FnOnce()) {
        let claimed = CLAIMED + rank as u32 * FAILED_RANK;
        if self.failure().replace(0, claimed) {
            explain();
            self.failure().fetch_add(EXPLAINED - CLAIMED);
            self.wake(self.failure());
            (0..self.ranks()).for_each(|rank| self.nudge(rank));
        }
    }

    /// The rank because of which the group failed, and whether what [`Rendezvous::fail`] explained can be read.
    /// Waits for it, but not for ever.
    fn await_explanation(&self) -> (usize, bool) {
        let began = Instant::now();
        loop {
            let word = self.failure().load();
            let explained = word % FAILED_RANK == EXPLAINED;
            let left = EXPLAINS_WITHIN.saturating_sub(began.elapsed());
            if explained || left.is_zero() {
                return ((word / FAILED_RANK) as usize, explained);
            }
            self.sleep(self.failure(), word, Some(left));
        }
    }

    /// Says that `rank` makes no more calls. Nobody minds who does not wait for it.
    fn end(&self, rank: usize) {
        self.epoch(rank).fetch_or(ENDED);
        (0..self.ranks()).for_each(|other| self.nudge_word(self.epoch(other)));
        self.message_words(rank).for_each(|word| self.nudge_word(word));
    }

    /// Makes everybody look again who sleeps on a word of a rank, or is about to.
    fn nudge(&self, rank: usize) {
        self.nudge_word(self.epoch(rank));
        self.message_words(rank).for_each(|word| self.nudge_word(word));
    }

    /// Makes everybody look again who sleeps on a word, or is about to.
    fn nudge_word(&self, word: &Self::Word) {
        if word.fetch_add(NUDGE) & SLEEPING != 0 {
            self.wake(word);
        }
    }
}
