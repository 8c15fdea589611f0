//! What ranks tell of themselves, and whether that is of now.

use std::time::{Duration, Instant};

use engine::{RankPulse, RankReport};

use crate::metrics::RankState;

/// While there is work they are asked no more often: they answer between steps.
const EVERY: Duration = Duration::from_secs(1);
/// For so long somebody who wants to know waits for their answer.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The ranks, as far as is known.
#[derive(Default)]
pub struct Ranks {
    states: Vec<RankState>,
    /// The question that has no answer yet.
    asked: Option<Asked>,
    /// The last one that has.
    answered: Option<Asked>,
}

/// A question, and how many steps were known of by then.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    steps: u64,
}

impl Ranks {
    /// Ranks that have loaded.
    pub fn loaded(reports: &[RankReport]) -> Self {
        Ranks { states: reports.iter().map(RankState::loaded).collect(), ..Ranks::default() }
    }

    /// Their states.
    pub fn states(&self) -> &[RankState] {
        &self.states
    }

    /// Whether what they told is of now: without work of the last step, else of the last moment.
    pub fn are_fresh(&self, now: Instant, steps: u64, is_idle: bool) -> bool {
        self.answered.is_some_and(|Asked { at, steps: known }| {
            now.saturating_duration_since(at) < EVERY && (!is_idle || known == steps)
        })
    }

    /// Notes that they are asked; `false` if they are already.
    pub fn ask(&mut self, now: Instant, steps: u64) -> bool {
        let is_news = self.asked.is_none();
        self.asked.get_or_insert(Asked { at: now, steps });
        is_news
    }

    /// Takes their answer.
    pub fn take(&mut self, pulses: &[RankPulse], now: Instant) {
        self.answered = self.asked.take().map(|asked| Asked { at: now, ..asked });
        for (state, pulse) in self.states.iter_mut().zip(pulses) {
            state.update(pulse, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_asked_once_a_moment_and_again_behind_the_last_step() {
        let (mut ranks, began) = (Ranks::loaded(&[RankReport::default()]), Instant::now());
        let soon = began + EVERY / 2;
        assert!(!ranks.are_fresh(began, 0, true), "nothing is known");
        assert!(ranks.ask(began, 5) && !ranks.ask(began, 6), "one question at a time");
        ranks.take(&[RankPulse { steps: 5, ..RankPulse::default() }], began);
        assert_eq!(ranks.states()[0].steps, 5);
        assert!(ranks.are_fresh(soon, 6, false), "there is work, and it will have gone on again");
        assert!(!ranks.are_fresh(soon, 6, true), "there was a step behind the question");
        assert!(ranks.are_fresh(soon, 5, true));
        assert!(!ranks.are_fresh(began + EVERY, 5, true), "free memory changes without steps");
        assert!(ranks.ask(soon, 6));
    }
}
