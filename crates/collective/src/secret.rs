//! What the processes of a group know and nobody else: who cannot prove that it knows the secret is not spoken with.
//!
//! Each side sends a challenge of 32 random bytes, then the proof: HMAC-SHA256 under the secret of (role, both challenges). A
//! proof holds for one connection and one role, so it can be neither replayed nor reflected. Nothing of what the other
//! side sends is interpreted before its proof holds; all of it has a fixed length. The secret keeps strangers out. It
//! does not encrypt: who can read or change packets on the way needs to be kept off the network.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Instant;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::CollectiveError;

/// Shorter secrets can be guessed.
const MIN_BYTES: usize = 16;
/// Nobody means a longer file.
const MAX_BYTES: usize = 4096;
/// Bytes of a challenge and of a proof.
const WORD: usize = 32;
/// What the bytes are, and the version of how they are exchanged. Either side refuses another.
const PREAMBLE: [u8; 8] = *b"anysplt\x01";

/// A group's secret.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// No secret: everybody who speaks the protocol is let in. For loopback only.
    pub fn none() -> Self {
        Secret(Vec::new())
    }

    /// A secret of 16 to 4096 bytes.
    ///
    /// # Errors
    /// It is shorter or longer.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, CollectiveError> {
        let bytes = bytes.into();
        match bytes.len() {
            MIN_BYTES..=MAX_BYTES => Ok(Secret(bytes)),
            n => Err(CollectiveError::Secret(format!(
                "it has {n} bytes, and {MIN_BYTES} to {MAX_BYTES} are needed (`openssl rand -hex 32` makes one)"
            ))),
        }
    }

    /// A file's content, without white space around it.
    ///
    /// # Errors
    /// The file cannot be read, or holds no secret.
    pub fn from_file(path: &Path) -> Result<Self, CollectiveError> {
        let named = |why: String| CollectiveError::Secret(format!("{}: {why}", path.display()));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| named(e.to_string()))?;
        file.take(2 * MAX_BYTES as u64).read_to_end(&mut bytes).map_err(|e| named(e.to_string()))?;
        Secret::from_bytes(bytes.trim_ascii()).map_err(|e| match e {
            CollectiveError::Secret(why) => named(why),
            other => other,
        })
    }

    /// Whether this is [`Secret::none`].
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    fn hmac(&self, role: Role, challenges: &[[u8; WORD]; 2]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&PREAMBLE);
        mac.update(role.name());
        challenges.iter().for_each(|c| mac.update(c));
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() { "Secret(none)" } else { "Secret(…)" })
    }
}

/// Which side of a connection one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that connected; it proves itself first.
    Connects,
    /// The side that listened.
    Accepts,
}

impl Role {
    fn other(self) -> Self {
        match self {
            Role::Connects => Role::Accepts,
            Role::Accepts => Role::Connects,
        }
    }

    fn name(self) -> &'static [u8] {
        match self {
            Role::Connects => b"connects",
            Role::Accepts => b"accepts ",
        }
    }
}

