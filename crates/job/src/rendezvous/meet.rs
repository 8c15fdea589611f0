//! The others come to rank 0.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use collective::Role;

use super::{Link, Meeting, Party, data_listener, local_addr};
use crate::JobError;
use crate::auth::Stranger;
use crate::frame::{Broken, Frame};
use crate::line::Line;
use crate::watch::member::Member;

/// One try to connect. Rank 0 answers within a round trip, or is not there yet.
const TRY: Duration = Duration::from_secs(2);
/// The same where several ports are tried, of which strangers may have some.
const TRY_IN_WINDOW: Duration = Duration::from_millis(500);
/// Between two rounds of tries.
const PAUSE: Duration = Duration::from_millis(50);
/// How much later than its own deadline rank 0 may say who was missing.
const ANSWER: Duration = Duration::from_secs(2);

pub(super) fn meet(party: &Party<'_>, hosts: &[IpAddr]) -> Result<Meeting, JobError> {
    let stream = reach(party, hosts)?;
    let own = stream.local_addr().map_err(|e| JobError::system("cannot find an own address", e))?;
    let leader = stream.peer_addr().map_err(|e| JobError::system("rank 0 has gone", e))?;
    let listener = data_listener(own.ip())?;
    let pace = party.watch.pace;
    let (line, mut reader) = Line::new(stream, pace.tick, pace.timeout)
        .map_err(|e| JobError::system("cannot set up the connection with rank 0", e))?;
    let hello = party.hello(local_addr(&listener)?);
    let lost = |why: &str| JobError::Lost {
        message: format!("rank 0 at {leader} {why} while the job started"),
        is_usage: false,
    };
    line.send(&Frame::Hello(hello)).map_err(|_| lost("left"))?;
    // Rank 0 began to wait before it took the connection, so it will have decided by then.
    let patience = party.startup + ANSWER;
    let mut seats = match reader.next(|| Some(patience)) {
        Ok(Frame::Welcome(seats)) if seats.len() == party.env.size => seats,
        Ok(Frame::Refusal { message, is_usage }) => {
            return Err(JobError::Refused { message, is_usage, is_echo: true });
        }
        Ok(_) | Err(Broken::Garbage) => return Err(lost("sent what is no message of this version")),
        Err(Broken::Closed) => return Err(lost("left")),
        Err(Broken::Silent) => return Err(lost("went silent")),
    };
    // Rank 0 does not know by which of its addresses this host reaches it.
    seats[0].data.set_ip(leader.ip());
    let member = Member::start(party.watch.clone(), seats[0].clone(), line, reader)?;
    Ok(Meeting { seats, link: Link::Member(member), listener })
}

/// A connection with rank 0, which may start later than this process.
fn reach(party: &Party<'_>, hosts: &[IpAddr]) -> Result<TcpStream, JobError> {
    let env = party.env;
    let is_window = env.ports.start() != env.ports.end();
    let mut last = String::new();
    let mut has_hung_up = None;
    loop {
        for (host, port) in hosts.iter().flat_map(|host| env.ports.clone().map(move |port| (*host, port))) {
            let at = SocketAddr::new(host, port);
            match attempt(party, at, if is_window { TRY_IN_WINDOW } else { TRY }) {
                Ok(stream) => return Ok(stream),
                // It is of this job, as it has said before. All that it says of another secret is to hang up, which a
                // rank 0 that dies does too, though once only.
                Err(Stranger::Secret) if has_hung_up == Some(at) => {
                    return Err(JobError::WrongSecret { rank: env.rank, at: at.to_string() });
                }
                Err(stranger @ Stranger::Secret) => {
                    has_hung_up = Some(at);
                    last = stranger.to_string();
                }
                // In a window of ports it may be somebody else's rank 0.
                Err(stranger @ Stranger::Version(_)) if !is_window => {
                    let message = format!("rank {} and rank 0 at {at} do not fit: {stranger}", env.rank);
                    return Err(JobError::Refused { message, is_usage: true, is_echo: false });
                }
                Err(stranger) => last = stranger.to_string(),
            }
        }
        if Instant::now() + PAUSE >= party.until {
            let at = format!("{}:{}", env.master, env.ports.start());
            return Err(JobError::Unreachable { rank: env.rank, at, waited: party.startup, message: last });
        }
        std::thread::sleep(PAUSE);
    }
}

fn attempt(party: &Party<'_>, at: SocketAddr, patience: Duration) -> Result<TcpStream, Stranger> {
    let other = |e: std::io::Error| Stranger::Other(e.to_string());
    let left = party.until.saturating_duration_since(Instant::now());
    let mut stream = TcpStream::connect_timeout(&at, left.clamp(PAUSE, patience)).map_err(other)?;
    // A port that nobody listens on can connect to itself, if the system picks it for the connection.
    if stream.local_addr().ok() == stream.peer_addr().ok() {
        return Err(Stranger::Other("nobody listens".into()));
    }
    party.credentials.check(&mut stream, Role::Connects, party.until.min(Instant::now() + patience))?;
    Ok(stream)
}
