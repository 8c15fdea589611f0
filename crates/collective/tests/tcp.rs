//! Groups over TCP: conformance on loopback, and what only a network does.

mod common;

use std::time::Duration;

use collective::{Collective, Group, TcpMesh, TcpRank, conformance};
use tensor::{Device, HostDevice, Reference};

use common::{config, meshes};

/// One group of all processes.
fn group(ranks: usize, deadline: Duration) -> Vec<TcpRank> {
    let members: Vec<_> = (0..ranks).collect();
    let meshes = meshes(ranks, &config(), |_, _| true);
    meshes.iter().map(|mesh| mesh.group(1, &members, deadline).expect("a group")).collect()
}

#[test]
fn one_rank_conforms() {
    conformance::run(1, group, |_| Reference);
}

#[test]
fn two_ranks_conform() {
    conformance::run(2, group, |_| Reference);
}

#[test]
fn three_ranks_conform() {
    conformance::run(3, group, |_| Reference);
}

#[test]
fn five_ranks_conform() {
    conformance::run(5, group, |_| Reference);
}

#[test]
fn eight_ranks_conform() {
    conformance::run(8, group, |_| Reference);
}

/// Runs `work` on every rank.
fn on_all(ranks: Vec<TcpRank>, work: impl Fn(usize, TcpRank) + Sync) {
    std::thread::scope(|scope| {
        let work = &work;
        for (rank, group) in ranks.into_iter().enumerate() {
            scope.spawn(move || work(rank, group));
        }
    });
}

const LONG: Duration = Duration::from_secs(60);

/// A large matrix of which every rank's is different.
fn large(rank: usize, elements: usize) -> Vec<f32> {
    (0..elements).map(|i| (i * 7 + rank) as f32).collect()
}

#[test]
fn large_payloads_go_in_all_directions_at_once() {
    const ELEMENTS: usize = 6_000_001;
    on_all(group(3, LONG), |rank, group| {
        let part = Reference.upload(&large(rank, ELEMENTS), 1, ELEMENTS);
        let all = group.all_gather(&Reference, &part, &[1; 3]).expect("round the ring");
        let expected: Vec<f32> = (0..3).flat_map(|r| large(r, ELEMENTS)).collect();
        assert!(Reference.as_slice(&all) == expected);
        let parts: Vec<Vec<u8>> = (0..3).map(|to| vec![(3 * rank + to) as u8; 12_000_000]).collect();
        let got = group.all_to_all_host(&parts).expect("all_to_all_host");
        assert!((0..3).all(|from| got[from] == vec![(3 * from + rank) as u8; 12_000_000]));
        // Both send before either receives.
        let (to, from) = ((rank + 1) % 3, (rank + 2) % 3);
        group.send_bytes(&vec![rank as u8; 30_000_000], to).expect("send_bytes");
        assert!(group.recv_bytes(from, Some(LONG)).expect("recv_bytes") == vec![from as u8; 30_000_000]);
        group.barrier().expect("barrier");
    });
}

#[test]
fn two_threads_use_two_groups_of_one_mesh() {
    let meshes = meshes(2, &config(), |_, _| true);
    let groups = |id| meshes.iter().map(|m| m.group(id, &[0, 1], LONG).expect("a group")).collect::<Vec<_>>();
    let (first, second) = (groups(1), groups(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            on_all(first, |rank, group| {
                for round in 0..200 {
                    let parts = vec![vec![(rank + round) as u8; 50_000]; 2];
                    let got = group.all_to_all_host(&parts).expect("all_to_all_host");
                    assert!(got[1 - rank] == vec![(1 - rank + round) as u8; 50_000]);
                }
            })
        });
        scope.spawn(|| {
            on_all(second, |rank, group| {
                for round in 0..2000 {
                    let all = group.all_gather_host(&[(rank * round) as f32]).expect("all_gather_host");
                    assert_eq!(all, [[0.0], [round as f32]]);
                }
            })
        });
    });
}

#[test]
fn ranks_that_make_different_calls_are_told() {
    on_all(group(2, LONG), |rank, group| {
        let error = match rank {
            0 => group.barrier().expect_err("another call"),
            _ => group.all_gather_host(&[1.0]).expect_err("another call"),
        };
        let error = error.to_string();
        assert!(error.contains("all_gather_host of 0 on rank 1"), "{error}");
        assert!(error.contains("barrier of 0 on rank 0"), "{error}");
    });
}

#[test]
fn a_rank_that_panics_is_named() {
    on_all(group(3, LONG), |rank, group| {
        let first = group.barrier();
        if rank == 2 {
            first.expect("nobody has failed yet");
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _group = group;
                std::panic::resume_unwind(Box::new("index out of bounds"));
            }));
            return assert!(panic.is_err());
        }
        // News of the panic may overtake the other rank's part of the first barrier.
        let error = first.and_then(|()| group.barrier()).expect_err("it panicked");
        assert_eq!(error.to_string(), "rank 2: panicked");
    });
}

#[test]
fn two_ranks_conform_over_a_slow_link() {
    let through_relay = |_: usize, deadline: Duration| {
        let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| common::listener()).unzip();
        let slow = common::relay::relay(addresses[1], Duration::from_micros(100));
        let peers = [vec![None, Some(slow)], vec![Some(addresses[0]), None]];
        std::thread::scope(|scope| {
            let connect = |(me, (listener, peers)): (usize, (_, Vec<_>))| {
                scope.spawn(move || {
                    let mesh = TcpMesh::connect(me, listener, &peers, &common::secret(), &config());
                    mesh.and_then(|mesh| mesh.group(0, &[0, 1], deadline)).expect("a group")
                })
            };
            let threads: Vec<_> = listeners.into_iter().zip(peers).enumerate().map(connect).collect();
            threads.into_iter().map(|t| t.join().expect("no panic")).collect()
        })
    };
    conformance::run(2, through_relay, |_| Reference);
}
