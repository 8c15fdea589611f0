//! `--trace FILE`: what each thread of each rank did when, in Chrome's trace format, which Perfetto opens.

use std::cell::{Cell, RefCell};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{Engine, HostClock, RankTrace, TraceEvent};
use serde_json::{Value, json};
use tensor::Category;

use crate::args::RunArgs;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::membership::Membership;
use crate::whole_file::{self, directory};

/// A file that is written when the run is over, whole or not at all; or none.
pub struct Trace<'a> {
    file: Option<PathBuf>,
    membership: &'a Membership,
    /// What this process did besides running the model.
    own: RefCell<Vec<(&'static str, Instant, Instant)>>,
    /// Why it could not be written.
    failed: Cell<Option<CliError>>,
}

/// Why a trace ends before the run should have, and the ranks of which nothing could be had.
struct Incomplete {
    why: String,
    missing_ranks: Vec<usize>,
}

impl<'a> Trace<'a> {
    /// Rank 0 writes it, of all ranks. Whether it can is known before anything runs.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn new(args: &RunArgs, membership: &'a Membership) -> Result<Self, CliError> {
        let file = args.trace.clone().filter(|_| membership.leads());
        if let Some(file) = &file {
            check(file).map_err(|why| CliError::Usage(format!("--trace {}: {why}", file.display())))?;
        }
        Ok(Trace { file, membership, own: RefCell::default(), failed: Cell::default() })
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
        let Some(file) = &self.file else { return work(engine) };
        let interrupt = Interrupt::listen()
            .map_err(|e| CliError::failed(format!("--trace: cannot listen for signals: {e}")))?;
        engine.stop_when(interrupt.asked());
        engine.begin_trace()?;
        let done = work(engine);
        // Also if the job is over by now.
        let _hold = self.membership.hold();
        let done = done.and_then(|done| Ok((done, engine.take_trace()?)));
        // What failed because ranks were asked to end, is told as that.
        let asked = interrupt.check();
        let (result, ranks, incomplete) = match (done, asked) {
            (Ok((done, ranks)), asked) => (asked.map(|()| done), ranks, None),
            (Err(error), Ok(())) if error.status() == 2 => return Err(error),
            (Err(error), asked) => {
                let error = asked.err().unwrap_or(error);
                let ranks = engine.take_trace_so_far();
                let is_missing = |rank: &usize| ranks.iter().all(|trace| trace.rank != *rank);
                let missing_ranks = (0..engine.plan().mesh.size()).filter(is_missing).collect();
                let incomplete = Incomplete { why: error.to_string(), missing_ranks };
                (Err(error), ranks, Some(incomplete))
            }
        };
        let (result, failed) = conclude(result, &interrupt, || self.write(file, &ranks, incomplete.as_ref()));
        self.failed.set(failed);
        result
    }

    /// Whether the file could be written.
    ///
    /// # Errors
    /// It could not; it is then as it was.
    pub fn end(&self) -> Result<(), CliError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn write(
        &self,
        file: &Path,
        ranks: &[RankTrace],
        incomplete: Option<&Incomplete>,
    ) -> Result<(), CliError> {
        let written = whole_file::write(file, |whole| {
            let mut out = BufWriter::new(whole);
            write_json(&mut out, ranks, &self.own.borrow(), incomplete)?;
            out.flush()
        });
        written.map_err(|e| CliError::failed(format!("--trace {}: {e}", file.display())))
    }
}

/// Writes what was recorded, and says how the run ended, in whose time to write a signal may come. If all went well but the
/// writing, that comes apart.
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

