//! How the connections of a mesh come about, whoever else knocks.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;

use super::system;
use crate::CollectiveError;
use crate::secret::{LATE, Role, Secret, authenticate, is_refusal, read_exact, write_all};

/// Nobody of ours needs longer to prove itself.
const MEETING: Duration = Duration::from_secs(5);
/// Strangers that may be heard at the same time.
const MAX_MEETINGS: usize = 64;
/// How often a wait looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(20);

/// What an accepted rank hears.
const WELCOME: u8 = 1;
const NOT_EXPECTED: u8 = 2;
const TAKEN: u8 = 3;

/// What threads that connect share.
struct Meetings<'a> {
    me: usize,
    world: usize,
    secret: &'a Secret,
    until: Instant,
    /// By world rank; `None` in the outer place: no connection is wanted.
    found: Mutex<Vec<Option<Option<TcpStream>>>>,
    /// How many strangers are heard.
    busy: AtomicUsize,
    reasons: Mutex<Reasons>,
}

/// Why a connection is missing.
#[derive(Default)]
struct Reasons {
    /// What was wrong with another side, or with this one for another, last.
    refusal: Option<String>,
    /// What else went wrong last. It takes no refusal's place: whoever was refused tries again, at the end in vain.
    other: Option<String>,
}

impl Reasons {
    fn note(&mut self, is_refusal: bool, why: String) {
        *(if is_refusal { &mut self.refusal } else { &mut self.other }) = Some(why);
    }

    /// Both, for a refusal may be a stranger's.
    fn told(self) -> String {
        match (self.refusal, self.other) {
            (Some(refusal), Some(other)) => format!("{refusal}; {other}"),
            (refusal, other) => refusal.or(other).unwrap_or_else(|| "nobody came".into()),
        }
    }
}

/// A socket for each of `peers`.
pub fn connect(
    me: usize,
    listener: TcpListener,
    peers: &[Option<SocketAddr>],
    secret: &Secret,
    deadline: Duration,
) -> Result<Vec<Option<TcpStream>>, CollectiveError> {
    assert!(me < peers.len() && peers[me].is_none(), "rank {me} of {} does not call itself", peers.len());
    listener.set_nonblocking(true).map_err(|e| system(me, &e))?;
    let meetings = Meetings {
        me,
        world: peers.len(),
        secret,
        until: Instant::now() + deadline,
        found: Mutex::new(peers.iter().map(|p| p.map(|_| None)).collect()),
        busy: AtomicUsize::new(0),
        reasons: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for (peer, address) in peers.iter().enumerate().skip(me + 1) {
            if let Some(address) = *address {
                let meetings = &meetings;
                scope.spawn(move || meetings.call(peer, address));
            }
        }
        meetings.listen(scope, &listener);
    });
    meetings.result(deadline)
}

