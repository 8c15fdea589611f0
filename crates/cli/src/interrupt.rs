//! Ctrl-C and the like while a run is recorded: it ends before its next step, and what was recorded is written. A second
//! signal ends the process as it always does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use signal_hook::flag;

use crate::error::CliError;
use crate::launch::signals;

/// Whether this process was asked to end. When it is dropped, signals end it at once again.
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// From here on the first signal is only noted.
    pub fn listen() -> io::Result<Self> {
        let (asked, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for number in signals::to_end() {
            // They run in this order: the first signal finds the flag down.
            flag::register_conditional_default(number, asked.clone())?;
            flag::register_usize(number, signal.clone(), number as usize)?;
            flag::register(number, asked.clone())?;
        }
        Ok(Interrupt { asked, signal })
    }

    /// Set by the first signal.
    pub fn asked(&self) -> Arc<AtomicBool> {
        self.asked.clone()
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

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.asked.store(true, Relaxed);
    }
}
