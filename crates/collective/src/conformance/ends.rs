//! Nothing hangs: missing ranks, failures, ends, aborts.

use std::time::Instant;

use tensor::{Device, ReductionTree};

use super::sums::Split;
use super::{Checks, LONG, SHORT, dawdle, hash};
use crate::{Collective, CollectiveError, Group, Progress};

/// Calls that wait for others, `broadcast`, `recv` and `recv_bytes` without a deadline.
const OPS: [&str; 12] = [
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "all_gather_host",
    "all_to_all",
    "all_to_all_host",
    "broadcast",
    "barrier",
    "send",
    "recv",
    "send_bytes",
    "recv_bytes",
];

/// Makes a call, the same on all ranks; what may not have to wait goes on until it fails. Messages are to and from `peer`.
fn call<D: Device>(
    op: &str,
    group: &impl Collective<D>,
    dev: &D,
    peer: usize,
) -> Result<(), CollectiveError> {
    let ranks = group.size();
    let ones = || dev.upload(&vec![1.0; ranks], ranks, 1);
    let plan = || Split::new(&ReductionTree::over_ids(ranks), &(0..=ranks).collect::<Vec<_>>()).plan;
    match op {
        "all_reduce" => group.all_reduce(dev, ones(), ranks, &plan()).map(drop),
        "reduce_scatter" => group.reduce_scatter(dev, ones(), &vec![1; ranks], &plan()).map(drop),
        "all_gather" => group.all_gather(dev, &dev.upload(&[1.0], 1, 1), &vec![1; ranks]).map(drop),
        "all_gather_host" => group.all_gather_host(&[1.0]).map(drop),
        "all_to_all" => group.all_to_all(dev, &ones(), &vec![1; ranks], &vec![1; ranks]).map(drop),
        "all_to_all_host" => group.all_to_all_host(&vec![vec![1]; ranks]).map(drop),
        "broadcast" => group.broadcast(&mut vec![1, 2, 3], None),
        "barrier" => group.barrier(),
        "send" => (0..).try_for_each(|_| group.send(dev, &dev.upload(&vec![1.0; 1 << 14], 1, 1 << 14), peer)),
        "recv" => group.recv(dev, peer, 1, 1, None).map(drop),
        "send_bytes" => (0..).try_for_each(|_| group.send_bytes(&[1; 1 << 16], peer)),
        "recv_bytes" => group.recv_bytes(peer, None).map(drop),
        "try_recv_bytes" => (0..).try_for_each(|_| group.try_recv_bytes(peer).map(drop)),
        _ => unreachable!("no operation is called {op}"),
    }
}

/// Lives, but makes no call until the group has failed.
fn stay_away(group: &impl Group) {
    let began = Instant::now();
    while group.check().is_ok() {
        assert!(began.elapsed() < LONG, "rank {} is not told that others gave up", group.rank());
        std::thread::yield_now();
    }
}

