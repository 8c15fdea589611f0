//! What processes of a job say to each other besides their data: frames of a length and at most a MiB.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Changes with every change of a frame.
pub const PROTOCOL: u16 = 1;

/// The longest frame; a table of 4096 ranks fits. Those who have not yet shown the secret send no frames.
const MAX_FRAME_BYTES: usize = 1 << 20;

/// What a process says of itself to rank 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub rank: u32,
    /// Ranks in its job, as it knows.
    pub size: u32,
    pub seat: Seat,
    /// What all ranks must have in common: names and values.
    pub fingerprint: Vec<(String, String)>,
}

/// A rank's process, as all others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Equal on processes that can share memory.
    pub host: String,
    pub host_name: String,
    pub pid: u32,
    /// Where it takes connections for data.
    pub data: SocketAddr,
}

/// Where a rank is in its collectives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub op: String,
    pub sequence: u64,
}

/// Why the job is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The rank that was the cause.
    pub rank: u32,
    /// The whole line: which rank, where, what.
    pub message: String,
    /// The exit status for all.
    pub code: u8,
    /// Whether the rank can say so itself.
    pub is_alive: bool,
}

/// Why a process gives up, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One line.
    pub message: String,
    /// The exit status.
    pub code: u8,
    /// Whether another rank is the cause, as far as this one knows: a collective that did not complete, for example.
    pub is_echo: bool,
}

impl Failure {
    /// Trouble of this process's own.
    pub fn own(message: impl Into<String>, code: u8) -> Failure {
        Failure { message: message.into(), code, is_echo: false }
    }

    /// What this process felt of another rank's trouble.
    pub fn echo(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 1, is_echo: true }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    Hello(Hello),
    /// All came: one seat for each rank.
    Welcome(Vec<Seat>),
    /// They are no job.
    Refusal {
        message: String,
        is_usage: bool,
    },
    /// Still here.
    Beat(Place),
    /// From one rank to another, through rank 0: `(about, peer, bytes)`, where `peer` is the receiver on the way to
    /// rank 0 and the sender on the way from it.
    Post(u16, u32, Vec<u8>),
    /// The job is over.
    Verdict(Verdict),
    /// This process leaves, with what went wrong; rank 0 answers with the same.
    Goodbye(Option<Failure>),
}

/// Why no further frame comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The connection ended.
    Closed,
    /// Nothing came for as long as was allowed.
    Silent,
    /// What came is no frame.
    Garbage,
}

pub fn write_frame(mut stream: &TcpStream, frame: &Frame) -> std::io::Result<()> {
    let body = postcard::to_stdvec(frame).map_err(std::io::Error::other)?;
    if body.len() > MAX_FRAME_BYTES {
        return Err(std::io::Error::other(format!("a frame of {} bytes", body.len())));
    }
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    stream.write_all(&bytes)
}

/// Reads frames and knows how long nothing came.
#[derive(Debug)]
pub struct FrameReader {
    stream: TcpStream,
    bytes: Vec<u8>,
    tick: Duration,
    silent: Duration,
}

impl FrameReader {
    /// `tick` is how often [`FrameReader::next`] looks at the time.
    pub fn new(stream: TcpStream, tick: Duration) -> std::io::Result<FrameReader> {
        stream.set_read_timeout(Some(tick))?;
        Ok(FrameReader { stream, bytes: Vec::new(), tick, silent: Duration::ZERO })
    }

    /// The next frame. `allowed` is asked at each tick for how long there may be none; `None` begins anew.
    pub fn next(&mut self, allowed: impl Fn() -> Option<Duration>) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            let began = Instant::now();
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Broken::Closed),
                Ok(n) => {
                    self.bytes.extend(&chunk[..n]);
                    self.silent = Duration::ZERO;
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    // A wait that took much longer than asked for: this process itself was stopped meanwhile, and
                    // has no right to call others silent.
                    self.silent += began.elapsed().min(2 * self.tick);
                    let Some(allowed) = allowed() else {
                        self.silent = Duration::ZERO;
                        continue;
                    };
                    if self.silent >= allowed {
                        return Err(Broken::Silent);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Closed),
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Frame>, Broken> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(Broken::Garbage);
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let (frame, left) = postcard::take_from_bytes(body).map_err(|_| Broken::Garbage)?;
        if !left.is_empty() {
            return Err(Broken::Garbage);
        }
        self.bytes.drain(..4 + length);
        Ok(Some(frame))
    }
}
