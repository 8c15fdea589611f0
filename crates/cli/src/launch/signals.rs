//! Signals that ask a process to end, and signals as messages.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

/// Signals that ask this process to end. What was ignored when it started stays ignored: that is what nohup is for.
pub fn to_end() -> impl Iterator<Item = i32> {
    let ignored = ignored();
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(move |signal| ignored >> (signal - 1) & 1 == 0)
}

/// Every one of some signals, from now on. They do nothing else any more.
pub fn listen(signals: impl Iterator<Item = i32>) -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new(signals)?;
    let (sender, receiver) = channel();
    let forward = move || signals.forever().try_for_each(|signal| sender.send(signal));
    std::thread::Builder::new().name("signals".into()).spawn(forward)?;
    Ok(receiver)
}

/// From here on this process doesn't end when it is asked to: another one says when it does. Programs that it starts are as they
/// would be without.
pub fn leave_the_end_to_another() -> io::Result<()> {
    to_end().try_for_each(|signal| signal_hook::flag::register(signal, Arc::default()).map(drop))
}

/// A file that would exceed the limit of `ulimit -f` makes its write fail, and doesn't end this process. Programs that it starts
/// are as they would be without.
pub fn fail_at_file_limits() {
    // If the system won't have it, such a write ends the process, as by default.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// One bit for each signal, as the kernel tells it.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// What is told of who was asked to end, and its exit status, as shells have it.
pub fn ending(signal: i32) -> (String, u8) {
    (format!("ended by {}", name(signal)), u8::try_from(128 + signal).unwrap_or(1))
}

/// The signal's name.
pub fn name(signal: i32) -> String {
    signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}
