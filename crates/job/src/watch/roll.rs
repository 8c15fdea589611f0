//! Who is still there, and who was the cause: what rank 0 concludes from what it hears. No clock and no connection.

use std::time::{Duration, Instant};

use crate::frame::{Broken, Failure, Place, Seat, Verdict};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Here,
    Left,
}

pub(super) struct Roll {
    seats: Vec<Seat>,
    standing: Vec<Standing>,
    places: Vec<Place>,
    /// What a rank said that only suffers from another's failure, and until when at least its cause may show up.
    hearsay: Option<(Verdict, Instant)>,
    /// Who has not been heard since then: each may be the cause, and is lost or heard before its silence is too long.
    suspects: Vec<bool>,
    verdict: Option<Verdict>,
}

impl Roll {
    pub fn new(seats: Vec<Seat>) -> Roll {
        let size = seats.len();
        let (standing, places) = (vec![Standing::Here; size], vec![Place::default(); size]);
        Roll { seats, standing, places, hearsay: None, suspects: vec![false; size], verdict: None }
    }

    pub fn beat(&mut self, rank: usize, place: Place) {
        self.places[rank] = place;
        self.suspects[rank] = false;
    }

    /// A rank leaves in order. `until` is how long a cause is waited for if it says no cause itself.
    pub fn goodbye(&mut self, rank: usize, failure: Option<Failure>, until: Instant) {
        self.standing[rank] = Standing::Left;
        self.suspects[rank] = false;
        let Some(Failure { message, code, is_echo }) = failure else { return };
        // Errors of ranks often say which rank it was.
        let message = message.strip_prefix(&format!("rank {rank}: ")).unwrap_or(&message);
        let message = format!("{}: {message}", title(rank, &self.seats[rank]));
        let verdict = Verdict { rank: rank as u32, message, code, is_alive: true };
        if !is_echo {
            self.verdict.get_or_insert(verdict);
        } else if self.hearsay.is_none() {
            self.hearsay = Some((verdict, until));
            // Rank 0 hears itself.
            self.suspects = (0..self.seats.len()).map(|rank| rank != 0 && self.is_here(rank)).collect();
        }
    }

    /// A rank's connection broke. One that said goodbye may.
    pub fn gone(&mut self, rank: usize, why: &Broken, timeout: Duration) {
        if self.standing[rank] == Standing::Left {
            return;
        }
        self.standing[rank] = Standing::Left;
        self.suspects[rank] = false;
        let verdict = lost(rank, &self.seats[rank], why, timeout, &self.places[rank], (0, &self.places[0]));
        self.verdict.get_or_insert(verdict);
    }

    pub fn is_here(&self, rank: usize) -> bool {
        self.standing[rank] == Standing::Here
    }

    pub fn all_left(&self) -> bool {
        self.standing.iter().all(|standing| *standing == Standing::Left)
    }

    /// Whether a rank's word waits for its cause, and not only for those that have to be heard.
    pub fn waits_until(&self, now: Instant) -> Option<Instant> {
        let until = self.hearsay.as_ref().filter(|_| self.verdict.is_none()).map(|(_, until)| *until);
        until.filter(|&until| now < until)
    }

    /// What ended the job, once that is clear.
    pub fn verdict(&mut self, now: Instant) -> Option<&Verdict> {
        let is_ripe = self.waits_until(now).is_none() && !self.suspects.contains(&true);
        if is_ripe && self.verdict.is_none() {
            self.verdict = self.hearsay.take().map(|(verdict, _)| verdict);
        }
        self.verdict.as_ref()
    }
}

fn title(rank: usize, seat: &Seat) -> String {
    format!("rank {rank} on {}", seat.host_name)
}