/// Proves to the other side that one knows the secret, and has it prove the same.
///
/// `stream` should have read and write timeouts, well below the time to `deadline`, which is looked at after each.
///
/// # Errors
/// The other side speaks something else, has another secret, or has not answered by `deadline`.
pub fn authenticate(
    stream: &mut (impl Read + Write),
    secret: &Secret,
    role: Role,
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let mut mine = [0; WORD];
    getrandom::fill(&mut mine).map_err(|e| refused(format!("no random numbers: {e}")))?;
    write_all(stream, &[&PREAMBLE[..], &mine].concat(), deadline)?;
    let mut hello = [0; PREAMBLE.len() + WORD];
    read_exact(stream, &mut hello, deadline)?;
    let (preamble, theirs) = hello.split_at(PREAMBLE.len());
    if preamble != PREAMBLE {
        let same = preamble[..7] == PREAMBLE[..7];
        return Err(refused(match same {
            true => format!("it speaks version {} of the protocol, not {}", preamble[7], PREAMBLE[7]),
            false => "it speaks another protocol".into(),
        }));
    }
    let theirs: [u8; WORD] = theirs.try_into().expect("what is left of the hello");
    let challenges = match role {
        Role::Connects => [mine, theirs],
        Role::Accepts => [theirs, mine],
    };
    let proof: [u8; WORD] = secret.hmac(role, &challenges).finalize().into_bytes().into();
    let verify = |stream: &mut _| {
        let mut proof = [0; WORD];
        read_exact(stream, &mut proof, deadline)?;
        let expected = secret.hmac(role.other(), &challenges);
        expected.verify_slice(&proof).map_err(|_| refused("it has another group secret".into()))
    };
    // Who listens says nothing that depends on the secret to whom has not proved to know it.
    match role {
        Role::Connects => {
            write_all(stream, &proof, deadline)?;
            verify(stream).map_err(|e| match e {
                CollectiveError::Refused(why) if why == CLOSED => refused(
                    "it closed the connection: it has another group secret, or does not expect us".into(),
                ),
                other => other,
            })
        }
        Role::Accepts => {
            verify(stream)?;
            write_all(stream, &proof, deadline)
        }
    }
}

const CLOSED: &str = "it closed the connection";
/// What is said of whoever has not answered by the deadline.
pub(crate) const LATE: &str = "it did not answer in time";

/// Whether something was found wrong with the other side of a connection, or it said so of this one. Whoever is merely silent, or gone,
/// might have been right.
pub(crate) fn is_refusal(error: &CollectiveError) -> bool {
    matches!(error, CollectiveError::Refused(why) if why != CLOSED && why != LATE)
}

fn refused(why: String) -> CollectiveError {
    CollectiveError::Refused(why)
}

/// Fills `bytes`, however the other side cuts them up, or gives up at `deadline`.
pub(crate) fn read_exact(
    stream: &mut impl Read,
    bytes: &mut [u8],
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let mut have = 0;
    while have < bytes.len() {
        match stream.read(&mut bytes[have..]) {
            Ok(0) => return Err(refused(CLOSED.into())),
            Ok(n) => have += n,
            Err(e) => may_wait(e, deadline)?,
        }
    }
    Ok(())
}

/// Writes all of `bytes`, or gives up at `deadline`.
pub(crate) fn write_all(
    stream: &mut impl Write,
    mut bytes: &[u8],
    deadline: Instant,
) -> Result<(), CollectiveError> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(refused(CLOSED.into())),
            Ok(n) => bytes = &bytes[n..],
            Err(e) => may_wait(e, deadline)?,
        }
    }
    Ok(())
}

