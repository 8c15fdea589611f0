//! Messages between two ranks.

use std::time::Instant;

use tensor::{Device, ReductionTree};

use super::sums::Split;
use super::{Checks, LONG, bits, bytes, dawdle, hash, of_pair, values};
use crate::{Collective, CollectiveError, Group};

/// More than any transport keeps for a pair of ranks.
const HUGE: usize = 20_000_003;

/// The bytes of a pair's message of this number; their length too is a function of it.
fn message(from: usize, to: usize, number: usize) -> Vec<u8> {
    let seed = of_pair(from, to, number);
    let most = [1, 2, 70, 3000, 20_000][number % 5];
    bytes(seed, seed as usize % most)
}

/// Waits as long as it takes, or for a deadline, in turn.
fn receive(group: &impl Group, from: usize, number: usize) -> Vec<u8> {
    group.recv_bytes(from, [None, Some(LONG)][number % 2]).expect("recv_bytes")
}

/// Looks until a message is there, and fails the check when it takes too long.
fn poll(group: &impl Group, from: usize) -> Vec<u8> {
    let began = Instant::now();
    loop {
        match group.try_recv_bytes(from).expect("try_recv_bytes") {
            Some(bytes) => return bytes,
            None => assert!(began.elapsed() < LONG, "a message from rank {from} never arrives"),
        }
        std::thread::yield_now();
    }
}