/// The verdict on a rank that is lost without a word: where it was when it last said so, or where another rank is.
pub(super) fn lost(
    rank: usize,
    seat: &Seat,
    why: &Broken,
    timeout: Duration,
    place: &Place,
    (witness, elsewhere): (usize, &Place),
) -> Verdict {
    let what = match why {
        Broken::Closed => "died".to_owned(),
        Broken::Silent => format!("went silent for {} s", timeout.as_secs_f32()),
        Broken::Garbage => "sent what is no message of this version".to_owned(),
    };
    let place = match (place.told(), elsewhere.told()) {
        (Some(place), _) => place,
        (None, Some(elsewhere)) => format!("while rank {witness} was {elsewhere}"),
        (None, None) => "before the first collective".into(),
    };
    let message = format!("{} (pid {}) {what} {place}", title(rank, seat), seat.pid);
    Verdict { rank: rank as u32, message, code: 1, is_alive: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roll() -> Roll {
        let seat = |rank: u32| Seat {
            host: String::new(),
            host_name: format!("host-{rank}"),
            pid: 100 + rank,
            cores: crate::host::Cores::of(rank..rank + 1),
            data: ([127, 0, 0, 1], 1).into(),
        };
        Roll::new((0..3).map(seat).collect())
    }

    fn failure(message: &str, is_echo: bool) -> Option<Failure> {
        Some(Failure { message: message.into(), code: 1, is_echo })
    }

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn a_lost_rank_is_named_with_its_host_and_its_last_operation() {
        let now = Instant::now();
        let mut silent = roll();
        silent.beat(2, Place { op: "all_reduce".into(), sequence: 41 });
        silent.gone(2, &Broken::Silent, TIMEOUT);
        let verdict = silent.verdict(now).expect("one").clone();
        assert_eq!(
            verdict.message,
            "rank 2 on host-2 (pid 102) went silent for 30 s in all_reduce number 41"
        );
        assert!((verdict.rank, verdict.is_alive) == (2, false));
        let mut dead = roll();
        dead.gone(1, &Broken::Closed, TIMEOUT);
        dead.gone(2, &Broken::Closed, TIMEOUT);
        let message = &dead.verdict(now).expect("one").message;
        assert_eq!(message, "rank 1 on host-1 (pid 101) died before the first collective");
        let mut early = roll();
        early.beat(0, Place { op: "barrier".into(), sequence: 1 });
        early.gone(1, &Broken::Closed, TIMEOUT);
        let message = &early.verdict(now).expect("one").message;
        assert_eq!(message, "rank 1 on host-1 (pid 101) died while rank 0 was in barrier number 1");
    }

    #[test]
    fn a_cause_counts_more_than_an_effect_that_was_heard_first() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut roll = roll();
        roll.goodbye(0, failure("rank 2 hung up", true), later);
        assert_eq!(roll.verdict(now), None);
        roll.goodbye(2, failure("out of memory", false), later);
        assert_eq!(roll.verdict(now).expect("one").message, "rank 2 on host-2: out of memory");
        roll.gone(1, &Broken::Closed, TIMEOUT);
        assert_eq!(roll.verdict(now).expect("one").rank, 2, "the first cause stays");
    }

    #[test]
    fn an_effect_counts_when_no_cause_shows_up() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut roll = roll();
        roll.goodbye(1, failure("rank 2 did not arrive", true), later);
        assert_eq!(roll.waits_until(now), Some(later));
        roll.beat(2, Place::default());
        assert_eq!(roll.verdict(now), None);
        assert_eq!(roll.verdict(later).expect("one").message, "rank 1 on host-1: rank 2 did not arrive");
    }

    #[test]
    fn an_effect_waits_for_all_who_may_be_its_cause() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut roll = roll();
        roll.goodbye(1, failure("rank 2 did not arrive", true), now);
        assert_eq!(roll.waits_until(later), None);
        assert_eq!(roll.verdict(later), None);
        roll.gone(2, &Broken::Silent, TIMEOUT);
        assert_eq!(roll.verdict(later).expect("one").rank, 2);
    }

    #[test]
    fn ranks_that_say_goodbye_are_nobodys_loss() {
        let mut roll = roll();
        for rank in 0..3 {
            assert!(roll.is_here(rank) && !roll.all_left());
            roll.goodbye(rank, None, Instant::now());
            roll.gone(rank, &Broken::Closed, TIMEOUT);
        }
        assert!(roll.all_left() && roll.verdict(Instant::now()).is_none());
    }
}
