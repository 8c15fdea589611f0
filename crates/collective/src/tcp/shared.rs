//! What the ranks of a process share: connections, groups, the postman.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;

use super::exchange::Exchange;
use super::frame;
use super::groups::Groups;
use super::link::Link;
use super::postman::Postman;
use super::waker::Waker;

/// A mesh's sockets, and what is known of them.
pub struct Shared {
    pub me: usize,
    /// By world rank. They stay open until the mesh ends, so that whoever sleeps on one never sleeps on another's.
    pub sockets: Vec<Option<TcpStream>>,
    state: Mutex<State>,
    pub spin: Duration,
    /// Wakes the postman.
    pub post: Arc<Waker>,
}

/// What ranks change under the lock.
pub struct State {
    links: Vec<Link>,
    pub groups: Groups,
    /// Whether the mesh has ended.
    pub over: bool,
}

impl Shared {
    pub fn new(me: usize, sockets: Vec<Option<TcpStream>>, spin: Duration) -> std::io::Result<Self> {
        let connected = sockets.iter().enumerate().filter(|(_, s)| s.is_some());
        let links = connected.map(|(peer, _)| Link::new(peer)).collect();
        let state = Mutex::new(State { links, groups: Groups::default(), over: false });
        Ok(Shared { me, sockets, state, spin, post: Arc::new(Waker::new()?) })
    }

    /// A panic under the lock leaves nothing half done that others could not bear: they go on, and end it.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn socket(&self, peer: usize) -> &TcpStream {
        self.sockets[peer].as_ref().expect("links are connected")
    }

    /// Sleeps until a socket can go on or `waker` is woken, at most for `time`.
    pub fn sleep(&self, interest: &[(usize, PollFlags)], waker: &Waker, time: Option<Duration>) {
        let sockets = interest.iter().map(|&(peer, flags)| PollFd::new(self.socket(peer), flags));
        let mut fds: Vec<_> = sockets.chain([PollFd::new(waker, PollFlags::IN)]).collect();
        let time = time.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos() as i64 });
        // An error is a signal that came in between; the caller looks again.
        let _ = poll(&mut fds, time.as_ref());
        waker.rest();
    }
}

impl State {
    pub fn link(&mut self, peer: usize) -> Option<&mut Link> {
        self.links.iter_mut().find(|l| l.peer == peer)
    }

    /// Goes on with all connections, as far as nobody has to wait. Says whether something moved.
    pub fn pump(&mut self, shared: &Shared, mut exchange: Option<&mut Exchange<'_>>) -> bool {
        self.tell();
        let mut moved = false;
        for link in self.links.iter_mut().filter(|l| l.closed.is_none()) {
            let socket = shared.socket(link.peer);
            moved |= link.write(socket, exchange.as_deref_mut());
            moved |= link.read(socket, &mut self.groups, exchange.as_deref_mut());
        }
        moved
    }

    /// Writes what waits to be written.
    pub fn flush(&mut self, shared: &Shared) {
        self.tell();
        for link in &mut self.links {
            link.write(shared.socket(link.peer), None);
        }
    }

    /// Tells the members of groups that have failed.
    fn tell(&mut self) {
        for (id, members, rank, message) in self.groups.untold() {
            let words = frame::fail(id, rank, &message);
            let links = self.links.iter_mut().filter(|l| members.contains(&l.peer) && l.closed.is_none());
            links.for_each(|link| link.push_first(words.clone()));
        }
    }

    /// What a thread that works on `exchange` sleeps for.
    pub fn interest(&self, exchange: Option<&Exchange<'_>>) -> Vec<(usize, PollFlags)> {
        let open = self.links.iter().filter(|l| l.closed.is_none());
        let flags = open.map(|link| {
            let reads = if link.blocked { PollFlags::empty() } else { PollFlags::IN };
            let writes = if link.has_output(exchange) { PollFlags::OUT } else { PollFlags::empty() };
            (link.peer, reads | writes)
        });
        flags.filter(|(_, flags)| !flags.is_empty()).collect()
    }

    /// Connections with something to write that is nobody's any more.
    pub fn outputs(&self) -> Vec<(usize, PollFlags)> {
        let links = self.links.iter().filter(|l| l.has_output(None));
        links.map(|link| (link.peer, PollFlags::OUT)).collect()
    }

    /// Leaves an exchange that has failed.
    pub fn abandon(&mut self, exchange: &mut Exchange<'_>) {
        self.links.iter_mut().for_each(|link| link.abandon(exchange));
    }

    /// Why a connection is over.
    pub fn closed(&self, peer: usize) -> Option<&str> {
        self.links.iter().find(|l| l.peer == peer)?.closed.as_deref()
    }
}

/// Ends the mesh when its last rank and the mesh itself have gone.
pub struct Owner {
    pub shared: Arc<Shared>,
    postman: Option<JoinHandle<()>>,
}

impl Owner {
    pub fn new(shared: Shared) -> std::io::Result<Self> {
        let shared = Arc::new(shared);
        let postman = Postman::start(shared.clone())?;
        Ok(Owner { shared, postman: Some(postman) })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.post.wake();
        if let Some(postman) = self.postman.take() {
            // It has not panicked, and if it has, there is nobody to tell.
            let _ = postman.join();
        }
        let mut state = self.shared.lock();
        // The other side gets all we said, then the end. Bytes that we leave unread would destroy what is under way.
        self.shared.sockets.iter().flatten().for_each(|s| drop(s.shutdown(Shutdown::Write)));
        state.pump(&self.shared, None);
    }
}
