//! Rank 0's part: it hears of every rank, decides why the job ends, and tells all.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use super::Watch;
use super::roll::Roll;
use crate::JobError;
use crate::frame::{Broken, Failure, Frame, FrameReader, Hello, Seat};
use crate::line::Line;

/// What rank 0 hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A rank's frame.
    Frame(usize, Frame),
    /// A rank's connection broke.
    Gone(usize, Broken),
    /// Rank 0 itself leaves.
    Leave(Option<Failure>),
    /// A process of this job has connected. Once the job has begun nobody does.
    Came(Box<Hello>, Line, FrameReader),
    /// Somebody else has connected.
    Stranger(String),
}

/// The thread that hears and tells.
pub(crate) struct Hub {
    events: Sender<Event>,
    lines: Arc<[Option<Line>]>,
    thread: JoinHandle<()>,
}

impl Hub {
    /// `lines` leads to every rank but rank 0; what their readers read comes through `heard`.
    pub fn start(
        watch: Arc<Watch>,
        seats: Vec<Seat>,
        lines: Vec<Option<Line>>,
        events: Sender<Event>,
        heard: Receiver<Event>,
    ) -> Result<Hub, JobError> {
        let lines: Arc<[Option<Line>]> = lines.into();
        let hub = Running { watch, roll: Roll::new(seats), lines: lines.clone(), is_told: false };
        let thread = std::thread::Builder::new().name("job hub".into());
        let thread = thread.spawn(move || hub.run(&heard));
        let thread = thread.map_err(|e| JobError::system("cannot start a thread to watch the job", e))?;
        Ok(Hub { events, lines, thread })
    }

    pub fn post(&self, about: u16, to: usize, bytes: Vec<u8>) -> std::io::Result<()> {
        match self.lines.get(to).and_then(Option::as_ref) {
            Some(line) => line.send(&Frame::Post(about, 0, bytes)),
            None => Ok(()),
        }
    }

    /// Says goodbye for rank 0, and stays until all have.
    pub fn leave(self, failure: Option<Failure>) {
        let _ = self.events.send(Event::Leave(failure));
        let _ = self.thread.join();
    }
}

struct Running {
    watch: Arc<Watch>,
    roll: Roll,
    lines: Arc<[Option<Line>]>,
    /// Whether the verdict has been sent.
    is_told: bool,
}

impl Running {
    fn run(mut self, heard: &Receiver<Event>) {
        let pace = self.watch.pace;
        let (mut next_beat, mut next_note) = (Instant::now(), Instant::now());
        let mut last_moment = None;
        loop {
            let now = Instant::now();
            if now >= next_beat {
                let place = self.watch.place();
                self.roll.beat(0, place.clone());
                self.tell(&Frame::Beat(place), |roll, rank| roll.is_here(rank));
                next_beat = now + pace.beat;
            }
            if now >= next_note {
                self.watch.place();
                next_note = now + pace.note;
            }
            self.tell_the_verdict(now);
            if self.is_told && !self.roll.is_here(0) {
                last_moment.get_or_insert(now + pace.linger);
            }
            if self.roll.all_left() || last_moment.is_some_and(|moment| now >= moment) {
                break;
            }
            let wake = [self.roll.waits_until(now), last_moment];
            let wake = wake.into_iter().flatten().fold(next_beat.min(next_note), Instant::min);
            match heard.recv_timeout(wake.saturating_duration_since(now)) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.tell_the_verdict(Instant::now() + pace.grace);
        self.tell(&Frame::Goodbye(None), |_, _| true);
        self.lines.iter().flatten().for_each(Line::finish);
        self.watch.end();
    }

    fn take(&mut self, event: Event) {
        let pace = self.watch.pace;
        let until = Instant::now() + pace.grace;
        match event {
            Event::Frame(rank, Frame::Beat(place)) => self.roll.beat(rank, place),
            Event::Frame(rank, Frame::Post(about, to, bytes)) => self.route(about, rank, to as usize, bytes),
            Event::Frame(rank, Frame::Goodbye(failure)) => {
                let stays = failure.is_some();
                self.roll.goodbye(rank, failure, until);
                // A rank that failed waits for the verdict.
                if !stays && let Some(line) = &self.lines[rank] {
                    let _ = line.send(&Frame::Goodbye(None));
                }
            }
            Event::Frame(rank, _) => self.roll.gone(rank, &Broken::Garbage, pace.timeout),
            Event::Gone(rank, why) => {
                self.roll.beat(0, self.watch.place());
                self.roll.gone(rank, &why, pace.timeout);
            }
            Event::Leave(failure) => self.roll.goodbye(0, failure, until),
            Event::Came(_, line, _) => line.close(),
            Event::Stranger(_) => {}
        }
    }

    fn route(&self, about: u16, from: usize, to: usize, bytes: Vec<u8>) {
        match self.lines.get(to) {
            Some(Some(line)) => {
                let _ = line.send(&Frame::Post(about, from as u32, bytes));
            }
            _ if to == 0 => self.watch.deliver(about, from as u32, bytes),
            _ => {}
        }
    }

    fn tell_the_verdict(&mut self, now: Instant) {
        let Some(verdict) = self.roll.verdict(now).filter(|_| !self.is_told).cloned() else { return };
        self.is_told = true;
        self.watch.condemn(verdict.clone());
        self.tell(&Frame::Verdict(verdict), |_, _| true);
    }

    fn tell(&self, frame: &Frame, whom: impl Fn(&Roll, usize) -> bool) {
        for (rank, line) in self.lines.iter().enumerate() {
            if let Some(line) = line.as_ref().filter(|_| whom(&self.roll, rank)) {
                let _ = line.send(frame);
            }
        }
    }
}
