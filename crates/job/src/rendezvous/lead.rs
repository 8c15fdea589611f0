//! Rank 0 waits for the others.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use collective::Role;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::table::{Refusal, Table};
use super::{Link, Meeting, Party, data_listener, local_addr};
use crate::JobError;
use crate::auth::Credentials;
use crate::frame::{Frame, FrameReader, Seat};
use crate::line::Line;
use crate::watch::Pace;
use crate::watch::hub::{Event, Hub};

/// Connections that have not yet said who they are. More wait, or are given up by the system.
const MAX_UNKNOWN: usize = 128;
/// A known process says at once which rank it is.
const HELLO: Duration = Duration::from_secs(5);
/// Ranks that come just after the job was refused still get the line.
const LATECOMERS: Duration = Duration::from_secs(1);

pub(super) fn lead(party: &Party<'_>, hosts: &[IpAddr]) -> Result<Meeting, JobError> {
    let control = listen(party, hosts)?;
    let listener = data_listener(local_addr(&control)?.ip())?;
    let (events, heard) = channel();
    let has_begun = Arc::new(AtomicBool::new(false));
    let acceptor = Acceptor {
        credentials: party.credentials.clone(),
        until: party.until,
        pace: party.watch.pace,
        events: events.clone(),
        is_done: has_begun.clone(),
        unknown: Arc::default(),
    };
    spawn("job rendezvous", move || acceptor.run(&control))?;
    let mut gathering = Gathering {
        table: Table::new(party.hello(local_addr(&listener)?)),
        lines: vec![None; party.env.size],
        events: events.clone(),
        has_begun: has_begun.clone(),
        timeout: party.watch.pace.timeout,
    };
    let gathered = gathering.run(&heard, party.until, party.startup);
    if let Err((message, is_usage)) = &gathered {
        gathering.refuse(&heard, message, *is_usage);
    }
    has_begun.store(true, Ordering::Release);
    let seats = match gathered {
        Ok(seats) => seats,
        Err((message, is_usage)) => return Err(JobError::Refused { message, is_usage, is_echo: false }),
    };
    for line in gathering.lines.iter().flatten() {
        // A rank that is gone by now is found by its reader.
        let _ = line.send(&Frame::Welcome(seats.clone()));
    }
    let hub = Hub::start(party.watch.clone(), seats.clone(), gathering.lines, events, heard)?;
    Ok(Meeting { seats, link: Link::Hub(hub), listener })
}

/// Rank 0's listener: on the address that others were told, or on all where the host does not know that one (behind a
/// translation of addresses); without a secret on loopback only, as the caller has made sure.
fn listen(party: &Party<'_>, hosts: &[IpAddr]) -> Result<TcpListener, JobError> {
    let ports = &party.env.ports;
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut last = String::new();
    for port in ports.clone() {
        let own = hosts.iter().map(|&host| TcpListener::bind((host, port)));
        let mut taken = false;
        for listener in own {
            match listener {
                Ok(listener) => return Ok(listener),
                Err(e) => {
                    taken |= e.kind() != ErrorKind::AddrNotAvailable;
                    last = e.to_string();
                }
            }
        }
        if !taken && !party.credentials.is_open() {
            match TcpListener::bind((any, port)) {
                Ok(listener) => return Ok(listener),
                Err(e) => last = e.to_string(),
            }
        }
    }
    let at = match (ports.start(), ports.end()) {
        (first, last) if first == last => format!("{}:{first}", party.env.master),
        (first, last) => format!("{}:{first} to {last}", party.env.master),
    };
    Err(JobError::Port { at, message: last })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), JobError> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    spawned.map(drop).map_err(|e| JobError::system("cannot start a thread for the job's rendezvous", e))
}

/// Takes connections until the job has begun.
struct Acceptor {
    credentials: Credentials,
    until: Instant,
    pace: Pace,
    events: Sender<Event>,
    is_done: Arc<AtomicBool>,
    unknown: Arc<AtomicUsize>,
}

