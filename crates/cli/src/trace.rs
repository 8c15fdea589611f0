//! `--trace FILE`: what each thread of each rank did when, in Chrome's trace format, which Perfetto opens.

mod format;

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{Engine, HostClock, RankTrace};

use crate::args::RunArgs;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::membership::Membership;
use crate::whole_file::{self, directory};

/// A file that is written when the run is over, whole or not at all; or none.
pub struct Trace<'a> {
    file: Option<PathBuf>,
    membership: &'a Membership,
    /// Until what is recorded has been.
    interrupt: Cell<Option<Interrupt>>,
    /// What this process did besides running the model.
    own: RefCell<Vec<(&'static str, Instant, Instant)>>,
    /// What is to be told of it when all else has been.
    warning: Cell<Option<String>>,
    /// Why it could not be written.
    failed: Cell<Option<CliError>>,
}

/// Why a trace ends before the run should have, and the ranks of which nothing could be had.
struct Incomplete {
    why: String,
    missing_ranks: Vec<usize>,
}

impl<'a> Trace<'a> {
    /// Rank 0 writes it, of all ranks. Whether it can is known before anything runs. From here on a signal that comes before
    /// there is anything to record ends the process with a line that says so.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn new(args: &RunArgs, membership: &'a Membership) -> Result<Self, CliError> {
        let file = args.trace.clone().filter(|_| membership.leads());
        if let Some(file) = &file {
            check(file).map_err(|why| CliError::Usage(of_file(file, &why)))?;
        }
        let listen = || {
            Interrupt::listen()
                .map_err(|e| CliError::failed(format!("--trace: cannot listen for signals: {e}")))
        };
        let interrupt = file.is_some().then(listen).transpose()?;
        Ok(Trace::of(file, membership, interrupt))
    }

    fn of(file: Option<PathBuf>, membership: &'a Membership, interrupt: Option<Interrupt>) -> Self {
        Trace {
            file,
            membership,
            interrupt: Cell::new(interrupt),
            own: RefCell::default(),
            warning: Cell::default(),
            failed: Cell::default(),
        }
    }

    /// Whether there will be one.
    pub fn is_wanted(&self) -> bool {
        self.file.is_some()
    }

    /// Does something that is no part of a step.
    pub fn host<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        if self.is_wanted() {
            self.own.borrow_mut().push((name, began, Instant::now()));
        }
        result
    }

    /// Has all ranks record some work, and writes the file. If the work fails or is interrupted, the file has what there is
    /// until then, and says so; if it turns out to be wrong use, there is none.
    ///
    /// # Errors
    /// The work's, and the news that it was interrupted.
    pub fn record<T>(
        &self,
        engine: &mut Engine,
        work: impl FnOnce(&mut Engine) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let (Some(file), Some(interrupt)) = (&self.file, self.interrupt.take()) else { return work(engine) };
        let began = Instant::now();
        interrupt.begin();
        engine.stop_when(interrupt.asked());
        engine.begin_trace()?;
        let done = work(engine);
        let ended = Instant::now();
        // Also if the job is over by now.
        let _hold = self.membership.hold();
        let done = done.and_then(|done| Ok((done, engine.take_trace()?)));
        // What failed because ranks were asked to end, is told as that.
        let (result, ranks) = match (done, interrupt.check()) {
            (Ok((done, ranks)), asked) => (asked.map(|()| done), ranks),
            (Err(error), Ok(())) if error.status() == 2 => return Err(error),
            (Err(error), asked) => (Err(asked.err().unwrap_or(error)), engine.take_trace_so_far()),
        };
        let is_missing = |rank: &usize| ranks.iter().all(|trace| trace.rank != *rank);
        let incomplete = result.as_ref().err().map(|why| Incomplete {
            why: why.to_string(),
            missing_ranks: (0..engine.plan().mesh.size()).filter(is_missing).collect(),
        });
        let (result, failed) = conclude(result, &interrupt, || {
            self.write(file, &ranks, incomplete.as_ref())?;
            self.warning.set(cut_short(&ranks, began, ended).map(|what| of_file(file, &what)));
            Ok(())
        });
        self.failed.set(failed);
        if result.is_err() {
            self.warn();
        }
        result
    }

    /// Warns of what the file has no room for, and says whether it could be written. The last that a command does.
    ///
    /// # Errors
    /// It could not; it is then as it was.
    pub fn end(&self) -> Result<(), CliError> {
        self.warn();
        self.failed.take().map_or(Ok(()), Err)
    }

    fn warn(&self) {
        if let Some(warning) = self.warning.take() {
            job::say!("warning: {warning}");
        }
    }

    fn write(
        &self,
        file: &Path,
        ranks: &[RankTrace],
        incomplete: Option<&Incomplete>,
    ) -> Result<(), CliError> {
        let written = whole_file::write(file, |whole| {
            let mut out = BufWriter::new(whole);
            format::write_json(&mut out, ranks, &self.own.borrow(), incomplete)?;
            out.flush()
        });
        written.map_err(|e| CliError::failed(of_file(file, &e)))
    }
}

fn of_file(file: &Path, what: &dyn Display) -> String {
    format!("--trace {}: {what}", file.display())
}