impl<D: Device, C: Collective<D>> Checks<'_, D, C> {
    pub(super) fn a_missing_rank_is_named(&self) {
        let last = self.ranks - 1;
        self.on_all_in_vain(|rank, group, _, _| {
            if rank == last {
                stay_away(&group);
                assert!(group.barrier().is_err(), "the others have given up");
                return Ok(());
            }
            let number = group.watched().progress().sequence + 1;
            let error = group.all_gather_host(&[1.0]).expect_err("a rank is missing");
            let text = error.to_string();
            assert!(text.contains(&format!("all_gather_host number {number} on rank")), "{text}");
            assert!(group.barrier().is_err(), "a group that lost a rank stays failed");
            if text.contains(&format!("rank [{last}] did not arrive")) { Ok(()) } else { Err(text) }
        });
    }

    /// A message's number is its number among those of its pair of ranks.
    pub(super) fn a_missing_message_is_named(&self) {
        let last = self.ranks - 1;
        self.on_all(LONG, |rank, group, _| {
            (0..3).for_each(|_| group.barrier().expect("barrier"));
            if rank == last {
                group.send_bytes(b"the only one", 0).expect("send_bytes");
            }
            if rank != 0 {
                return stay_away(&group);
            }
            assert_eq!(group.recv_bytes(last, Some(LONG)).expect("recv_bytes"), b"the only one");
            let error = group.recv_bytes(last, Some(SHORT)).expect_err("no second message");
            let CollectiveError::Missing { op, sequence, rank, missing, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((op, sequence, rank, missing), ("recv_bytes", 2, 0, vec![last]));
            assert!(group.barrier().is_err(), "a group that lost a rank stays failed");
        });
    }

    /// Either the receiver keeps what comes, or the sender waits for him, for its deadline at most.
    pub(super) fn nobody_is_sent_more_than_he_takes_without_an_end(&self) {
        let last = self.ranks - 1;
        self.on_all_in_vain(|rank, group, _, _| {
            if rank != 0 {
                stay_away(&group);
                return Ok(());
            }
            for _ in 0..64 {
                if let Err(error) = group.send_bytes(&[1; 1 << 20], last) {
                    let CollectiveError::Missing { op, missing, .. } = &error else { panic!("{error}") };
                    assert_eq!((*op, &missing[..]), ("send_bytes", &[last][..]), "{error}");
                    assert!(group.check().is_err(), "half a message is the end of the group");
                    return Ok(());
                }
            }
            group.fail("all sent");
            Ok(())
        });
    }

    pub(super) fn a_failure_ends_all(&self) {
        let (last, began) = (self.ranks - 1, Instant::now());
        for (i, op) in OPS.into_iter().chain(["try_recv_bytes"]).enumerate() {
            for failing in [0, last] {
                let expected =
                    CollectiveError::Failed { rank: failing, message: "out of memory: größer".into() };
                self.on_all(LONG, |rank, group, dev| {
                    let together = group.barrier();
                    if rank == failing {
                        together.expect("nobody has failed yet");
                        dawdle(hash(i as u32, 0));
                        group.fail("out of memory: größer");
                        group.fail("a second message");
                    }
                    for _ in 0..2 {
                        let error =
                            call(op, &group, &dev, (rank + 1) % self.ranks).expect_err("a rank has failed");
                        assert_eq!(error, expected, "{op}");
                    }
                });
            }
        }
        assert!(began.elapsed() < LONG, "a failure ends all at once");
    }

    pub(super) fn an_end_ends_all(&self) {
        let (last, began) = (self.ranks - 1, Instant::now());
        for op in OPS.into_iter().chain(["try_recv_bytes"]) {
            for ending in [0, last] {
                self.on_all(LONG, |rank, group, dev| {
                    let together = group.barrier();
                    if rank == ending {
                        return together.expect("nobody has ended yet");
                    }
                    // The news may overtake another rank's word that it is at the barrier, here and below.
                    let error = together.and_then(|()| call(op, &group, &dev, ending));
                    let error = error.expect_err("a rank has ended");
                    assert!(
                        matches!(error, CollectiveError::Failed { rank, .. } if rank == ending),
                        "{op}: {error}"
                    );
                });
            }
        }
        assert!(began.elapsed() < LONG, "an end ends all at once");
    }

    /// Whoever watches a rank sees where it is, and can end its wait.
    pub(super) fn an_abort_ends_every_wait(&self) {
        let (lost, began) = (self.ranks - 1, Instant::now());
        let message = "killed by signal 9";
        let expected = CollectiveError::Failed { rank: lost, message: message.into() };
        for (i, op) in OPS.into_iter().enumerate() {
            self.on_all(LONG, |rank, group, dev| {
                let watched = group.watched();
                // What it took to get ready counts.
                let before = watched.progress().sequence;
                let together = group.barrier();
                assert_eq!(watched.progress(), Progress { op: "barrier", sequence: before + 1 });
                if let Err(error) = together {
                    return assert_eq!(error, expected);
                }
                if rank == lost {
                    return stay_away(&group);
                }
                // A collective's number counts collectives, a message's those of its pair.
                let number = if op.starts_with("send") || op.starts_with("recv") { 1 } else { before + 2 };
                let began_it = |now: Progress| now.op == op && now.sequence >= number;
                std::thread::scope(|scope| {
                    let watched = group.watched();
                    scope.spawn(move || {
                        while !began_it(watched.progress()) {
                            assert!(began.elapsed() < LONG, "{op} never begins: {:?}", watched.progress());
                            std::thread::yield_now();
                        }
                        dawdle(hash(i as u32, rank as u32));
                        watched.abort(lost, message);
                        watched.abort(rank, "a second message");
                    });
                    assert_eq!(call(op, &group, &dev, lost).expect_err("aborted"), expected, "{op}");
                });
                assert_eq!(group.check(), Err(expected.clone()));
            });
        }
        assert!(began.elapsed() < LONG, "an abort ends all at once");
    }
}