impl Meetings<'_> {
    fn missing(&self) -> Vec<usize> {
        let found = self.found.lock().expect("nobody panics with it");
        (0..self.world).filter(|&r| matches!(found[r], Some(None))).collect()
    }

    /// Whether somebody is still waited for.
    fn goes_on(&self) -> bool {
        Instant::now() < self.until && !self.missing().is_empty()
    }

    fn note(&self, is_refusal: bool, why: String) {
        self.reasons.lock().expect("nobody panics with it").note(is_refusal, why);
    }

    /// Connects with a higher rank, as often as it takes.
    fn call(&self, peer: usize, address: SocketAddr) {
        while Instant::now() < self.until {
            let left = self.until.saturating_duration_since(Instant::now()).max(GLANCE);
            let met = TcpStream::connect_timeout(&address, left)
                .map_err(|e| (false, e.to_string()))
                .and_then(|socket| self.introduce(socket, peer).map_err(|e| (is_refusal(&e), e.to_string())));
            match met {
                Ok(socket) => {
                    self.found.lock().expect("nobody panics with it")[peer] = Some(Some(socket));
                    return;
                }
                Err((is_refusal, why)) => self.note(is_refusal, format!("rank {peer} at {address}: {why}")),
            }
            // Its process may not listen yet.
            std::thread::sleep(GLANCE);
        }
    }

    fn introduce(&self, mut socket: TcpStream, peer: usize) -> Result<TcpStream, CollectiveError> {
        let until = self.prepare(&socket).map_err(|e| system(self.me, &e))?;
        authenticate(&mut socket, self.secret, Role::Connects, until)?;
        let names = [self.me, peer, self.world].map(|n| (n as u32).to_le_bytes());
        write_all(&mut socket, names.as_flattened(), until)?;
        let mut answer = [0];
        read_exact(&mut socket, &mut answer, until)?;
        let refused = |why: String| Err(CollectiveError::Refused(why));
        match answer[0] {
            WELCOME => Ok(socket),
            TAKEN => refused(format!("it is connected with another rank {} already", self.me)),
            _ => refused(format!("it is not rank {peer} of {}, or expects no rank {}", self.world, self.me)),
        }
    }

    /// Accepts whoever comes, until all are there or time is up.
    fn listen<'s>(&'s self, scope: &'s std::thread::Scope<'s, '_>, listener: &TcpListener) {
        while self.goes_on() {
            match listener.accept() {
                Ok((socket, from)) if self.busy.load(Relaxed) < MAX_MEETINGS => {
                    self.busy.fetch_add(1, Relaxed);
                    scope.spawn(move || {
                        if let Err(error) = self.receive(socket) {
                            self.note(is_refusal(&error), format!("{from}: {error}"));
                        }
                        self.busy.fetch_sub(1, Relaxed);
                    });
                }
                // Too many at once: those of ours come again.
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let time = Timespec { tv_sec: 0, tv_nsec: GLANCE.as_nanos() as i64 };
                    let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&time));
                }
                // What an accepted connection has died of meanwhile; or no more descriptors, and strangers give some back.
                Err(e) => {
                    self.note(false, e.to_string());
                    std::thread::sleep(GLANCE);
                }
            }
        }
    }

    fn receive(&self, mut socket: TcpStream) -> Result<(), CollectiveError> {
        let until = self.prepare(&socket).map_err(|e| system(self.me, &e))?;
        authenticate(&mut Wanted { socket: &socket, meetings: self }, self.secret, Role::Accepts, until)?;
        let mut names = [0; 12];
        read_exact(&mut Wanted { socket: &socket, meetings: self }, &mut names, until)?;
        let [peer, me, world] =
            [0, 4, 8].map(|at| u32::from_le_bytes(names[at..at + 4].try_into().expect("4 bytes")) as usize);
        let mut found = self.found.lock().expect("nobody panics with it");
        let expected = me == self.me && world == self.world && peer < me;
        let (answer, why) = match found.get(peer).filter(|_| expected) {
            Some(Some(None)) => (WELCOME, ""),
            Some(Some(Some(_))) => (TAKEN, "it says that it is a rank that is here already"),
            _ => (NOT_EXPECTED, "it is a rank that is not expected"),
        };
        write_all(&mut socket, &[answer], until)?;
        if answer != WELCOME {
            return Err(CollectiveError::Refused(format!("{why}: rank {peer} of {world}, looking for {me}")));
        }
        found[peer] = Some(Some(socket));
        Ok(())
    }

    /// Sets a socket up for a meeting, and says when that ends.
    fn prepare(&self, socket: &TcpStream) -> std::io::Result<Instant> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(GLANCE))?;
        socket.set_write_timeout(Some(GLANCE))?;
        Ok(self.until.min(Instant::now() + MEETING))
    }

    fn result(self, deadline: Duration) -> Result<Vec<Option<TcpStream>>, CollectiveError> {
        let missing = self.missing();
        if !missing.is_empty() {
            let why = self.reasons.into_inner().expect("nobody panics with it").told();
            let waited_s = deadline.as_secs_f64().ceil() as u64;
            return Err(CollectiveError::Unconnected { rank: self.me, missing, waited_s, why });
        }
        let found = self.found.into_inner().expect("nobody panics with it");
        let sockets: Vec<_> = found.into_iter().map(Option::flatten).collect();
        for socket in sockets.iter().flatten() {
            socket.set_nonblocking(true).map_err(|e| system(self.me, &e))?;
        }
        Ok(sockets)
    }
}

/// A stranger's socket, which is closed for us when all ranks are there.
struct Wanted<'a> {
    socket: &'a TcpStream,
    meetings: &'a Meetings<'a>,
}

impl std::io::Read for Wanted<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        if !self.meetings.goes_on() {
            // Of a kind after which nobody reads again.
            return Err(std::io::Error::other(LATE));
        }
        self.socket.read(bytes)
    }
}

impl std::io::Write for Wanted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::from_bytes([byte; 16]).expect("long enough")
    }

    /// What one of two ranks knows before it has met the other.
    fn meetings(me: usize, secret: &Secret, until: Instant) -> Meetings<'_> {
        let found = (0..2).map(|rank| (rank != me).then_some(None)).collect();
        let (busy, reasons) = (AtomicUsize::new(0), Mutex::default());
        Meetings { me, world: 2, secret, until, found: Mutex::new(found), busy, reasons }
    }

    #[test]
    fn who_is_gone_after_a_refusal_does_not_hide_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (ours, until) = (secret(1), Instant::now() + Duration::from_secs(60));
        let meetings = meetings(0, &ours, until);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| meetings.call(1, address));
            let accept = || listener.accept().expect("it comes again").0;
            authenticate(&mut accept(), &secret(2), Role::Accepts, until).expect_err("another secret");
            drop(accept());
            // So that it ends before its time.
            let mut socket = accept();
            authenticate(&mut socket, &ours, Role::Accepts, until).expect("the same secret");
            write_all(&mut socket, &[WELCOME], until).expect("said");
            read_exact(&mut socket, &mut [0; 12], until).expect("its names");
            call.join().expect("no panic");
        });
        let told = meetings.reasons.into_inner().expect("nobody panics with it").told();
        let (refusal, other) = told.split_once("; ").expect("both");
        assert!(refusal.contains("it has another group secret"), "{told}");
        assert!(other.ends_with("it closed the connection"), "{told}");
    }

    #[test]
    fn who_is_silent_until_time_is_up_has_refused_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let _silent = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
        let (ours, socket) = (secret(1), listener.accept().expect("somebody").0);
        let error = meetings(1, &ours, Instant::now()).receive(socket).expect_err("it says nothing");
        assert_eq!(error, CollectiveError::Refused(LATE.into()));
        assert!(!is_refusal(&error));
    }
}