/// What is missing of a run because a rank had no room for it, from the first rank on that had none; `None` if nothing is.
fn cut_short(ranks: &[RankTrace], began: Instant, ended: Instant) -> Option<String> {
    let clock = HostClock::now();
    let own = |rank: &RankTrace| rank.threads.first().map_or(0, Vec::len) as u64;
    let last_ns = |rank: &RankTrace| {
        rank.threads.iter().flatten().map(|event| event.began_ns + event.took_ns as i64).max()
    };
    let until_ns =
        ranks.iter().filter(|rank| rank.dropped > 0).map(|rank| last_ns(rank).unwrap_or(0)).min()?;
    let dropped: u64 = ranks.iter().map(|rank| rank.dropped).sum();
    let all = dropped + ranks.iter().map(own).sum::<u64>();
    let s = |ns: i64| ns.max(0) as f64 / 1e9;
    let (has, of) = (s(until_ns - clock.ns(began)), s(clock.ns(ended) - clock.ns(began)));
    Some(format!(
        "there was no room for {dropped} of {all} events of the ranks' own threads; it has the first {has:.2} s of {of:.2} s; a \
         run of fewer tokens has room"
    ))
}

/// Writes what was recorded, and says how the run ended. A signal may come while it is written. If all went well but the writing,
/// that comes apart.
fn conclude<T>(
    result: Result<T, CliError>,
    interrupt: &Interrupt,
    write: impl FnOnce() -> Result<(), CliError>,
) -> (Result<T, CliError>, Option<CliError>) {
    let written = write();
    match (result.and_then(|done| interrupt.check().map(|()| done)), written) {
        (Err(error), Err(also)) => {
            let (line, status) = (format!("{error}; {also}"), error.status());
            (Err(CliError::Job { line, status }), None)
        }
        (result, written) => (result, written.err()),
    }
}

/// Why a file can't be written, if so. Leaves nothing behind.
fn check(file: &Path) -> Result<(), String> {
    match file.metadata() {
        Ok(found) if found.is_dir() => return Err("it is a directory; give a file".into()),
        Ok(found) if !found.is_file() => return Err("it is no regular file; give one, or a new name".into()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e.to_string()),
    }
    if file.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err("it ends as a directory does; give a file".into());
    }
    let to = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let directory = directory(&to);
    if !directory.is_dir() {
        return Err(format!("there is no directory {}", directory.display()));
    }
    // A file without a name: it is gone whatever becomes of this process.
    tempfile::tempfile_in(directory).map(drop).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use engine::{EngineOptions, TraceEvent};
    use job::Backend;
    use serde_json::{Value, json};
    use signal_hook::consts::SIGINT;
    use tensor::Category;

    use super::*;
    use crate::launch::signals;
    use crate::membership::JobArgs;
    use crate::model::demo_engine;

    /// What becomes of some work with the demo model that is recorded, and the file.
    fn recorded(work: impl Fn(&mut Engine, &dyn Fn()) -> Result<(), CliError>) -> (CliError, Value) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("trace.json");
        let interrupt = Interrupt::of_no_signals();
        let ask = interrupt.ask(SIGINT);
        let args = JobArgs {
            comm_timeout: 30,
            startup_timeout: None,
            group_secret_file: None,
            comm_backend: Backend::Auto,
        };
        let alone = Membership::find(&args).unwrap();
        let trace = Trace::of(Some(file.clone()), &alone, Some(interrupt));
        let (mut engine, _) = demo_engine(&EngineOptions::default()).unwrap();
        let error = trace.record(&mut engine, |engine| work(engine, &ask)).unwrap_err();
        trace.end().unwrap();
        (error, serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())
    }

    #[test]
    fn a_trace_says_that_its_run_was_asked_to_end_between_steps_or_in_its_last() {
        for more in [true, false] {
            let (error, trace) = recorded(|engine, ask| {
                engine.score(&[1, 2, 3])?;
                ask();
                if more {
                    engine.score(&[1, 2, 3])?;
                }
                Ok(())
            });
            assert_eq!((error.to_string(), error.status()), signals::ending(SIGINT));
            assert_eq!(trace["otherData"]["incomplete"], "ended by SIGINT");
            assert_eq!(trace["otherData"]["missing_ranks"], json!([]));
            let steps = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["name"] == "step");
            assert_eq!(steps.count(), 1);
        }
    }

    #[test]
    fn what_had_no_room_is_told_with_the_part_that_is_there() {
        let (began, ended) = (Instant::now(), Instant::now() + Duration::from_secs(8));
        let rank = |seconds: u64, dropped| {
            let event = TraceEvent {
                name: 0,
                category: Category::Compute,
                began_ns: HostClock::now().ns(began),
                took_ns: seconds * 1_000_000_000,
                flops: 0,
                bytes: 0,
                detail: None,
            };
            // Shares of further threads are not counted where they found no room, so they are not here.
            let threads = vec![vec![event], vec![event]];
            RankTrace {
                rank: 0,
                place: (0, 0, 0),
                host: String::new(),
                clock_error_ns: 0,
                threads,
                words: vec!["step".into()],
                dropped,
            }
        };
        assert_eq!(cut_short(&[rank(8, 0), rank(8, 0)], began, ended), None);
        let told = cut_short(&[rank(8, 0), rank(6, 1), rank(5, 4)], began, ended).unwrap();
        assert!(told.contains("5 of 8 events") && told.contains("the first 5.00 s of 8.00 s"), "{told}");
        assert!(told.contains("fewer tokens"), "{told}");
    }

    #[test]
    fn a_run_that_is_asked_to_end_while_its_trace_is_written_has_one_and_says_so() {
        let Some(signal) = signals::to_end().next() else {
            return job::say!("skipped: all signals are ignored here");
        };
        let interrupt = Interrupt::listen().unwrap();
        interrupt.begin();
        let (result, failed) = conclude(Ok(()), &interrupt, || {
            assert!(!interrupt.asked()());
            signal_hook::low_level::raise(signal).unwrap();
            Ok(())
        });
        let error = result.unwrap_err();
        assert_eq!((error.to_string(), error.status()), signals::ending(signal));
        assert!(interrupt.asked()() && failed.is_none());
    }
}
