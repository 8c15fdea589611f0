//! Who comes early knows how long it waited.
//!
//! A machine that is busy with something else may hold any rank up between any two lines. So what a rank counts is compared
//! with what its own call took, and where a rank should have been early, only most of its calls must say so.

use std::time::{Duration, Instant};

use tensor::Device;

use super::{Checks, LONG, bytes};
use crate::{Collective, Group};

/// How much later one rank comes.
const LATE: Duration = Duration::from_millis(1);
/// How often it does.
const ROUNDS: usize = 24;

/// What a rank counted in some calls, and what they took.
#[derive(Clone, Copy)]
struct Counted {
    waited: Duration,
    took: Duration,
}

/// What this rank counts while it does something.
fn counted(group: &impl Group, work: impl FnOnce()) -> Counted {
    let (before, began) = (group.stats(), Instant::now());
    work();
    let (after, took) = (group.stats(), began.elapsed());
    let waited = after.waited - before.waited;
    assert_eq!(waited > Duration::ZERO, after.waits > before.waits, "time and times go together");
    assert!(waited <= took, "{waited:?} of {took:?}");
    if waited > Duration::ZERO {
        assert!(after.waiting_since >= Some(began), "the last call's wait is no earlier one's");
    }
    Counted { waited, took }
}

/// What a rank that should have been early counted, round by round.
#[derive(Default)]
struct Early {
    /// Calls that took about as long as the late rank.
    calls: usize,
    /// Those of them that were mostly waits.
    waits: usize,
}

impl Early {
    fn add(&mut self, Counted { waited, took }: Counted) {
        let is_early = took >= LATE / 2;
        self.calls += usize::from(is_early);
        self.waits += usize::from(is_early && waited >= took / 2);
    }

    /// Where cores are few, sending a message may cost the sender its own, so that it comes late itself.
    fn check(&self, what: &str) {
        let Early { calls, waits } = *self;
        assert!(waits > 0 && 2 * waits >= calls, "{what}: {waits} waits in {calls} calls that took long");
    }
}

fn dawdle() {
    let began = Instant::now();
    while began.elapsed() < LATE {
        std::thread::yield_now();
    }
}

impl<D: Device, C: Collective<D>> Checks<'_, D, C> {
    /// The last rank says that it goes into a call, the first lets it wait there.
    pub(super) fn a_late_rank_is_waited_for(&self) {
        let last = self.ranks - 1;
        self.on_all(LONG, |rank, group, _| {
            let receive = |from: usize| group.recv_bytes(from, Some(LONG)).expect("recv_bytes");
            let send = |bytes: &[u8], to: usize| group.send_bytes(bytes, to).expect("send_bytes");
            let gather = || drop(group.all_gather_host(&[1.0]).expect("all_gather_host"));
            let (mut for_messages, mut for_ranks) = (Early::default(), Early::default());
            for _ in 0..ROUNDS {
                if rank == last {
                    send(b"a message", 0);
                    for_messages.add(counted(&group, || assert_eq!(receive(0), b"late")));
                    send(b"a collective", 0);
                    for_ranks.add(counted(&group, gather));
                } else if rank == 0 {
                    receive(last);
                    dawdle();
                    send(b"late", last);
                    receive(last);
                    dawdle();
                    counted(&group, gather);
                } else {
                    counted(&group, gather);
                }
            }
            if rank == last {
                for_messages.check("messages");
                for_ranks.check("collectives");
            }
        });
    }

    /// Messages of several ranks have the same numbers.
    pub(super) fn each_sender_is_waited_for_by_itself(&self) {
        self.on_all(LONG, |rank, group, _| {
            if rank > 0 {
                group.recv_bytes(0, Some(LONG)).expect("recv_bytes");
                dawdle();
                return group.send_bytes(b"late", 0).expect("send_bytes");
            }
            for from in 1..self.ranks {
                group.send_bytes(b"it is your turn", from).expect("send_bytes");
                counted(&group, || drop(group.recv_bytes(from, Some(LONG)).expect("recv_bytes")));
            }
        });
    }

    /// However long the rest of it takes.
    pub(super) fn a_message_that_is_there_is_not_waited_for(&self) {
        const LENGTHS: [usize; 2] = [7, 1 << 20];
        self.on_all(LONG, |rank, group, _| {
            for (seed, len) in (0..).zip(LENGTHS) {
                if rank == 0 {
                    group.send_bytes(&bytes(seed, len), self.ranks - 1).expect("send_bytes");
                } else if rank == self.ranks - 1 {
                    let counted = counted(&group, || {
                        let message = loop {
                            match group.try_recv_bytes(0).expect("try_recv_bytes") {
                                Some(message) => break message,
                                None => std::thread::yield_now(),
                            }
                        };
                        assert!(message == bytes(seed, len));
                    });
                    assert_eq!(counted.waited, Duration::ZERO, "{len} bytes");
                }
            }
            group.barrier().expect("barrier");
        });
    }

    /// The last rank waits for a message in vain, and then the others do.
    pub(super) fn a_wait_in_vain_is_counted(&self) {
        let last = self.ranks - 1;
        self.on_all_in_vain(|rank, group, _, deadline| {
            let is_last = rank == last;
            let (from, patience) = if is_last { (0, deadline) } else { (last, LONG) };
            let Counted { waited, took } = counted(&group, || {
                drop(group.recv_bytes(from, Some(patience)).expect_err("nothing is sent"))
            });
            let text = format!("rank {rank} of {} counts {waited:?} of {took:?}", self.ranks);
            assert!(waited >= deadline || !is_last, "{text}");
            // Of the others one may have begun when all was over, or have been held up before it looked.
            if waited.is_zero() && took > deadline / 2 { Err(text) } else { Ok(()) }
        });
    }
}
