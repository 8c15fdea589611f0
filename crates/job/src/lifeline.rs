//! The launcher's pulse: a pipe into which it writes five times a second. A process whose launcher has died or was stopped ends,
//! so that none is left behind.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, getppid, kill_process};

use crate::JobError;
use crate::process::process_state;
use crate::report::inherited_pipe;

/// The variable with the number of the pipe.
pub const LIFE_FD: &str = "ANYSPLIT_LIFE_FD";

const TICK: Duration = Duration::from_millis(100);

/// Holds on to the launcher's pulse, if it gives one: from now on this process ends (exit status 1) at once when the
/// launcher ends, and after `timeout` without a pulse.
///
/// # Errors
/// The variable is no number of an open pipe.
pub fn hold_lifeline(lookup: &dyn Fn(&str) -> Option<String>, timeout: Duration) -> Result<(), JobError> {
    let Some(pipe) = inherited_pipe(lookup, LIFE_FD, OFlags::RDONLY)? else { return Ok(()) };
    let spawned = std::thread::Builder::new().name("job lifeline".into()).spawn(move || {
        let why = wait_for_the_end(&pipe, timeout);
        if why == End::Silent {
            kill_if_stopped(getppid());
        }
        std::process::exit(1);
    });
    spawned.map(drop).map_err(|e| JobError::system("cannot start a thread for the launcher's pulse", e))
}

/// Called by a process that holds on to the launcher's pulse and is done: waits while the launcher is stopped. It goes on,
/// or is ended with this process after the timeout; a stopped launcher without children would stay for ever.
pub fn wait_for_launcher(lookup: &dyn Fn(&str) -> Option<String>, timeout: Duration) {
    let until = Instant::now() + 2 * timeout;
    let is_launched = lookup(LIFE_FD).is_some_and(|value| !value.is_empty());
    while is_launched && getppid().is_some_and(is_stopped) && Instant::now() < until {
        std::thread::sleep(TICK);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    Silent,
}

fn wait_for_the_end(pipe: &OwnedFd, timeout: Duration) -> End {
    let tick = TICK.min(timeout / 10);
    let timespec = Timespec { tv_sec: 0, tv_nsec: i64::from(tick.subsec_nanos()) };
    let mut silent = Duration::ZERO;
    while silent < timeout {
        let began = Instant::now();
        let mut ready = [PollFd::new(pipe, PollFlags::IN)];
        let _ = poll(&mut ready, Some(&timespec));
        match rustix::io::read(pipe, &mut [0; 64]) {
            Ok(0) => return End::Closed,
            Ok(_) => silent = Duration::ZERO,
            // A far longer wait: this process was stopped too, with the launcher perhaps, and now both go on.
            Err(_) => silent += began.elapsed().min(tick + timeout / 4),
        }
    }
    End::Silent
}

/// A stopped launcher would keep its other children, and whoever waits for it.
fn kill_if_stopped(parent: Option<Pid>) {
    if let Some(parent) = parent.filter(|&parent| is_stopped(parent)) {
        let _ = kill_process(parent, Signal::KILL);
    }
}

fn is_stopped(process: Pid) -> bool {
    process_state(process.as_raw_nonzero().get() as u32) == Some('T')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn nonblocking(reader: std::io::PipeReader) -> OwnedFd {
        let fd: OwnedFd = reader.into();
        rustix::io::ioctl_fionbio(&fd, true).expect("set");
        fd
    }

    #[test]
    fn a_launcher_that_died_is_noticed_without_a_wait() {
        let (read, mut write) = std::io::pipe().expect("a pipe");
        write.write_all(b"..").expect("room");
        drop(write);
        assert_eq!(wait_for_the_end(&nonblocking(read), Duration::from_secs(3600)), End::Closed);
    }

    #[test]
    fn a_launcher_without_a_pulse_is_noticed() {
        let (read, mut write) = std::io::pipe().expect("a pipe");
        write.write_all(b"..").expect("room");
        assert_eq!(wait_for_the_end(&nonblocking(read), Duration::from_millis(50)), End::Silent);
        drop(write);
    }
}
