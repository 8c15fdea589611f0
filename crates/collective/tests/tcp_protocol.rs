//! What comes to a port that is not of ours, and what a rank of ours may say that makes no sense: never a panic, never a
//! hang, and the others go on or are told.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use collective::conformance::patiently;
use collective::{CollectiveError, Group, Role, Secret, TcpConfig, TcpMesh, TcpRank, authenticate};
use proptest::prelude::*;

use common::{config, listener, secret};

const LONG: Duration = Duration::from_secs(60);

/// Rank 1 of two accepts while `strangers` come to its port, and only then rank 0 connects.
fn connect_among(strangers: impl FnOnce(SocketAddr)) {
    let (ours, address) = listener();
    let (theirs, other) = listener();
    std::thread::scope(|scope| {
        let first =
            scope.spawn(move || TcpMesh::connect(1, ours, &[Some(other), None], &secret(), &config()));
        strangers(address);
        let second =
            TcpMesh::connect(0, theirs, &[None, Some(address)], &secret(), &config()).expect("a mesh");
        let first = first.join().expect("no panic").expect("a mesh, whoever else came");
        let groups = [&second, &first].map(|mesh| mesh.group(0, &[0, 1], LONG).expect("a group"));
        let [a, b] = groups;
        scope.spawn(move || b.barrier().expect("barrier"));
        a.barrier().expect("barrier");
    });
}

#[test]
fn strangers_do_not_disturb_those_who_belong() {
    let mut open = Vec::new();
    connect_among(|address| {
        let mut say = |bytes: &[u8]| {
            let mut socket = TcpStream::connect(address).expect("a port that listens");
            socket.write_all(bytes).ok();
            open.push(socket);
        };
        say(b"");
        say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        say(b"anysplt\x01");
        say(b"anysplt\x02more than eight bytes, of a later version of the protocol");
        say(&[255; 100_000]);
        for secret in [Secret::none(), Secret::from_bytes("another secret than theirs").expect("long enough")]
        {
            let mut socket = TcpStream::connect(address).expect("a port that listens");
            let error = authenticate(&mut socket, &secret, Role::Connects, Instant::now() + LONG);
            assert!(matches!(error, Err(CollectiveError::Refused(_))), "{error:?}");
        }
    });
}

#[test]
fn who_knows_the_secret_and_is_nobody_is_refused() {
    connect_among(|address| {
        for names in [[0u32, 0, 2], [0, 1, 3], [1, 1, 2], [7, 1, 2], [u32::MAX; 3]] {
            let mut socket = TcpStream::connect(address).expect("a port that listens");
            authenticate(&mut socket, &secret(), Role::Connects, Instant::now() + LONG).expect("it knows it");
            socket.write_all(names.map(u32::to_le_bytes).as_flattened()).expect("said");
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).expect("an answer");
            assert_eq!(answer, [2], "not expected: {names:?}");
        }
    });
}

#[test]
fn missing_ranks_are_named() {
    let (ours, mine) = listener();
    let (_silent, second) = listener();
    let third = listener().1; // nobody listens there any more
    let config = TcpConfig { connect_deadline: Duration::from_millis(200), ..config() };
    let peers = [Some(mine), None, Some(second), Some(third)];
    let error = TcpMesh::connect(1, ours, &peers, &secret(), &config).expect_err("nobody else is there");
    assert!(
        matches!(&error, CollectiveError::Unconnected { rank: 1, missing, .. } if missing[..] == [0, 2, 3]),
        "{error}"
    );
}

#[test]
fn another_secret_is_told_on_both_sides() {
    // Both must have been there together for a moment.
    patiently(Duration::from_millis(500), |connect_deadline| {
        let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listener()).unzip();
        let config = TcpConfig { connect_deadline, ..config() };
        let connect = |(me, listener): (usize, TcpListener)| {
            let peers: Vec<_> = (0..2).map(|r| (r != me).then(|| addresses[r])).collect();
            let secret = Secret::from_bytes(vec![me as u8; 16]).expect("long enough");
            TcpMesh::connect(me, listener, &peers, &secret, &config).expect_err("refused").to_string()
        };
        let errors: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                listeners.into_iter().enumerate().map(|rank| scope.spawn(|| connect(rank))).collect();
            threads.into_iter().map(|t| t.join().expect("no panic")).collect()
        });
        for (me, error) in errors.iter().enumerate() {
            assert!(error.contains(&format!("no connection with rank [{}]", 1 - me)), "{error}");
        }
        let is_told = errors.iter().all(|error| error.contains("another group secret"));
        if is_told { Ok(()) } else { Err(format!("{errors:?}")) }
    });
}

