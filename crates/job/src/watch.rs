//! Who watches whom once the job has begun.
//!
//! ```text
//!  rank 0   hub: one reader per rank ──events──▶ Roll ──verdict──▶ every rank
//!  rank n   reader ◀── beats, verdict ── rank 0      beater ── beats with (op, number) ──▶ rank 0
//! ```
//! A rank is lost when its connection ends without a goodbye, or nothing comes from it for the timeout. Rank 0 says so to
//! all; every process then aborts its groups, so that all waits end with the same line. If rank 0 is lost each rank
//! finds out by itself.

pub(crate) mod hub;
pub(crate) mod member;
mod roll;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use collective::{Progress, Watched};

use crate::JobError;
use crate::frame::{Place, Verdict};
use crate::report::Report;

/// How often things happen, from the timeout after which a silent rank counts as dead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The timeout.
    pub timeout: Duration,
    /// Between two beats.
    pub beat: Duration,
    /// Between two notes for the launcher: they cost less than beats, and tell more the fresher they are.
    pub note: Duration,
    /// How precisely silence is measured.
    pub tick: Duration,
    /// How long rank 0 waits for a cause when a rank only reports an effect.
    pub grace: Duration,
    /// How long the end of a job may take once its cause is known.
    pub linger: Duration,
}

impl Pace {
    pub fn new(timeout: Duration) -> Pace {
        Pace {
            timeout,
            beat: (timeout / 5).min(Duration::from_secs(1)),
            note: Duration::from_millis(100),
            tick: (timeout / 20).clamp(Duration::from_millis(5), Duration::from_millis(100)),
            grace: (timeout / 4).min(Duration::from_millis(400)),
            linger: Duration::from_millis(400),
        }
    }
}

/// What the threads of one process that watch know together.
pub(crate) struct Watch {
    pub me: usize,
    pub pace: Pace,
    /// The launcher, which wants to know where this process was when it died.
    report: Option<Report>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    groups: Vec<Watching>,
    /// The group that did something last.
    busy: usize,
    verdict: Option<Verdict>,
    /// The process is about to leave by itself.
    is_leaving: bool,
    /// How many parts of it need more time.
    holds: usize,
    /// When the last of them was done.
    released: Option<Instant>,
    /// No more to watch.
    is_over: bool,
    /// What the launcher was told last.
    noted: Option<Place>,
    mail: HashMap<(u16, u32), VecDeque<Vec<u8>>>,
}

impl State {
    /// When a process that is doomed since `doomed` is ended, as things are.
    fn end(&self, doomed: Instant, patience: Duration, held: Duration) -> Instant {
        match self.released {
            _ if self.holds > 0 => doomed + held + patience,
            Some(released) => released.clamp(doomed, doomed + held) + patience,
            None => doomed + patience,
        }
    }
}

struct Watching {
    members: Vec<usize>,
    group: Arc<dyn Watched>,
    seen: Progress,
}

impl Watching {
    fn abort(&self, me: usize, verdict: &Verdict) {
        let place = |rank: usize| self.members.iter().position(|&member| member == rank);
        // A rank outside of the group ends it as well: this rank then is the one that tells.
        let index = place(verdict.rank as usize).or(place(me)).unwrap_or(0);
        self.group.abort(index, &verdict.message);
    }
}