fn write_json(
    out: &mut impl Write,
    ranks: &[RankTrace],
    own: &[(&'static str, Instant, Instant)],
    incomplete: Option<&Incomplete>,
) -> io::Result<()> {
    let clock = HostClock::now();
    let began = ranks.iter().flat_map(|rank| &rank.threads).flatten().map(|event| event.began_ns);
    let origin = began.chain(own.iter().map(|&(_, began, _)| clock.ns(began))).min().unwrap_or(0);
    let mut lines = Lines { out, origin, is_first: true };
    write!(
        lines.out,
        "{{\"displayTimeUnit\":\"ms\",\"otherData\":{},\"traceEvents\":[",
        about(ranks, incomplete)
    )?;
    for rank in ranks {
        lines.names(rank)?;
        for (thread, events) in rank.threads.iter().enumerate() {
            events.iter().try_for_each(|event| lines.event(rank, thread, event))?;
        }
        lines.dropped(rank)?;
    }
    for &(name, began, ended) in own {
        let (began_ns, took_ns) = (clock.ns(began), (ended - began).as_nanos() as u64);
        let (name, pid) = (json!(name), ranks.first().map_or(0, |rank| rank.rank));
        lines.complete(&name, Category::Host, [began_ns, took_ns as i64], [pid, OWN_THREAD], &json!({}))?;
    }
    writeln!(lines.out, "\n]}}")
}

/// What a reader should know of the whole.
fn about(ranks: &[RankTrace], incomplete: Option<&Incomplete>) -> Value {
    let clock_error_us = ranks.iter().map(|rank| rank.clock_error_ns).max().unwrap_or(0) as f64 / 1e3;
    let mut about = json!({
        "made_by": concat!("anysplit ", env!("CARGO_PKG_VERSION")),
        "clock": match clock_error_us {
            0.0 => "one host, one clock".to_owned(),
            us => format!("clocks of hosts were compared when the trace began and when it ended, to within {us:.1} µs of that of rank 0"),
        },
        "dropped_events": ranks.iter().map(|rank| rank.dropped).sum::<u64>(),
    });
    if let Some(Incomplete { why, missing_ranks }) = incomplete {
        about["incomplete"] = json!(why);
        about["missing_ranks"] = json!(missing_ranks);
    }
    about
}

/// Events of the format, one per line.
struct Lines<'a, W> {
    out: &'a mut W,
    /// The moment 0, in nanoseconds.
    origin: i64,
    is_first: bool,
}

/// The number of a rank's own thread; the others follow. Not 0: Perfetto takes thread 0 of process 1 for its thread 1.
const OWN_THREAD: usize = 1;

/// Microseconds, to the nanosecond.
fn us(ns: i64) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}

