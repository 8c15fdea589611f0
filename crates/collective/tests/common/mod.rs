//! Meshes whose processes are threads.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use collective::{Secret, TcpConfig, TcpMesh, TcpRank};

/// No spinning: tests have more ranks than cores.
pub fn config() -> TcpConfig {
    TcpConfig { spin: Duration::ZERO, connect_deadline: Duration::from_secs(60) }
}

pub fn secret() -> Secret {
    Secret::from_bytes("a secret for tests").expect("long enough")
}

/// A listener on a free port of loopback, and its address.
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// Meshes of `ranks` processes. `connected(a, b)` says whether two of them have a connection.
pub fn meshes(
    ranks: usize,
    config: &TcpConfig,
    connected: impl Fn(usize, usize) -> bool + Sync,
) -> Vec<TcpMesh> {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..ranks).map(|_| listener()).unzip();
    std::thread::scope(|scope| {
        let connect = |(me, listener)| {
            let (addresses, connected) = (&addresses, &connected);
            scope.spawn(move || {
                let peer = |r: usize| (r != me && connected(me, r)).then(|| addresses[r]);
                let peers: Vec<_> = (0..ranks).map(peer).collect();
                TcpMesh::connect(me, listener, &peers, &secret(), config).expect("a mesh")
            })
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(connect).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    })
}

/// One group of all processes.
pub fn group(ranks: usize, deadline: Duration) -> Vec<TcpRank> {
    let members: Vec<_> = (0..ranks).collect();
    let meshes = meshes(ranks, &config(), |_, _| true);
    meshes.iter().map(|mesh| mesh.group(1, &members, deadline).expect("a group")).collect()
}
