//! Time of an all-reduce over TCP between two ranks, beside what plain sockets take for the same bytes, over loopback and
//! over a link with 200 µs of delay for a round trip: `cargo run --release -p collective --example tcp_latency`.
//!
//! The bound is half a round trip, plus the bytes at the rate at which two sockets stream in both directions at once.

#[path = "../tests/common/relay.rs"]
mod relay;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use collective::{Collective, ReducePlan, Secret, TcpConfig, TcpMesh, TcpRank};
use tensor::{Device, ReductionTree, Reference};

const SIZES: [usize; 7] = [4, 1 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
const STREAM: usize = 64 << 20;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn times(count: usize, mut work: impl FnMut()) -> Vec<f64> {
    let mut time = || {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64() * 1e6
    };
    (0..count).map(|_| time()).collect()
}

/// Whether there is a delay, and for how long.
type Link = Option<Duration>;

fn through(target: SocketAddr, link: Link) -> SocketAddr {
    link.map_or(target, |delay| relay::relay(target, delay))
}

/// Half a round trip of 4 bytes in µs, and bytes per µs of each direction of a stream.
fn raw(link: Link) -> (f64, f64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut near =
        TcpStream::connect(through(listener.local_addr().expect("an address"), link)).expect("connected");
    let (mut far, _) = listener.accept().expect("accepted");
    for socket in [&near, &far] {
        socket.set_nodelay(true).expect("no delay");
    }
    let rounds = if link.is_some() { 1000 } else { 10_000 };
    let round_trip = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = [0; 4];
            for _ in 0..rounds {
                far.read_exact(&mut bytes).and_then(|()| far.write_all(&bytes)).expect("a round trip");
            }
        });
        let mut bytes = [0; 4];
        median(times(rounds, || {
            near.write_all(&bytes).and_then(|()| near.read_exact(&mut bytes)).expect("a round trip")
        }))
    });
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (mut from, mut to) in [(&near, &far), (&far, &near)] {
            scope.spawn(move || {
                let bytes = vec![0; 1 << 20];
                (0..STREAM >> 20).for_each(|_| from.write_all(&bytes).expect("streamed"));
            });
            scope.spawn(move || {
                let mut bytes = vec![0; 1 << 20];
                (0..STREAM >> 20).for_each(|_| to.read_exact(&mut bytes).expect("streamed"));
            });
        }
    });
    (round_trip / 2.0, STREAM as f64 / (began.elapsed().as_secs_f64() * 1e6))
}

/// Both ranks of a group.
fn group(link: Link) -> Vec<TcpRank> {
    let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let addresses = listeners.each_ref().map(|l| l.local_addr().expect("an address"));
    let peers = [vec![None, Some(through(addresses[1], link))], vec![Some(addresses[0]), None]];
    std::thread::scope(|scope| {
        let connect = |(me, (listener, peers)): (usize, (_, Vec<_>))| {
            scope.spawn(move || {
                let mesh = TcpMesh::connect(me, listener, &peers, &Secret::none(), &TcpConfig::default());
                let deadline = Duration::from_secs(30);
                mesh.and_then(|mesh| mesh.group(0, &[0, 1], deadline)).expect("a group")
            })
        };
        let threads: Vec<_> = listeners.into_iter().zip(peers).enumerate().map(connect).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    })
}

fn main() {
    let tree = ReductionTree::over_heads(2, 64);
    let plan = ReducePlan { nodes_of_rank: vec![1, 1], finish: tree.finish(&[0..1, 1..2]) };
    for (name, link) in [("loopback", None), ("200 µs round trip", Some(Duration::from_micros(100)))] {
        let (delay, rate) = raw(link);
        println!("{name}: one way {delay:.1} µs, {rate:.0} MB/s each way");
        println!("{:>9} {:>12} {:>12} {:>8}", "bytes", "p50 µs", "bound µs", "ratio");
        std::thread::scope(|scope| {
            for (rank, group) in group(link).into_iter().enumerate() {
                let plan = &plan;
                scope.spawn(move || {
                    for bytes in SIZES {
                        let elements = bytes / 4;
                        let mut x = Some(Reference.upload(&vec![0.0; elements], 1, elements));
                        let count = (20_000_000 / (bytes + 10_000)).clamp(30, 2000);
                        // The rank that begins later finds the other's part there, and the other waits twice as
                        // long for its own; in the next call they change places. So two calls are timed at a time.
                        let all = times(count / 2, || {
                            for _ in 0..2 {
                                let sum =
                                    group.all_reduce(&Reference, x.take().expect("the last sum"), 1, plan);
                                x = Some(sum.expect("both ranks are here"));
                            }
                        });
                        if rank == 0 {
                            let (p50, bound) = (median(all) / 2.0, delay + bytes as f64 / rate);
                            println!("{bytes:>9} {p50:>12.1} {bound:>12.1} {:>8.2}", p50 / bound);
                        }
                    }
                });
            }
        });
    }
}