impl Acceptor {
    fn run(self, listener: &TcpListener) {
        let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        if listener.set_nonblocking(true).is_err() {
            return;
        }
        let this = Arc::new(self);
        while !this.is_done.load(Ordering::Acquire) {
            let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&tick));
            if this.unknown.load(Ordering::Acquire) >= MAX_UNKNOWN {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let Ok((stream, from)) = listener.accept() else { continue };
            this.unknown.fetch_add(1, Ordering::AcqRel);
            let look = this.clone();
            let spawned = spawn("job newcomer", move || {
                let event = look.look_at(stream, from);
                look.unknown.fetch_sub(1, Ordering::AcqRel);
                let _ = look.events.send(event);
            });
            if spawned.is_err() {
                this.unknown.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn look_at(&self, mut stream: TcpStream, from: SocketAddr) -> Event {
        let stranger = |why: String| Event::Stranger(format!("{} connected, but {why}", from.ip()));
        if let Err(e) = stream.set_nonblocking(false) {
            return stranger(e.to_string());
        }
        if let Err(why) = self.credentials.check(&mut stream, Role::Accepts, self.until + HELLO) {
            return stranger(why.to_string());
        }
        match Line::new(stream, self.pace.tick, self.pace.timeout) {
            Ok((line, mut reader)) => match reader.next(|| Some(HELLO)) {
                Ok(Frame::Hello(hello)) => Event::Came(Box::new(hello), line, reader),
                _ => stranger("it did not say who it is".into()),
            },
            Err(e) => stranger(e.to_string()),
        }
    }
}

/// Rank 0 and those who have come.
struct Gathering {
    table: Table,
    lines: Vec<Option<Line>>,
    events: Sender<Event>,
    has_begun: Arc<AtomicBool>,
    timeout: Duration,
}

impl Gathering {
    fn run(
        &mut self,
        heard: &Receiver<Event>,
        until: Instant,
        startup: Duration,
    ) -> Result<Vec<Seat>, Refusal> {
        loop {
            if let Some(seats) = self.table.seats() {
                return Ok(seats);
            }
            match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Came(hello, line, reader)) => match self.table.admit(*hello) {
                    Ok(rank) => {
                        self.lines[rank] = Some(line);
                        self.follow(rank, reader).map_err(|e| (e.to_string(), false))?;
                    }
                    Err(refusal) => {
                        let _ = line.send(&refusal_frame(&refusal.0, refusal.1));
                        line.finish();
                        return Err(refusal);
                    }
                },
                Ok(Event::Gone(rank, _) | Event::Frame(rank, _)) => return Err(self.table.left(rank)),
                Ok(Event::Stranger(text)) => self.table.note_stranger(text),
                Ok(Event::Leave(_)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(self.table.missing(startup.as_secs_f32()));
                }
            }
        }
    }

    /// Hears what a rank says from now on. Silence counts once the job has begun.
    fn follow(&self, rank: usize, mut reader: FrameReader) -> Result<(), JobError> {
        let (events, has_begun, timeout) = (self.events.clone(), self.has_begun.clone(), self.timeout);
        spawn("job listener", move || {
            let allowed = || has_begun.load(Ordering::Acquire).then_some(timeout);
            loop {
                match reader.next(allowed) {
                    Ok(frame) => {
                        if events.send(Event::Frame(rank, frame)).is_err() {
                            return;
                        }
                    }
                    Err(why) => {
                        let _ = events.send(Event::Gone(rank, why));
                        return;
                    }
                }
            }
        })
    }

    /// Tells the line to all who wait, and to those who still come.
    fn refuse(&mut self, heard: &Receiver<Event>, message: &str, is_usage: bool) {
        let refusal = refusal_frame(message, is_usage);
        let tell = |line: &Line| {
            let _ = line.send(&refusal);
            line.finish();
        };
        self.lines.iter().flatten().for_each(&tell);
        let mut waiting = self.lines.iter().skip(1).filter(|line| line.is_none()).count();
        let until = Instant::now() + LATECOMERS;
        while waiting > 0 {
            match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Came(_, line, _)) => {
                    tell(&line);
                    waiting -= 1;
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn refusal_frame(message: &str, is_usage: bool) -> Frame {
    Frame::Refusal { message: message.to_owned(), is_usage }
}
