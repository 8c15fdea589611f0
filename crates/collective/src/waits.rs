//! How often and how long a rank waits for others, as its transports count it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::CollectiveStats;

/// How often and how long a rank waited for the others' first bytes. Nobody looks at a clock while nobody is late.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    times: u64,
    all: Duration,
    /// When it began to in the last call in which it did, and which that was.
    since: Option<(Instant, CallId)>,
}

/// A call of a rank. Those that parts of a larger one are made of are called as that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallId {
    /// Its operation's name.
    pub op: &'static str,
    /// Its number: of a collective, among those of the group; of a message, among those of its pair in this direction.
    pub number: u64,
    /// Of a message: the other rank.
    pub peer: Option<usize>,
}

impl Waits {
    /// Counts a wait in a call.
    pub fn add(&mut self, call: CallId, since: Instant, until: Instant) {
        self.times += 1;
        self.all += until - since;
        if self.since.is_none_or(|(_, before)| before != call) {
            self.since = Some((since, call));
        }
    }

    /// Those of a rank that waits on two transports.
    pub fn and(self, other: Waits) -> Waits {
        let since = match (self.since, other.since) {
            (Some(a), Some(b)) if a.1 == b.1 => Some(if a.0 < b.0 { a } else { b }),
            (Some(a), Some(b)) => Some(if a.0 < b.0 { b } else { a }),
            (a, b) => a.or(b),
        };
        Waits { times: self.times + other.times, all: self.all + other.all, since }
    }

    /// Puts them in their place among a rank's counts.
    pub fn in_stats(self, stats: CollectiveStats) -> CollectiveStats {
        let waiting_since = self.since.map(|(since, _)| since);
        CollectiveStats { waits: self.times, waited: self.all, waiting_since, ..stats }
    }
}

/// The time in which nothing moves for a call. It is a wait as long as there is a rank of which nothing at all has come.
pub(crate) struct Idle {
    pub since: Instant,
    pub awaits_first_byte: bool,
}

/// Counts a time that is over in which nothing moved for a call, if it was a wait.
pub(crate) fn note(waits: &Cell<Waits>, call: CallId, idle: Option<(Idle, Instant)>) {
    if let Some((idle, until)) = idle
        && idle.awaits_first_byte
    {
        let mut all = waits.get();
        all.add(call, idle.since, until);
        waits.set(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wait_of_the_last_call_is_told_whichever_transport_had_it() {
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        let times = [at(0), at(1), at(2), at(3), at(4), at(5), at(6)];
        let (mut near, mut far) = (Waits::default(), Waits::default());
        let call = |op, number| CallId { op, number, peer: None };
        near.add(call("barrier", 1), times[0], times[1]);
        far.add(call("all_reduce", 2), times[2], times[3]);
        near.add(call("all_reduce", 2), times[4], times[6]);
        for both in [near.and(far), far.and(near)] {
            let stats = both.in_stats(CollectiveStats::default());
            assert_eq!((stats.waits, stats.waiting_since), (3, Some(times[2])));
            assert_eq!(stats.waited, (times[1] - times[0]) + (times[3] - times[2]) + (times[6] - times[4]));
        }
        near.add(call("all_reduce", 3), times[5], times[6]);
        assert_eq!(far.and(near).in_stats(CollectiveStats::default()).waiting_since, Some(times[5]));
    }

    #[test]
    fn messages_of_two_ranks_are_two_calls() {
        let (began, mut waits) = (Instant::now(), Waits::default());
        for peer in 1..3 {
            let since = began + Duration::from_millis(peer as u64);
            waits.add(CallId { op: "recv_bytes", number: 1, peer: Some(peer) }, since, since);
            assert_eq!(waits.in_stats(CollectiveStats::default()).waiting_since, Some(since));
        }
    }
}
