//! What ranks' clocks say of the same moment. Processes of a host share one clock; between hosts it is asked for and
//! answered, and the quickest answer tells the most.

use std::time::Instant;

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
        let found =
            ClockOffset { ahead_ns: theirs - began.midpoint(ended), error_ns: (ended - began) as u64 / 2 };
        if best.is_none_or(|best| found.error_ns < best.error_ns) {
            best = Some(found);
        }
    }
    Ok(best.unwrap_or_default())
}

/// Rank 0 of a group compares the clocks of all others with its own; each of those must call it too.
pub(crate) fn of_group(group: &dyn Group) -> Result<Vec<ClockOffset>, CollectiveError> {
    if group.rank() > 0 {
        for _ in 0..ROUNDS {
            group.recv_bytes(0, None)?;
            group.send_bytes(&now_ns().to_le_bytes(), 0)?;
        }
        return Ok(Vec::new());
    }
    let of_rank = |rank: usize| {
        compare(|| {
            group.send_bytes(&[], rank)?;
            let bytes = group.recv_bytes(rank, None)?;
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
        let ClockOffset { ahead_ns, error_ns } = found.unwrap_or_else(|never| match never {});
        assert!((ahead_ns - AHEAD).unsigned_abs() <= error_ns + 1, "{ahead_ns} ± {error_ns}");
    }

    #[test]
    fn moments_before_and_after_keep_their_distance() {
        let before = Instant::now();
        let clock = HostClock::now();
        let after = Instant::now();
        assert_eq!(clock.ns(after) - clock.ns(before), (after - before).as_nanos() as i64);
    }
}
