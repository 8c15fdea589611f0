//! Who comes early knows how long it waited.

use std::time::{Duration, Instant};

use tensor::Device;

use super::{Checks, LONG};
use crate::{Collective, Group};

/// How much later one rank comes.
const LATE: Duration = Duration::from_millis(1);
/// A machine may be busy with something else while an early rank should wait: then they try again.
const ROUNDS: usize = 1000;

/// How long this rank waited while it did something.
fn waited(group: &impl Group, work: impl FnOnce()) -> Duration {
    let before = group.stats();
    work();
    let after = group.stats();
    assert_eq!(after.waited > before.waited, after.waits > before.waits, "time and times go together");
    after.waited - before.waited
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
            for round in 0.. {
                assert!(round < ROUNDS, "rank {rank} of {} counts no wait, or one too many", self.ranks);
                let mut verdict = Vec::new();
                if rank == last {
                    send(b"a message", 0);
                    let for_message = waited(&group, || assert_eq!(receive(0), b"late"));
                    send(b"a collective", 0);
                    let for_rank = waited(&group, gather);
                    send(&[u8::from(for_message.min(for_rank) >= LATE / 2)], 0);
                } else if rank == 0 {
                    receive(last);
                    dawdle();
                    send(b"late", last);
                    receive(last);
                    dawdle();
                    let for_nobody = waited(&group, gather);
                    verdict = receive(last);
                    verdict[0] &= u8::from(for_nobody < LATE / 2);
                } else {
                    gather();
                }
                group.broadcast(&mut verdict, Some(LONG)).expect("broadcast");
                if verdict == [1] {
                    return;
                }
            }
        });
    }
}
