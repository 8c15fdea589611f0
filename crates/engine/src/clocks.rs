//! What ranks' clocks say of the same moment. Processes of a host share one clock; between hosts it is asked for and
//! answered, and the quickest answer tells the most. Clocks drift, so that is done twice, and what lies between the two
//! comparisons is interpolated.

use std::time::{Duration, Instant};

use collective::{CollectiveError, Group};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Times that a clock is asked for.
pub(crate) const ROUNDS: usize = 16;

/// A clock beside another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// Nanoseconds that it is ahead.
    pub ahead_ns: i64,
    /// By how much that may be wrong, at most, in either direction.
    pub error_ns: u64,
    /// What it showed.
    pub at_ns: i64,
}

/// A clock beside another, twice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockDrift {
    pub began: ClockOffset,
    pub ended: ClockOffset,
}

impl ClockDrift {
    /// Nanoseconds that it is ahead when it shows `at_ns`.
    pub fn ahead_ns(&self, at_ns: i64) -> i64 {
        let Self { began, ended } = self;
        let between = (ended.at_ns - began.at_ns).max(1);
        let since = (at_ns - began.at_ns).clamp(0, between);
        let grown = i128::from(ended.ahead_ns - began.ahead_ns) * i128::from(since) / i128::from(between);
        began.ahead_ns + grown as i64
    }

    /// By how much that may be wrong, as far as it drifts evenly.
    pub fn error_ns(&self) -> u64 {
        self.began.error_ns.max(self.ended.error_ns)
    }
}

/// The moments of this process as nanoseconds of its host's clock.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    instant: Instant,
    ns: i64,
}

impl HostClock {
    /// The clock now.
    pub fn now() -> Self {
        // Between two readings the system may do something else: the closest of some tells the most.
        let pair = |_| {
            let before = now_ns();
            let instant = Instant::now();
            let after = now_ns();
            (after - before, HostClock { instant, ns: before.midpoint(after) })
        };
        let (_, closest) = (0..8).map(pair).min_by_key(|(apart, _)| *apart).expect("there are some");
        closest
    }

    /// A moment.
    pub fn ns(&self, at: Instant) -> i64 {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.ns + after.as_nanos() as i64,
            None => self.ns - (self.instant - at).as_nanos() as i64,
        }
    }
}

/// What the host's clock shows.
fn now_ns() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Asks for a clock again and again. `ask` says what it shows.
pub(crate) fn compare<E>(mut ask: impl FnMut() -> Result<i64, E>) -> Result<ClockOffset, E> {
    let mut best: Option<ClockOffset> = None;
    for _ in 0..ROUNDS {
        let began = now_ns();
        let theirs = ask()?;
        let ended = now_ns();
        let found = ClockOffset {
            ahead_ns: theirs - began.midpoint(ended),
            error_ns: (ended - began) as u64 / 2,
            at_ns: theirs,
        };
        if best.is_none_or(|best| found.error_ns < best.error_ns) {
            best = Some(found);
        }
    }
    Ok(best.unwrap_or_default())
}

/// Rank 0 of a group compares the clocks of all others with its own; each of those must call it too.
pub(crate) fn of_group(
    group: &dyn Group,
    deadline: Option<Duration>,
) -> Result<Vec<ClockOffset>, CollectiveError> {
    if group.rank() > 0 {
        for _ in 0..ROUNDS {
            group.recv_bytes(0, deadline)?;
            group.send_bytes(&now_ns().to_le_bytes(), 0)?;
        }
        return Ok(Vec::new());
    }
    let of_rank = |rank: usize| {
        compare(|| {
            group.send_bytes(&[], rank)?;
            let bytes = group.recv_bytes(rank, deadline)?;
            let ns = bytes.as_slice().try_into().map(i64::from_le_bytes);
            ns.map_err(|_| CollectiveError::Failed { rank, message: "it did not tell the time".into() })
        })
    };
    std::iter::once(Ok(ClockOffset::default())).chain((1..group.size()).map(of_rank)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn a_clock_that_is_ahead_is_found_to_be_so_within_the_error() {
        const AHEAD: i64 = 5_000_000_000;
        let found = compare(|| Ok::<_, Infallible>(now_ns() + AHEAD));
        let ClockOffset { ahead_ns, error_ns, .. } = found.unwrap_or_else(|never| match never {});
        assert!((ahead_ns - AHEAD).unsigned_abs() <= error_ns + 1, "{ahead_ns} ± {error_ns}");
    }

    #[test]
    fn a_clock_that_drifts_is_followed_from_the_first_comparison_to_the_last() {
        let began = ClockOffset { ahead_ns: 1_000, error_ns: 7, at_ns: 50_000 };
        let ended = ClockOffset { ahead_ns: -3_000, error_ns: 9, at_ns: 90_000 };
        let drift = ClockDrift { began, ended };
        let ahead = [40_000, 50_000, 60_000, 70_000, 90_000, 95_000].map(|at| drift.ahead_ns(at));
        assert_eq!(ahead, [1_000, 1_000, 0, -1_000, -3_000, -3_000]);
        assert_eq!(drift.error_ns(), 9);
        // Hours, in which a product of nanoseconds is beyond 64 bits.
        let day = ClockOffset { ahead_ns: 2_000_000_000, error_ns: 1, at_ns: 86_400_000_000_000 };
        let drift = ClockDrift { began: ClockOffset::default(), ended: day };
        assert_eq!(drift.ahead_ns(43_200_000_000_000), 1_000_000_000);
    }

    #[test]
    fn moments_before_and_after_keep_their_distance() {
        let before = Instant::now();
        let clock = HostClock::now();
        let after = Instant::now();
        assert_eq!(clock.ns(after) - clock.ns(before), (after - before).as_nanos() as i64);
    }
}
