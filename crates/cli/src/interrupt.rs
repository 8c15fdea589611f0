//! Ctrl-C and the like while a run is recorded: it ends before its next step, and what was recorded is written. A second
//! signal ends the process as it always does. Before there is anything to record, the first one ends it, with a line.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use signal_hook::{flag, low_level};

use crate::error::CliError;
use crate::launch::signals;

/// How long a rank that was asked to end gives rank 0 to collect what was recorded: less than the 8 s that `anysplit launch` waits
/// before it kills. (`mpirun` waits for one, unless it is told otherwise.)
const PATIENCE: Duration = Duration::from_secs(4);

/// Whether this process was asked to end. When it is dropped, signals end it at once again. There is one in a process.
pub struct Interrupt {
    /// Whether there is something to record.
    has_begun: Arc<AtomicBool>,
    /// The signal, once one has come.
    signal: Arc<AtomicUsize>,
    /// Whether the next one ends the process.
    is_last: Arc<AtomicBool>,
}

impl Interrupt {
    /// From here on a signal ends the process with a line that says that nothing was recorded.
    pub fn listen() -> io::Result<Self> {
        let interrupt =
            Interrupt { has_begun: Arc::default(), signal: Arc::default(), is_last: Arc::default() };
        // First of all: what has been noted is always told.
        let signals = signals::listen(signals::to_end())?;
        let has_begun = interrupt.has_begun.clone();
        let tell = move || signals.iter().for_each(|signal| end_without_a_trace(signal, &has_begun));
        std::thread::Builder::new().name("asked to end".into()).spawn(tell)?;
        for number in signals::to_end() {
            // They run in this order: the first signal finds the flag down.
            flag::register_conditional_default(number, interrupt.is_last.clone())?;
            flag::register_usize(number, interrupt.signal.clone(), number as usize)?;
            flag::register(number, interrupt.is_last.clone())?;
        }
        Ok(interrupt)
    }

    /// From here on the first signal is only noted.
    pub fn begin(&self) {
        self.has_begun.store(true, Relaxed);
    }

    /// Says whether a signal has come.
    pub fn asked(&self) -> impl Fn() -> bool + use<> {
        let signal = self.signal.clone();
        move || signal.load(Relaxed) != 0
    }

    /// What is told of a run that was asked to end.
    ///
    /// # Errors
    /// It was.
    pub fn check(&self) -> Result<(), CliError> {
        match self.signal.load(Relaxed) {
            0 => Ok(()),
            number => {
                let (line, status) = signals::ending(number as i32);
                Err(CliError::Job { line, status })
            }
        }
    }
}

#[cfg(test)]
impl Interrupt {
    /// One that no signal reaches.
    pub fn of_no_signals() -> Self {
        Interrupt { has_begun: Arc::default(), signal: Arc::default(), is_last: Arc::default() }
    }

    /// Does what a signal would.
    pub fn ask(&self, signal: i32) -> impl Fn() + use<> {
        let noted = self.signal.clone();
        move || noted.store(signal as usize, Relaxed)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.is_last.store(true, Relaxed);
    }
}

/// Unless there is something to record.
fn end_without_a_trace(signal: i32, has_begun: &AtomicBool) {
    if has_begun.load(Relaxed) {
        return;
    }
    let (line, status) = signals::ending(signal);
    // A progress bar may be there.
    let clear = if io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
    job::say!("{clear}error: {line}; nothing was recorded yet");
    std::process::exit(status.into());
}

/// For another rank of a job which rank 0 records.
pub fn leave_trace_to_rank_0() -> io::Result<()> {
    leave_to_rank_0(PATIENCE)
}

/// Launchers ask all ranks to end at once: from here on this one leaves it to rank 0 to end the run, so that it can still collect
/// what was recorded here, or finish what it serves. If that takes it longer than `patience`, or a second signal comes, the
/// process ends as it always does.
pub fn leave_to_rank_0(patience: Duration) -> io::Result<()> {
    let signals = signals::listen(signals::to_end())?;
    let wait = move || {
        let Ok(first) = signals.recv() else { return };
        let last = signals.recv_timeout(patience).unwrap_or(first);
        low_level::emulate_default_handler(last).expect("these signals have one");
    };
    std::thread::Builder::new().name("asked to end".into()).spawn(wait).map(drop)
}
