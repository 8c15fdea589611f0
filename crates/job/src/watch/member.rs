//! Every other rank's part: it beats, and hears from rank 0 how the job is.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Watch;
use super::roll::lost;
use crate::JobError;
use crate::frame::{Broken, Failure, Frame, FrameReader, Place, Seat};
use crate::line::Line;

/// The threads that beat and listen.
pub(crate) struct Member {
    watch: Arc<Watch>,
    line: Line,
    threads: Vec<JoinHandle<()>>,
}

impl Member {
    /// `seat` is rank 0's.
    pub fn start(watch: Arc<Watch>, seat: Seat, line: Line, reader: FrameReader) -> Result<Member, JobError> {
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(work);
            thread.map_err(|e| JobError::system("cannot start a thread to watch the job", e))
        };
        let (listening, beating, to_hub) = (watch.clone(), watch.clone(), line.clone());
        let threads = vec![
            spawn("job listener", Box::new(move || listen(&listening, &seat, reader)))?,
            spawn("job beat", Box::new(move || beat(&beating, &to_hub)))?,
        ];
        Ok(Member { watch, line, threads })
    }

    pub fn post(&self, about: u16, to: usize, bytes: Vec<u8>) -> std::io::Result<()> {
        self.line.send(&Frame::Post(about, to as u32, bytes))
    }

    /// Says goodbye and waits until rank 0 has answered. That takes a moment, but for a failure of which another rank may
    /// be the cause, whose silence may have to be waited for.
    pub fn leave(self, failure: Option<Failure>) {
        let pace = self.watch.pace;
        if self.line.send(&Frame::Goodbye(failure)).is_ok() {
            self.watch.wait_for_end(pace.timeout + pace.grace + pace.linger);
        }
        self.watch.end();
        self.line.close();
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn beat(watch: &Watch, line: &Line) {
    let mut next_beat = Instant::now();
    loop {
        let place = watch.place();
        if Instant::now() >= next_beat {
            next_beat += watch.pace.beat;
            if line.send(&Frame::Beat(place)).is_err() {
                return;
            }
        }
        if watch.wait_for_end(watch.pace.beat.min(watch.pace.note)) {
            return;
        }
    }
}

fn listen(watch: &Watch, seat: &Seat, mut reader: FrameReader) {
    let timeout: Duration = watch.pace.timeout;
    let mut place = Place::default();
    let why = loop {
        match reader.next(|| Some(timeout)) {
            Ok(Frame::Beat(now)) => place = now,
            Ok(Frame::Post(about, from, bytes)) => watch.deliver(about, from, bytes),
            // After the verdict rank 0 may go at any time.
            Ok(Frame::Verdict(verdict)) => watch.condemn(verdict),
            Ok(Frame::Goodbye(_)) => break None,
            Ok(_) => break Some(Broken::Garbage),
            Err(why) => break Some(why),
        }
    };
    if let Some(why) = why {
        // The first verdict counts: one from rank 0 stays.
        watch.condemn(lost(0, seat, &why, timeout, &place, (watch.me, &watch.place())));
    }
    watch.end();
}