impl<W: Write> Lines<'_, W> {
    fn begin(&mut self) -> io::Result<()> {
        let comma = if std::mem::take(&mut self.is_first) { "" } else { "," };
        writeln!(self.out, "{comma}")
    }

    fn about(&mut self, name: &str, [pid, tid]: [usize; 2], args: &Value) -> io::Result<()> {
        self.begin()?;
        write!(self.out, "{}", json!({ "name": name, "ph": "M", "pid": pid, "tid": tid, "args": args }))
    }

    fn names(&mut self, rank: &RankTrace) -> io::Result<()> {
        let (dp, pp, tp) = rank.place;
        let host = if rank.host.is_empty() { String::new() } else { format!(" on {}", rank.host) };
        let error = match rank.clock_error_ns {
            0 => String::new(),
            ns => format!(", times ± {:.1} µs", ns as f64 / 1e3),
        };
        let name = format!("rank {}{host} (replica {dp}, stage {pp}, tp {tp}{error})", rank.rank);
        self.about("process_name", [rank.rank, OWN_THREAD], &json!({ "name": name }))?;
        self.about("process_sort_index", [rank.rank, OWN_THREAD], &json!({ "sort_index": rank.rank }))?;
        for thread in 0..rank.threads.len() {
            let name = if thread == 0 { "rank".to_owned() } else { format!("cpu-{thread}") };
            let at = [rank.rank, OWN_THREAD + thread];
            self.about("thread_name", at, &json!({ "name": name }))?;
            self.about("thread_sort_index", at, &json!({ "sort_index": thread }))?;
        }
        Ok(())
    }

    fn event(&mut self, rank: &RankTrace, thread: usize, event: &TraceEvent) -> io::Result<()> {
        let word = |at: u32| &rank.words[at as usize];
        let mut args = serde_json::Map::new();
        let is_of_group = event.category == Category::Communication;
        if let Some(detail) = event.detail {
            args.insert(if is_of_group { "op" } else { "ops" }.into(), json!(word(detail)));
        }
        // A rank may have nothing to give. What further threads do is a part of what the rank's own does.
        let has_bytes = event.bytes > 0 || is_of_group && thread == 0;
        for (name, value) in
            [("bytes", has_bytes.then_some(event.bytes)), ("flops", (event.flops > 0).then_some(event.flops))]
        {
            if let Some(value) = value {
                args.insert(name.into(), value.into());
            }
        }
        let time = [event.began_ns, event.took_ns as i64];
        self.complete(
            &json!(word(event.name)),
            event.category,
            time,
            [rank.rank, OWN_THREAD + thread],
            &args.into(),
        )
    }

    fn complete(
        &mut self,
        name: &Value,
        category: Category,
        [began_ns, took_ns]: [i64; 2],
        [pid, tid]: [usize; 2],
        args: &Value,
    ) -> io::Result<()> {
        self.begin()?;
        let (cat, ts, dur) = (category.name(), us(began_ns - self.origin), us(took_ns));
        write!(
            self.out,
            "{{\"name\":{name},\"cat\":\"{cat}\",\"ph\":\"X\",\"ts\":{ts},\"dur\":{dur},\"pid\":{pid},\"tid\":{tid},\"args\":{args}}}"
        )
    }

    /// Says of a rank where its events end before the run did.
    fn dropped(&mut self, rank: &RankTrace) -> io::Result<()> {
        let last = rank.threads.iter().flatten().map(|event| event.began_ns + event.took_ns as i64).max();
        let Some(last) = last.filter(|_| rank.dropped > 0) else { return Ok(()) };
        self.begin()?;
        let name = json!(format!("no room for {} later events of rank {}", rank.dropped, rank.rank));
        let (ts, pid) = (us(last - self.origin), rank.rank);
        write!(
            self.out,
            "{{\"name\":{name},\"cat\":\"host\",\"ph\":\"i\",\"s\":\"p\",\"ts\":{ts},\"pid\":{pid},\"tid\":{OWN_THREAD}}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::signals;

    fn event(name: u32, began_ns: i64) -> TraceEvent {
        TraceEvent {
            name,
            category: Category::Compute,
            began_ns,
            took_ns: 1_001,
            flops: 6,
            bytes: 0,
            detail: Some(0),
        }
    }

    fn rank(threads: Vec<Vec<TraceEvent>>, dropped: u64) -> RankTrace {
        let words = ["a \"quoted\" word".to_owned(), "qkv".to_owned()].into();
        RankTrace {
            rank: 3,
            place: (0, 1, 1),
            host: "b".into(),
            clock_error_ns: 2_500,
            threads,
            words,
            dropped,
        }
    }

    fn written(ranks: &[RankTrace]) -> Value {
        let mut bytes = Vec::new();
        write_json(&mut bytes, ranks, &[], None).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn times_are_microseconds_to_the_nanosecond_from_the_first_event_on() {
        let trace = written(&[rank(vec![vec![event(1, 5_000_000_007)], vec![event(1, 5_000_002_010)]], 0)]);
        let events: Vec<&Value> =
            trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
        assert_eq!(
            *events[1],
            json!({
                "name": "qkv", "cat": "compute", "ph": "X", "ts": 2.003, "dur": 1.001, "pid": 3, "tid": 2,
                "args": { "ops": "a \"quoted\" word", "flops": 6 },
            })
        );
        assert_eq!(events[0]["ts"], 0.0);
    }

    #[test]
    fn what_had_no_room_and_how_exact_clocks_are_is_said() {
        let trace = written(&[rank(vec![vec![event(1, 0)]], 17)]);
        assert_eq!(trace["otherData"]["dropped_events"], 17);
        assert!(trace["otherData"]["clock"].as_str().unwrap().contains("2.5 µs"));
        let note = trace["traceEvents"].as_array().unwrap().iter().find(|e| e["ph"] == "i").unwrap();
        assert_eq!(note["name"], "no room for 17 later events of rank 3");
    }

    #[test]
    fn a_run_that_is_asked_to_end_while_its_trace_is_written_has_one_and_says_so() {
        let Some(signal) = signals::to_end().next() else {
            return eprintln!("skipped: all signals are ignored here");
        };
        let interrupt = Interrupt::listen().unwrap();
        let (result, failed) = conclude(Ok(()), &interrupt, || {
            assert!(!interrupt.asked()());
            signal_hook::low_level::raise(signal).unwrap();
            Ok(())
        });
        let error = result.unwrap_err();
        assert_eq!((error.to_string(), error.status()), signals::ending(signal));
        assert!(interrupt.asked()() && failed.is_none());
    }

    #[test]
    fn a_trace_of_nothing_is_a_trace() {
        assert_eq!(written(&[])["traceEvents"], json!([]));
    }
}
