//! The loop that sees ranks fail, stop and end, and ends the others.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use job::Host;
use signal_hook::consts::SIGCHLD;

use super::cause::{self, How};
use super::process::Process;

/// How often the launcher looks for ranks that are stopped.
const LOOK: Duration = Duration::from_millis(250);
/// How often the launcher says that it lives.
const BEAT: Duration = Duration::from_millis(200);
/// For so long after a failure the other ranks may end by themselves, and say what they know.
const GRACE: Duration = Duration::from_secs(1);
/// So long after SIGTERM follows SIGKILL.
const TERM: Duration = Duration::from_millis(700);
/// When a rank has been stopped for too long, or has failed, all is over in less than this.
const OVER: Duration = Duration::from_secs(2);
const _: () = assert!(LOOK.as_millis() + GRACE.as_millis() + TERM.as_millis() < OVER.as_millis());
/// What a server needs beyond its own limit, for answers to reach their clients.
const FLUSH: Duration = Duration::from_secs(3);
/// For so long the kernel is given to end what was killed.
const KILLED: Duration = Duration::from_secs(5);
/// For so long the end of stderr is waited for when no process is left.
const STDERR: Duration = Duration::from_secs(1);

/// How the job ended.
pub enum Ended {
    /// All ranks with status 0.
    Well,
    /// By a signal to the launcher.
    Interrupted(i32),
    /// By a failure.
    Failed {
        /// The cause.
        line: String,
        /// The launcher's exit status.
        status: u8,
    },
}

/// What is being done.
#[derive(Clone, Copy)]
enum Phase {
    /// All is well.
    Running,
    /// A rank failed; the others may end by themselves until then.
    Grace(Instant),
    /// They were asked to; until then.
    Asked(Instant),
    /// They were killed; no one waits beyond that.
    Killed(Instant),
}

/// How long ranks may take.
#[derive(Clone, Copy)]
pub struct Patience {
    /// To go on after they were stopped, or to end when rank 0 has.
    pub stopped: Duration,
    /// To end when the job is asked to.
    pub asked: Duration,
}

/// The processes of this host and what is being done with them.
pub struct Watch<'a> {
    processes: Vec<Process>,
    signals: &'a Receiver<i32>,
    patience: Patience,
    phase: Phase,
    interrupted: Option<i32>,
    /// When rank 0 had ended, well.
    done: Option<Instant>,
}

impl<'a> Watch<'a> {
    pub fn new(processes: Vec<Process>, signals: &'a Receiver<i32>, patience: Patience) -> Self {
        Watch { processes, signals, patience, phase: Phase::Running, interrupted: None, done: None }
    }

    /// Waits for all, whatever that takes.
    pub fn until_all_ended(mut self) -> Ended {
        let mut next_beat = Instant::now();
        loop {
            if Instant::now() >= next_beat {
                self.processes.iter_mut().for_each(Process::beat);
                next_beat = Instant::now() + BEAT;
            }
            self.processes.iter_mut().for_each(Process::listen);
            self.look_for_ends();
            self.look_for_stops();
            self.look_for_stragglers();
            self.advance();
            // What the kernel doesn't let go even of SIGKILL, is not waited for.
            let given_up = matches!(self.phase, Phase::Killed(until) if Instant::now() >= until);
            if given_up || self.processes.iter_mut().all(Process::is_gone) {
                return self.outcome();
            }
            let wait = self.until_next(next_beat);
            match self.signals.recv_timeout(wait) {
                Ok(SIGCHLD) | Err(RecvTimeoutError::Timeout) => {}
                Ok(signal) => self.interrupt(signal),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the thread that listens never ends"),
            }
        }
    }

    fn until_next(&self, next_beat: Instant) -> Duration {
        let now = Instant::now();
        let next = match self.phase {
            Phase::Running => next_beat,
            Phase::Grace(until) | Phase::Asked(until) | Phase::Killed(until) => next_beat.min(until),
        };
        next.saturating_duration_since(now).min(LOOK)
    }

    fn look_for_ends(&mut self) {
        for process in &mut self.processes {
            if !process.has_just_ended() {
                continue;
            }
            match process.ended() {
                Some(How::Exited(0)) if process.rank == 0 => self.done = Some(Instant::now()),
                Some(How::Exited(0) | How::Ended) => {}
                _ => self.phase.fail(),
            }
        }
    }

    /// A stopped rank can't hear that others failed, so it is killed as soon as they have.
    fn look_for_stops(&mut self) {
        let is_running = matches!(self.phase, Phase::Running);
        for process in &mut self.processes {
            let Some(since) = process.stopped_since() else { continue };
            let too_long = since.elapsed() >= self.patience.stopped;
            if too_long || !is_running {
                process.kill(How::Stopped {
                    seconds: since.elapsed().as_secs_f64().round() as u64,
                    too_long: too_long && is_running,
                });
                self.phase.fail();
            }
        }
    }

    fn look_for_stragglers(&mut self) {
        if self.done.is_some_and(|done| done.elapsed() >= self.patience.stopped)
            && matches!(self.phase, Phase::Running)
        {
            let seconds = self.patience.stopped.as_secs();
            self.kill_all(How::Late(seconds));
        }
    }

    fn advance(&mut self) {
        match self.phase {
            Phase::Grace(until) if Instant::now() >= until => self.ask_all(TERM),
            Phase::Asked(until) if Instant::now() >= until => self.kill_all(How::Ended),
            _ => {}
        }
    }

    /// The first wish is passed on to the ranks, the second is not theirs to hear.
    fn interrupt(&mut self, signal: i32) {
        match self.phase {
            Phase::Running => {
                self.interrupted = Some(signal);
                self.ask_all(self.patience.asked + FLUSH);
            }
            // What failed before is what the user is told.
            Phase::Grace(_) => self.ask_all(TERM),
            Phase::Asked(_) | Phase::Killed(_) => self.kill_all(How::Ended),
        }
    }

    fn ask_all(&mut self, patience: Duration) {
        self.processes.iter_mut().for_each(Process::terminate);
        self.phase = Phase::Asked(Instant::now() + patience);
    }

    fn kill_all(&mut self, how: How) {
        self.processes.iter_mut().for_each(|process| process.kill(how));
        self.phase = Phase::Killed(Instant::now() + KILLED);
    }

    fn outcome(mut self) -> Ended {
        let deadline = Instant::now() + STDERR;
        let mut ends: Vec<_> = self.processes.iter_mut().map(|process| process.end(deadline)).collect();
        if let Some(signal) = self.interrupted {
            return Ended::Interrupted(signal);
        }
        ends.sort_by_key(|(at, ..)| *at);
        let all: Vec<_> = ends.iter().map(|(_, end, _)| end).collect();
        if let Some((line, status)) = cause::root(&all, &Host::this(None).name) {
            return Ended::Failed { line, status };
        }
        // Nothing failed, so what was held back is no echo.
        for (_, end, seen) in &ends {
            let prefix = if end.rank == 0 { String::new() } else { format!("rank {}: ", end.rank) };
            seen.errors.iter().for_each(|error| job::say!("{prefix}{error}"));
        }
        Ended::Well
    }
}

impl Phase {
    /// A rank failed.
    fn fail(&mut self) {
        if let Phase::Running = self {
            *self = Phase::Grace(Instant::now() + GRACE);
        }
    }
}
