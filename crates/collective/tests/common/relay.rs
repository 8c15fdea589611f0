//! A link with a delay: a process's port that passes bytes on later.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Listens on a port of its own, and passes each byte on to `target` and back after `delay`. Its threads end with the
/// connections.
pub fn relay(target: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let (near, _) = listener.accept().expect("somebody connects");
        let far = TcpStream::connect(target).expect("the target listens");
        for (from, to) in [(&near, &far), (&far, &near)] {
            let clone = |socket: &TcpStream| {
                socket.set_nodelay(true).expect("no delay but ours");
                socket.try_clone().expect("a descriptor")
            };
            pass(clone(from), clone(to), delay);
        }
    });
    address
}

/// One direction: one thread reads at once, another writes when it is time.
fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (late, due) = channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 256 << 10];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if late.send((Instant::now() + delay, bytes[..n].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        while let Ok((time, bytes)) = due.recv() {
            while Instant::now() < time {
                std::thread::yield_now();
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        // The other side may have closed already.
        to.shutdown(Shutdown::Write).ok();
    });
}