fn may_wait(error: std::io::Error, deadline: Instant) -> Result<(), CollectiveError> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::WouldBlock | ErrorKind::TimedOut if Instant::now() < deadline => Ok(()),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(refused(LATE.into())),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
            Err(refused(CLOSED.into()))
        }
        _ => Err(refused(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::from_bytes([byte; 32]).expect("long enough")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Both sides' results.
    fn meet(connects: &Secret, accepts: &Secret, roles: [Role; 2]) -> [Result<(), CollectiveError>; 2] {
        let (mut a, mut b) = UnixStream::pair().expect("a pair of sockets");
        std::thread::scope(|scope| {
            let first = scope.spawn(move || authenticate(&mut a, connects, roles[0], soon()));
            let second = scope.spawn(move || authenticate(&mut b, accepts, roles[1], soon()));
            [first.join().expect("no panic"), second.join().expect("no panic")]
        })
    }

    const ROLES: [Role; 2] = [Role::Connects, Role::Accepts];

    #[test]
    fn who_has_the_same_secret_is_let_in() {
        assert_eq!(meet(&secret(1), &secret(1), ROLES), [Ok(()), Ok(())]);
        assert_eq!(meet(&Secret::none(), &Secret::none(), ROLES), [Ok(()), Ok(())]);
    }

    #[test]
    fn who_has_another_or_none_is_not() {
        for (a, b) in [(secret(1), secret(2)), (secret(1), Secret::none()), (Secret::none(), secret(1))] {
            let [connects, accepts] = meet(&a, &b, ROLES);
            assert!(connects.expect_err("refused").to_string().contains("another group secret"));
            assert!(accepts.expect_err("refused").to_string().contains("another group secret"));
        }
    }

    #[test]
    fn a_proof_cannot_be_reflected() {
        // A mirror sends back whatever it gets: the same challenge, then the same proof.
        let (mut a, mut mirror) = UnixStream::pair().expect("a pair of sockets");
        let error = std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut bytes = [0; 256];
                while let Ok(n @ 1..) = mirror.read(&mut bytes) {
                    mirror.write_all(&bytes[..n]).ok();
                }
            });
            let error = authenticate(&mut a, &secret(1), Role::Connects, soon());
            drop(a);
            error
        });
        assert!(error.expect_err("refused").to_string().contains("another group secret"));
        // Nor do two sides of the same role believe each other; both wait for the other's proof, or see a wrong one.
        let [a, b] = meet(&secret(1), &secret(1), [Role::Connects; 2]);
        assert!(a.is_err() && b.is_err());
    }

    #[test]
    fn a_proof_cannot_be_replayed() {
        // Records what the connecting side says in one meeting, and says it again in another.
        let recorded = {
            let (mut a, mut tap) = UnixStream::pair().expect("a pair of sockets");
            let (mut far, mut b) = UnixStream::pair().expect("a pair of sockets");
            std::thread::scope(|scope| {
                scope
                    .spawn(move || authenticate(&mut a, &secret(1), Role::Connects, soon()).expect("let in"));
                scope.spawn(move || authenticate(&mut b, &secret(1), Role::Accepts, soon()).expect("let in"));
                let mut said = Vec::new();
                for len in [PREAMBLE.len() + WORD, WORD] {
                    let mut bytes = vec![0; len];
                    tap.read_exact(&mut bytes).expect("said");
                    far.write_all(&bytes).expect("passed on");
                    said.extend(&bytes);
                    far.read_exact(&mut bytes).expect("answered");
                    tap.write_all(&bytes).expect("passed back");
                }
                said
            })
        };
        let (mut replay, mut b) = UnixStream::pair().expect("a pair of sockets");
        replay.write_all(&recorded).expect("said again");
        let error = authenticate(&mut b, &secret(1), Role::Accepts, soon());
        assert!(error.expect_err("refused").to_string().contains("another group secret"));
    }

    #[test]
    fn the_silent_and_the_slow_are_given_up() {
        let (mut a, _silent) = UnixStream::pair().expect("a pair of sockets");
        a.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
        let error =
            authenticate(&mut a, &secret(1), Role::Accepts, Instant::now() + Duration::from_millis(20));
        assert!(error.expect_err("given up").to_string().contains("did not answer in time"));
    }

    #[test]
    fn another_version_is_named() {
        let (mut a, mut b) = UnixStream::pair().expect("a pair of sockets");
        b.write_all(b"anysplt\x09").and_then(|()| b.write_all(&[7; WORD])).expect("said");
        let error =
            authenticate(&mut a, &secret(1), Role::Connects, soon()).expect_err("refused").to_string();
        assert!(error.contains("version 9 of the protocol, not 1"), "{error}");
    }

    #[test]
    fn a_secret_is_never_printed_and_never_short() {
        assert_eq!(format!("{:?} {:?}", secret(b'x'), Secret::none()), "Secret(…) Secret(none)");
        let error = Secret::from_bytes("hunter2").expect_err("too short").to_string();
        assert!(error.contains("7 bytes") && !error.contains("hunter2"), "{error}");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        assert!(Secret::from_file(&path).expect_err("no file").to_string().contains("secret"));
        std::fs::write(&path, "0123456789abcdef\n").expect("written");
        assert_eq!(Secret::from_file(&path).expect("a secret").0, b"0123456789abcdef");
        std::fs::write(&path, vec![b'x'; 100_000]).expect("written");
        assert!(Secret::from_file(&path).is_err(), "a file that is no secret");
    }
}