impl Watch {
    pub fn new(me: usize, timeout: Duration, report: Option<Report>) -> Arc<Watch> {
        let (pace, state) = (Pace::new(timeout), Mutex::default());
        Arc::new(Watch { me, pace, report, state, changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a verdict aborts this group too. `members` are world ranks.
    pub fn register(&self, members: &[usize], group: Arc<dyn Watched>) {
        let watching = Watching { members: members.to_vec(), group, seen: Progress::default() };
        let mut state = self.state();
        if let Some(verdict) = &state.verdict {
            watching.abort(self.me, verdict);
        }
        state.groups.push(watching);
    }

    /// Where this process is: in the group that has moved since the last call. The launcher hears of it too.
    pub fn place(&self) -> Place {
        self.place_in(&mut self.state())
    }

    fn place_in(&self, state: &mut State) -> Place {
        let State { groups, busy, noted, .. } = state;
        for (i, watching) in groups.iter_mut().enumerate() {
            let now = watching.group.progress();
            if now != watching.seen {
                (watching.seen, *busy) = (now, i);
            }
        }
        let seen = groups.get(*busy).map_or(Progress::default(), |watching| watching.seen);
        let place = Place { op: seen.op.into(), sequence: seen.sequence };
        if let Some(report) = self.report.as_ref().filter(|_| noted.as_ref() != Some(&place)) {
            report.note(&place);
            *noted = Some(place.clone());
        }
        place
    }

    /// The job is over. The first verdict counts.
    pub fn condemn(&self, verdict: Verdict) {
        let mut state = self.state();
        if state.verdict.is_some() || state.is_over {
            return;
        }
        // Where the others were tells where a rank was that can't say it any more.
        self.place_in(&mut state);
        for watching in &state.groups {
            watching.abort(self.me, &verdict);
        }
        state.verdict = Some(verdict);
        self.changed.notify_all();
    }

    pub fn verdict(&self) -> Option<Verdict> {
        self.state().verdict.clone()
    }

    /// The process leaves by itself now.
    pub fn leave(&self) {
        self.state().is_leaving = true;
        self.changed.notify_all();
    }

    /// Nothing is left to watch.
    pub fn end(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
    }

    /// Waits until there is nothing left to watch. Returns whether it is so.
    pub fn wait_for_end(&self, at_most: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.state(), at_most, |state| !state.is_over);
        wait.unwrap_or_else(PoisonError::into_inner).0.is_over
    }

    /// Waits until the job's end is clear to this process: a verdict is there, or nothing is left to watch.
    pub fn wait_for_clarity(&self, at_most: Duration) {
        let is_open = |state: &mut State| state.verdict.is_none() && !state.is_over;
        drop(self.changed.wait_timeout_while(self.state(), at_most, is_open));
    }

    /// Waits for a verdict, then for the process to leave by itself. Returns the verdict if it does not. `patience` begins anew
    /// where the process was held ([`Hold`]), for which it has the time `held` in all.
    pub fn wait_for_a_doomed_process(&self, patience: Duration, held: Duration) -> Option<Verdict> {
        let idle = |state: &mut State| state.verdict.is_none() && !state.is_over && !state.is_leaving;
        let mut state = self.changed.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
        state.verdict.as_ref()?;
        let doomed = Instant::now();
        while !state.is_leaving {
            let left = state.end(doomed, patience, held).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return state.verdict.clone();
            }
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    /// What another rank has posted.
    pub fn deliver(&self, about: u16, from: u32, bytes: Vec<u8>) {
        self.state().mail.entry((about, from)).or_default().push_back(bytes);
        self.changed.notify_all();
    }

    /// The next thing that another rank posted about something.
    ///
    /// # Errors
    /// The job is over, or nothing came in time.
    pub fn collect(&self, about: u16, from: usize, until: Instant) -> Result<Vec<u8>, JobError> {
        let mut state = self.state();
        loop {
            if let Some(bytes) = state.mail.get_mut(&(about, from as u32)).and_then(VecDeque::pop_front) {
                return Ok(bytes);
            }
            if let Some(verdict) = &state.verdict {
                return Err(verdict.clone().into());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.is_over {
                let message = format!("rank {from} did not come to make group {about}");
                return Err(JobError::Lost { message, is_usage: false });
            }
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Gives a process of a job that is over more time to end.
pub struct Hold(Arc<Watch>);

impl Hold {
    pub(crate) fn new(watch: Arc<Watch>) -> Hold {
        watch.state().holds += 1;
        Hold(watch)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.holds -= 1;
        state.released = Some(Instant::now());
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// What watches a process that should end.
    fn doomed() -> (Arc<Watch>, Verdict) {
        let watch = Watch::new(0, LONG, None);
        let verdict = Verdict { rank: 1, message: "rank 1 died".into(), code: 1, is_alive: false };
        watch.condemn(verdict.clone());
        (watch, verdict)
    }

    #[test]
    fn once_a_rank_is_lost_the_others_have_a_second_to_end() {
        for timeout in [Duration::from_millis(1500), LONG] {
            let Pace { tick, grace, linger, .. } = Pace::new(timeout);
            assert!(tick + grace + linger < Duration::from_secs(1), "{timeout:?}");
        }
    }

    #[test]
    fn a_doomed_process_is_ended_unless_it_is_held() {
        let (watch, verdict) = doomed();
        assert_eq!(watch.wait_for_a_doomed_process(Duration::ZERO, LONG), Some(verdict.clone()));
        let hold = Hold::new(watch.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Whoever does not wait for it is done before that.
                (0..1000).for_each(|_| std::thread::yield_now());
                watch.leave();
            });
            assert_eq!(watch.wait_for_a_doomed_process(Duration::ZERO, LONG), None);
        });
        drop(hold);
    }

    #[test]
    fn patience_begins_anew_where_a_process_was_held() {
        let (doomed, [patience, held]) = (Instant::now(), [1, 10].map(Duration::from_secs));
        let end = |holds, released: Option<f32>| {
            let released = released.map(|after| doomed + Duration::from_secs_f32(after));
            let state = State { holds, released, ..State::default() };
            state.end(doomed, patience, held).duration_since(doomed).as_secs_f32()
        };
        assert_eq!(end(0, None), 1.0);
        assert_eq!(end(1, None), 11.0);
        assert_eq!(end(0, Some(3.0)), 4.0);
        assert_eq!(end(1, Some(3.0)), 11.0);
        assert_eq!(end(0, Some(30.0)), 11.0);
        // It was held before the job was over.
        let before = State { released: Some(doomed), ..State::default() };
        assert_eq!(before.end(doomed + patience, patience, held), doomed + 2 * patience);
    }

    #[test]
    fn a_process_that_is_not_held_any_more_is_ended() {
        let (watch, verdict) = doomed();
        drop(Hold::new(watch.clone()));
        assert_eq!(watch.wait_for_a_doomed_process(Duration::ZERO, LONG), Some(verdict));
    }

    #[test]
    fn nobody_is_held_for_ever() {
        let (watch, verdict) = doomed();
        let _hold = Hold::new(watch.clone());
        assert_eq!(watch.wait_for_a_doomed_process(Duration::ZERO, Duration::ZERO), Some(verdict));
    }
}
