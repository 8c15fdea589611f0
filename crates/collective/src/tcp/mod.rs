//! Ranks on several hosts: one connection between every two processes, which all their groups share.
//!
//! No thread reads. Whoever waits goes on with all connections, whoever's bytes they are: it writes what can be written and
//! reads what has come, into the buffer of the call that waits for it, or into a queue. It spins for a while, and then sleeps
//! in `poll`. One thread of a mesh, the [`postman`], writes what a rank has posted and then left for other work.
//!
//! The connections are authenticated ([`crate::Secret`]) but not encrypted.

mod connect;
mod exchange;
mod frame;
mod groups;
mod link;
mod postman;
mod shared;
mod waker;
mod wire;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use crate::{CollectiveError, Messages, Secret};
use shared::{Owner, Shared};
pub use wire::TcpWire;

/// One rank of a group over TCP.
pub type TcpRank = Messages<TcpWire>;

/// How processes connect and wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Connections that are not there by then are an error that names who is missing.
    pub connect_deadline: Duration,
    /// A wait polls for this long before it sleeps. Zero where other threads need the cores.
    pub spin: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        TcpConfig { connect_deadline: Duration::from_secs(30), spin: Duration::from_micros(50) }
    }
}

/// One process's connections with all others.
pub struct TcpMesh {
    owner: Arc<Owner>,
}

impl TcpMesh {
    /// Connects with all `peers`: the address on which each world rank listens. `None` stands for oneself (`me`), and
    /// for ranks to which no connection is needed. Of two ranks the lower connects and the higher accepts, so `listener` needs
    /// to be reachable for lower ranks. All ranks call this at about the same time.
    ///
    /// Whoever else comes to the port (with another secret or none, speaking something else, or silent) is dropped and
    /// does not disturb the others.
    ///
    /// # Errors
    /// Ranks are not there at the deadline, or refuse us. The error names them.
    pub fn connect(
        me: usize,
        listener: TcpListener,
        peers: &[Option<SocketAddr>],
        secret: &Secret,
        config: &TcpConfig,
    ) -> Result<TcpMesh, CollectiveError> {
        let sockets = connect::connect(me, listener, peers, secret, config.connect_deadline)?;
        let owner = Owner::new(Shared::new(me, sockets, config.spin).map_err(|e| system(me, &e))?);
        Ok(TcpMesh { owner: Arc::new(owner.map_err(|e| system(me, &e))?) })
    }

    /// This process's rank in a group of processes. `members` are world ranks, `me` among them; a member's place
    /// there is its rank in the group. All members call this with the same `id` and `members`, each once.
    ///
    /// Members without a connection may be there: those are told nothing.
    ///
    /// # Panics
    /// If `me` is not among the members, or the group's number has been used.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn group(&self, id: u16, members: &[usize], deadline: Duration) -> Result<TcpRank, CollectiveError> {
        TcpWire::join(self.owner.clone(), id, members, deadline).map(Messages::new)
    }
}

/// An error of the operating system, in this process.
fn system(me: usize, error: &std::io::Error) -> CollectiveError {
    CollectiveError::Failed { rank: me, message: error.to_string() }
}

impl std::fmt::Debug for TcpMesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TcpMesh(rank {})", self.owner.shared.me)
    }
}