impl<D: Device, C: Collective<D>> Checks<'_, D, C> {
    fn others(&self, rank: usize) -> impl Iterator<Item = usize> + Clone {
        (0..self.ranks).filter(move |&other| other != rank)
    }

    /// Every pair at once, many messages under way before anyone looks.
    pub(super) fn messages_keep_their_order(&self) {
        const NUMBER: usize = 40;
        self.on_all(LONG, |rank, group, _| {
            let mut sent = 0;
            for number in 0..NUMBER {
                for to in self.others(rank) {
                    let message = message(rank, to, number);
                    group.send_bytes(&message, to).expect("send_bytes");
                    sent += message.len() as u64;
                }
            }
            assert_eq!(group.stats().sent_bytes, sent);
            // From the last rank to the first, in bunches, so that nobody is read in the order in which it sent.
            for bunch in [0..1, 1..NUMBER - 3, NUMBER - 3..NUMBER] {
                for from in self.others(rank).collect::<Vec<_>>().into_iter().rev() {
                    for number in bunch.clone() {
                        let got =
                            if number % 3 == 0 { poll(&group, from) } else { receive(&group, from, number) };
                        assert!(got == message(from, rank, number), "message {number} of rank {from}");
                    }
                }
            }
            for from in self.others(rank) {
                assert_eq!(group.try_recv_bytes(from).expect("try_recv_bytes"), None, "nothing twice");
            }
            group.barrier().expect("nobody ends while others look");
        });
    }

    /// Messages overtake collectives and are overtaken by them.
    pub(super) fn messages_and_collectives_mix(&self) {
        const CALLS: usize = 150;
        const LAG: usize = 7;
        let splits = Split::all(&ReductionTree::over_heads(8, 4), self.ranks);
        self.on_all(LONG, |rank, group, dev| {
            for call in 0..CALLS + LAG {
                dawdle(hash(rank as u32, call as u32));
                // Each call has its distance between sender and receiver.
                let distance = |call: usize| 1 + call % (self.ranks - 1);
                if call < CALLS {
                    let to = (rank + distance(call)) % self.ranks;
                    group.send_bytes(&message(rank, to, call), to).expect("send_bytes");
                }
                self.mixed_call(rank, &group, &dev, &splits, call as u32);
                if call >= LAG {
                    let from = (rank + self.ranks - distance(call - LAG)) % self.ranks;
                    let got = receive(&group, from, call);
                    assert!(got == message(from, rank, call - LAG), "message {} of {from}", call - LAG);
                }
            }
        });
    }

    pub(super) fn a_message_may_be_larger_than_any_buffer(&self) {
        self.on_all(LONG, |rank, group, _| {
            let (to, from) = ((rank + 1) % self.ranks, (rank + self.ranks - 1) % self.ranks);
            // Round the ring: rank 0 begins.
            for lap in 0..2 {
                let send = |from: usize| {
                    group.send_bytes(&bytes(from as u32, HUGE - lap), to).expect("send_bytes");
                    group.send_bytes(&[from as u8], to).expect("send_bytes");
                };
                if rank == 0 {
                    send(rank);
                }
                let got = if lap == 0 { receive(&group, from, rank) } else { poll(&group, from) };
                assert!(got == bytes(from as u32, HUGE - lap), "a huge message of rank {from}");
                assert_eq!(receive(&group, from, rank), [from as u8], "the message behind it");
                if rank != 0 {
                    send(rank);
                }
            }
        });
    }

    pub(super) fn matrices_keep_their_place_among_messages(&self) {
        let shapes = [[1, 1], [0, 5], [3, 17], [100, 64], [7, 0]];
        self.on_all(LONG, |rank, group, dev| {
            let (to, from) = ((rank + 1) % self.ranks, (rank + self.ranks - 1) % self.ranks);
            let content =
                |rank: usize, case: usize| values(of_pair(rank, rank, case), shapes[case].iter().product());
            let mut sent = 0;
            for (case, [rows, cols]) in shapes.into_iter().enumerate() {
                group.send_bytes(&message(rank, to, case), to).expect("send_bytes");
                let x = dev.upload(&content(rank, case), rows, cols);
                group.send(&dev, &x, to).expect("send");
                sent += message(rank, to, case).len() + rows * cols * size_of::<f32>();
            }
            assert_eq!(group.stats().sent_bytes, sent as u64);
            for (case, [rows, cols]) in shapes.into_iter().enumerate() {
                assert!(receive(&group, from, case) == message(from, rank, case), "message {case}");
                let x = group.recv(&dev, from, rows, cols, [None, Some(LONG)][case % 2]).expect("recv");
                assert_eq!(dev.shape(&x), [rows, cols]);
                let x = dev.download(&x).expect("download");
                assert!(bits(&x) == bits(&content(from, case)), "matrix {case}");
            }
        });
    }

    pub(super) fn a_matrix_of_another_size_is_an_error(&self) {
        self.on_all(LONG, |rank, group, dev| {
            let result = match rank {
                0 => {
                    let sent = group.send(&dev, &dev.upload(&[1.0; 6], 2, 3), 1);
                    sent.and_then(|()| group.recv_bytes(1, None).map(drop))
                }
                1 => group.recv(&dev, 0, 2, 4, None).map(drop),
                _ => group.barrier(),
            };
            let error = result.expect_err("nobody goes on after that");
            assert!(matches!(error, CollectiveError::Failed { rank: 1, .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("24 bytes") && text.contains("32"), "both sizes: {text}");
        });
    }

    pub(super) fn nothing_is_there_until_it_was_sent(&self) {
        self.on_all(LONG, |rank, group, _| {
            for from in self.others(rank) {
                assert_eq!(group.try_recv_bytes(from).expect("try_recv_bytes"), None);
            }
            group.barrier().expect("barrier");
            for to in self.others(rank) {
                group.send_bytes(&[], to).expect("send_bytes");
            }
            for from in self.others(rank) {
                assert_eq!(poll(&group, from), [], "an empty message is a message");
            }
        });
    }

    pub(super) fn what_was_sent_before_the_end_arrives(&self) {
        self.on_all(LONG, |rank, group, _| {
            if rank == 0 {
                for (to, number) in self.others(0).flat_map(|to| [0, 1, 2].map(|n| (to, n))) {
                    group.send_bytes(&message(0, to, number), to).expect("send_bytes");
                }
                return;
            }
            for number in 0..3 {
                assert!(receive(&group, 0, number) == message(0, rank, number), "message {number}");
            }
            // The error is for rank 1 alone, once the others have all that they wait for.
            if rank > 1 {
                return group.send_bytes(b"have all", 1).expect("send_bytes");
            }
            for other in 2..self.ranks {
                assert_eq!(receive(&group, other, 0), b"have all");
            }
            let error = group.recv_bytes(0, None).expect_err("rank 0 has ended");
            assert!(matches!(error, CollectiveError::Failed { rank: 0, .. }), "{error}");
        });
    }
}