/// A rank 1 of two, and the socket of a rank 0 that says what it likes.
fn rank_and_socket() -> (TcpRank, TcpStream) {
    let (ours, address) = listener();
    std::thread::scope(|scope| {
        let rank = scope.spawn(move || {
            let mesh =
                TcpMesh::connect(1, ours, &[Some(address), None], &secret(), &config()).expect("a mesh");
            mesh.group(0, &[0, 1], LONG).expect("a group")
        });
        let mut socket = TcpStream::connect(address).expect("a port that listens");
        authenticate(&mut socket, &secret(), Role::Connects, Instant::now() + LONG).expect("it knows it");
        socket.write_all([0u32, 1, 2].map(u32::to_le_bytes).as_flattened()).expect("said");
        socket.read_exact(&mut [0]).expect("welcome");
        (rank.join().expect("no panic"), socket)
    })
}

fn header(group: u16, kind: u8, first: u8, len: u32, tag: u64, total: u64) -> Vec<u8> {
    let mut bytes = group.to_le_bytes().to_vec();
    bytes.extend([kind, first]);
    bytes.extend(len.to_le_bytes());
    bytes.extend(tag.to_le_bytes());
    bytes.extend(total.to_le_bytes());
    bytes
}

/// What rank 1 says when rank 0 sends `bytes` and goes.
fn after(bytes: &[u8]) -> CollectiveError {
    let (rank, mut socket) = rank_and_socket();
    std::thread::scope(|scope| {
        // It may be closed before all is said.
        scope.spawn(move || socket.write_all(bytes).ok());
        (0..).find_map(|_| rank.recv_bytes(0, None).err()).expect("it ends")
    })
}

#[test]
fn a_connection_that_is_lost_names_its_rank() {
    for bytes in [vec![], header(0, 2, 1, 10, 0, 10), [header(0, 2, 1, 10, 0, 99), vec![1; 10]].concat()] {
        let error = after(&bytes);
        let expected = CollectiveError::Failed { rank: 0, message: "it closed its connection".into() };
        assert_eq!(error, expected);
    }
}

#[test]
fn frames_that_no_rank_sends_end_the_connection() {
    let cases: [(Vec<u8>, &str); 9] = [
        (header(0, 9, 1, 0, 0, 0), "kind 9"),
        (header(0, 2, 1, u32::MAX, 0, u64::MAX), "4294967295 bytes"),
        (header(0, 2, 1, 0, 0, u64::MAX), "its message has 18446744073709551615"),
        (header(0, 2, 1, 5, 0, 4), "5 bytes that says its message has 4"),
        (header(0, 2, 7, 0, 0, 0), "says its message has"),
        (header(0, 2, 0, 5, 0, 0), "does not continue its message"),
        (header(0, 4, 1, 1, 0, 1), "0 are the most"),
        (header(0, 3, 1, 2, 0, 2).into_iter().chain([0; 2]).collect(), "a failure of nobody"),
        ([header(0, 4, 1, 0, 0, 0), header(0, 2, 1, 0, 0, 0)].concat(), "which it has ended"),
    ];
    for (bytes, expected) in cases {
        let error = after(&bytes).to_string();
        let ended = error.contains("ended before") && expected.contains("ended");
        assert!(error.starts_with("rank 0: ") && (error.contains(expected) || ended), "{expected}: {error}");
    }
}

#[test]
fn what_one_is_told_is_not_believed_in_memory() {
    // 64 GiB are announced; nothing comes.
    let error = after(&header(0, 2, 1, 1 << 20, 0, 1 << 36)).to_string();
    assert!(error.contains("it closed its connection"), "{error}");
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let frame =
        (0..3u16, 0..6u8, 0..3u8, 0..40u32, 0..3u64, 0..60u64, prop::collection::vec(any::<u8>(), 0..40));
    let frame = frame.prop_map(|(group, kind, first, len, tag, total, payload)| {
        [header(group, kind, first, len, tag, total), payload].concat()
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(frame, 0..8).prop_map(|frames| frames.concat()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_rank_says_ends_in_an_error(bytes in frames()) {
        // It goes after that, so an error there is in any case.
        let error = after(&bytes);
        prop_assert!(matches!(error, CollectiveError::Failed { .. }), "{}", error);
    }

    #[test]
    fn whatever_a_stranger_says_disturbs_nobody(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        preamble: bool,
    ) {
        let mut open = Vec::new();
        connect_among(|address| {
            let mut socket = TcpStream::connect(address).expect("a port that listens");
            socket.write_all(if preamble { b"anysplt\x01" } else { b"" }).expect("said");
            socket.write_all(&bytes).ok();
            open.push(socket);
        });
    }
}
