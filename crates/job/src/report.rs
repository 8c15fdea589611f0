//! How a process says to its launcher, or to the user, why it ends: every rank ends with the same line, and the user
//! reads it once.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags};
use serde::Serialize;

use crate::JobError;
use crate::env::JobEnv;
use crate::frame::{Failure, Place, Verdict};
use crate::host::Host;

/// The variable with the number of the pipe that a launcher reads reports from.
pub const REPORT_FD: &str = "ANYSPLIT_REPORT_FD";

/// A report fits into what a pipe takes in one piece (4096 bytes), also where JSON writes a character as six.
const MAX_MESSAGE_CHARS: usize = 600;

/// Whose trouble it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// This process's.
    Own,
    /// Another rank's; this process only followed.
    Other,
}

/// How a process of a job ended, if not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ending {
    /// This process's rank.
    pub rank: usize,
    /// Its host's name.
    pub host: String,
    /// Whose trouble it was.
    pub cause: Cause,
    /// The exit status: 1 or 2.
    pub code: u8,
    /// One line that names the rank that was the cause.
    pub message: String,
    /// Whether this process is the one that prints it. None does under a launcher that reads reports.
    #[serde(skip)]
    pub is_printed: bool,
}

/// The pipe to the launcher: notes of where the process is, and at most one report of how it ends.
#[derive(Clone, Debug)]
pub struct Report(Arc<Pipe>);

#[derive(Debug)]
struct Pipe {
    file: File,
    is_used: AtomicBool,
}

impl Report {
    /// The pipe that the launcher left open, if it did.
    ///
    /// # Errors
    /// The variable is no number of an open pipe.
    pub fn open(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Report>, JobError> {
        let pipe = inherited_pipe(lookup, REPORT_FD, OFlags::WRONLY)?;
        Ok(pipe.map(|fd| Report(Arc::new(Pipe { file: fd.into(), is_used: AtomicBool::new(false) }))))
    }

    /// Notes where the process is. If it dies, that is the last that the launcher knows of it.
    pub(crate) fn note(&self, place: &Place) {
        let note = serde_json::json!({ "place": place.told() });
        let _ = (&self.0.file).write_all(format!("{note}\n").as_bytes());
    }

    /// Tells the launcher. A launcher that does not listen any more is none.
    pub fn send(&self, ending: &Ending) {
        if self.0.is_used.swap(true, Ordering::AcqRel) {
            return;
        }
        let message = ending.message.chars().take(MAX_MESSAGE_CHARS).collect();
        if let Ok(mut line) = serde_json::to_vec(&Ending { message, ..ending.clone() }) {
            line.push(b'\n');
            let _ = (&self.0.file).write_all(&line);
        }
    }
}

/// Opens a pipe anew that this process inherited. The new one is closed when another program is executed, and never
/// makes a writer wait.
pub(crate) fn inherited_pipe(
    lookup: &dyn Fn(&str) -> Option<String>,
    name: &str,
    access: OFlags,
) -> Result<Option<OwnedFd>, JobError> {
    let Some(value) = lookup(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let bad = |why: String| JobError::env(format!("{name} is {value:?}: {why}"));
    let number: u32 = value.parse().map_err(|_| bad("expected the number of an open pipe".into()))?;
    let path = format!("/proc/self/fd/{number}");
    let stat = rustix::fs::stat(&path).map_err(|e| bad(e.to_string()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(bad("it is open, but no pipe".into()));
    }
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(&path, flags, Mode::empty()).map(Some).map_err(|e| bad(e.to_string()))
}

impl Ending {
    /// A process that could not join.
    pub fn of_error(env: &JobEnv, error: &JobError, report: Option<&Report>) -> Ending {
        let cause = if error.is_echo() { Cause::Other } else { Cause::Own };
        // Rank 0 prints itself why it refused; of a rank 0 that is lost nobody else speaks.
        let is_repeated = matches!(error, JobError::Refused { is_echo: true, .. });
        Ending {
            rank: env.rank,
            host: Host::this(env.node).name,
            cause,
            code: if error.is_usage() { 2 } else { 1 },
            message: error.to_string(),
            is_printed: report.is_none() && !is_repeated,
        }
    }

    /// A rank's end by the verdict on the job.
    pub(crate) fn of_verdict(rank: usize, host: &str, verdict: &Verdict, report: Option<&Report>) -> Ending {
        let guilty = verdict.rank as usize;
        let cause = if guilty == rank { Cause::Own } else { Cause::Other };
        // The guilty rank speaks if it can, else the first of the others.
        let speaker = match (verdict.is_alive, guilty) {
            (true, guilty) => guilty,
            (false, 0) => 1,
            (false, _) => 0,
        };
        Ending {
            rank,
            host: host.to_owned(),
            cause,
            code: verdict.code,
            message: verdict.message.clone(),
            is_printed: report.is_none() && speaker == rank,
        }
    }

    /// A rank's end of which nobody else heard.
    pub(crate) fn of_failure(rank: usize, host: &str, failure: &Failure, report: Option<&Report>) -> Ending {
        Ending {
            rank,
            host: host.to_owned(),
            cause: if failure.is_echo { Cause::Other } else { Cause::Own },
            code: failure.code,
            message: format!("rank {rank} on {host}: {}", failure.message),
            is_printed: report.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    fn ending(message: &str) -> Ending {
        Ending {
            rank: 3,
            host: "host-b".into(),
            cause: Cause::Own,
            code: 2,
            message: message.into(),
            is_printed: false,
        }
    }

    #[test]
    fn the_launcher_reads_notes_and_one_report() {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        let number = write.as_raw_fd().to_string();
        let report = Report::open(&|name| (name == REPORT_FD).then(|| number.clone()));
        let report = report.expect("a pipe").expect("set");
        drop(write);
        report.note(&Place { op: "all_reduce".into(), sequence: 41 });
        report.send(&ending("out of \"memory\""));
        report.send(&ending("again"));
        drop(report);
        let mut text = String::new();
        read.read_to_string(&mut text).expect("text");
        let expected = r#"{"rank":3,"host":"host-b","cause":"own","code":2,"message":"out of \"memory\""}"#;
        assert_eq!(text, format!("{{\"place\":\"in all_reduce number 41\"}}\n{expected}\n"));
    }

    #[test]
    fn a_long_message_stays_one_piece_and_a_full_pipe_stops_nobody() {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        let number = write.as_raw_fd().to_string();
        let open = || Report::open(&|_| Some(number.clone())).expect("a pipe").expect("set");
        open().send(&ending(&"\u{1}".repeat(100_000)));
        let mut piece = [0; 8192];
        assert!(read.read(&mut piece).expect("a line") <= 4096);
        for _ in 0..100 {
            open().send(&ending(&"x".repeat(MAX_MESSAGE_CHARS)));
        }
    }

    #[test]
    fn what_is_no_pipe_is_refused_by_the_variables_name() {
        let file = std::fs::File::open("/dev/null").expect("a file");
        for value in ["x", "99999", &file.as_raw_fd().to_string()] {
            let error = Report::open(&|_| Some(value.to_owned())).expect_err(value).to_string();
            assert!(error.starts_with("ANYSPLIT_REPORT_FD is"), "{error}");
        }
        assert!(Report::open(&|_| None).expect("fine").is_none());
    }
}
