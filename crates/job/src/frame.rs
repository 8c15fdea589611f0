//! What processes of a job say to each other besides their data: frames of a length and at most a MiB.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::Cores;

/// Changes with every change of a frame.
pub const PROTOCOL: u16 = 2;

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
    /// The cores that it may use.
    pub cores: Cores,
    /// Where it takes connections for data.
    pub data: SocketAddr,
}

/// Where a rank is in its collectives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub op: String,
    pub sequence: u64,
}

impl Place {
    /// For people; `None` before the first collective.
    pub fn told(&self) -> Option<String> {
        (!self.op.is_empty()).then(|| format!("in {} number {}", self.op, self.sequence))
    }
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
                    let Some(allowed) = allowed() else {
                        self.silent = Duration::ZERO;
                        continue;
                    };
                    // A wait that took far longer than asked for: this process itself was stopped meanwhile, and has no
                    // right to call others silent. On a busy machine every wait takes somewhat longer.
                    self.silent += began.elapsed().min(self.tick + allowed / 4);
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, FrameReader) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let write = TcpStream::connect(listener.local_addr().expect("its address")).expect("connected");
        let read = listener.accept().expect("a connection").0;
        (write, FrameReader::new(read, Duration::from_millis(5)).expect("a reader"))
    }

    fn patient() -> Option<Duration> {
        Some(Duration::from_secs(60))
    }

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let frames = [
            Frame::Beat(Place { op: "all_reduce".into(), sequence: u64::MAX }),
            Frame::Post(7, 3, vec![1; 100_000]),
            Frame::Goodbye(Some(Failure::own("größer", 1))),
        ];
        let (write, mut reader) = pair();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                frames.iter().for_each(|frame| write_frame(&write, frame).expect("sent"));
                // The start of another, and the end.
                (&write).write_all(&[9, 0, 0, 0, 1]).expect("sent");
                write.shutdown(std::net::Shutdown::Both).expect("ended");
            });
            frames.iter().for_each(|frame| assert_eq!(reader.next(patient).as_ref(), Ok(frame)));
            assert_eq!(reader.next(patient), Err(Broken::Closed));
        });
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused_before_its_bytes_come() {
        let (mut write, mut reader) = pair();
        write.write_all(&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes()).expect("sent");
        assert_eq!(reader.next(patient), Err(Broken::Garbage));
        let (write, _reader) = pair();
        assert!(write_frame(&write, &Frame::Post(0, 0, vec![0; MAX_FRAME_BYTES])).is_err(), "nor is it sent");
    }

    #[test]
    fn any_bytes_are_a_frame_or_garbage_and_never_a_panic() {
        let mut random = 1_u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        };
        let mut garbage = 0;
        for case in 0..3000_usize {
            // A tag of a frame, then whatever.
            let body: Vec<u8> = (0..case % 40).map(|i| if i == 0 { next() % 8 } else { next() }).collect();
            let mut reader = pair_of_bytes(&body);
            garbage += usize::from(reader.next(|| Some(Duration::ZERO)) == Err(Broken::Garbage));
        }
        assert!(garbage > 1000, "{garbage}");
    }

    /// A reader that has got a body with its length, and will get no more.
    fn pair_of_bytes(body: &[u8]) -> FrameReader {
        let (_, mut reader) = pair();
        reader.bytes = (body.len() as u32).to_le_bytes().to_vec();
        reader.bytes.extend(body);
        reader
    }

    #[test]
    fn silence_is_noticed_and_only_while_it_counts() {
        let (_write, mut reader) = pair();
        let asked = std::cell::Cell::new(0);
        let allowed = || {
            asked.set(asked.get() + 1);
            (asked.get() > 10).then_some(Duration::from_millis(20))
        };
        assert_eq!(reader.next(allowed), Err(Broken::Silent));
        assert!(asked.get() > 11, "what was before it counted does not count: {}", asked.get());
    }
}
