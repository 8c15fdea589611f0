//! Two processes make sure that they are of one job before either reads a frame of the other.
//!
//! Each side says what it is: a protocol and a job. Then both prove that they know the group's secret. All of it has
//! fixed lengths and one deadline.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use collective::{Role, Secret, authenticate};

use crate::env::hash;
use crate::frame::PROTOCOL;

/// A handshake takes no longer; whoever connects and says nothing is forgotten.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How often a handshake looks at the time.
const TICK: Duration = Duration::from_millis(50);

const MAGIC: &[u8; 8] = b"anyspjob";
const OPENING_BYTES: usize = 8 + 2 + 8;

/// Why the other side is none of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// Something else than an anysplit process, or one that ended.
    Other(String),
    /// Another version of the protocol.
    Version(u16),
    /// Another job.
    Job,
    /// Another secret.
    Secret,
}

impl std::fmt::Display for Stranger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stranger::Other(text) => f.write_str(text),
            Stranger::Version(theirs) => write!(f, "it speaks protocol {theirs}, this process {PROTOCOL}"),
            Stranger::Job => f.write_str("it is of another job"),
            Stranger::Secret => f.write_str("it has another group secret"),
        }
    }
}

/// What the processes of a job have in common.
#[derive(Clone, Debug)]
pub struct Credentials {
    job: u64,
    secret: Secret,
}

impl Credentials {
    /// `job_key` keeps jobs apart that meet on one port, `secret` keeps others out.
    pub fn new(job_key: &str, secret: Secret) -> Credentials {
        Credentials { job: hash(job_key), secret }
    }

    /// Whether everybody who speaks the protocol is let in.
    pub fn is_open(&self) -> bool {
        self.secret.is_none()
    }

    /// Finds out whether the other side is of this job.
    pub fn check(&self, stream: &mut TcpStream, role: Role, until: Instant) -> Result<(), Stranger> {
        let until = until.min(Instant::now() + HANDSHAKE);
        let set = stream.set_read_timeout(Some(TICK)).and_then(|()| stream.set_write_timeout(Some(TICK)));
        set.and_then(|()| stream.set_nodelay(true)).map_err(other)?;
        let mut opening = MAGIC.to_vec();
        opening.extend(PROTOCOL.to_le_bytes());
        opening.extend(self.job.to_le_bytes());
        stream.write_all(&opening).map_err(other)?;
        let theirs = receive(stream, until)?;
        let protocol = u16::from_le_bytes([theirs[8], theirs[9]]);
        if !theirs.starts_with(MAGIC) {
            return Err(Stranger::Other("no anysplit process".into()));
        } else if protocol != PROTOCOL {
            return Err(Stranger::Version(protocol));
        } else if theirs[10..] != opening[10..] {
            return Err(Stranger::Job);
        }
        authenticate(stream, &self.secret, role, until).map_err(|e| match e.to_string() {
            text if text.contains("group secret") => Stranger::Secret,
            text => Stranger::Other(text),
        })
    }
}

fn other(error: std::io::Error) -> Stranger {
    Stranger::Other(error.to_string())
}

/// The other side's opening. A stranger's first wrong byte ends it.
fn receive(stream: &mut TcpStream, until: Instant) -> Result<[u8; OPENING_BYTES], Stranger> {
    let mut bytes = [0; OPENING_BYTES];
    let mut have = 0;
    while have < OPENING_BYTES {
        if Instant::now() >= until {
            return Err(Stranger::Other("it does not answer".into()));
        }
        match stream.read(&mut bytes[have..]) {
            Ok(0) => return Err(Stranger::Other("it hung up".into())),
            Ok(n) => have += n,
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(other(e)),
        }
        let known = have.min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            return Err(Stranger::Other("no anysplit process".into()));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn credentials(job: &str, secret: u8) -> Credentials {
        Credentials::new(job, Secret::from_bytes([secret; 32]).expect("long enough"))
    }

    /// What both sides think of each other: who connects, who accepts.
    fn meet(connects: &Credentials, accepts: &Credentials) -> [Result<(), Stranger>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("its address");
        let until = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            let led = scope.spawn(|| {
                let mut stream = listener.accept().expect("a connection").0;
                accepts.check(&mut stream, Role::Accepts, until)
            });
            let mut stream = TcpStream::connect(at).expect("connected");
            let called = connects.check(&mut stream, Role::Connects, until);
            [called, led.join().expect("no panic")]
        })
    }

    #[test]
    fn only_the_same_job_with_the_same_secret_meets() {
        let ours = credentials("job 1", 1);
        assert_eq!(meet(&ours, &ours.clone()), [Ok(()), Ok(())]);
        assert_eq!(meet(&credentials("job 1", 2), &ours), [Err(Stranger::Secret), Err(Stranger::Secret)]);
        assert_eq!(meet(&credentials("job 2", 1), &ours), [Err(Stranger::Job), Err(Stranger::Job)]);
    }

    #[test]
    fn a_stranger_is_known_by_its_first_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("its address");
        let mut browser = TcpStream::connect(at).expect("connected");
        browser.write_all(b"GET").expect("sent");
        let mut stream = listener.accept().expect("a connection").0;
        let until = Instant::now() + Duration::from_secs(60);
        let error = credentials("job", 1).check(&mut stream, Role::Accepts, until);
        assert_eq!(error, Err(Stranger::Other("no anysplit process".into())));
    }
}
