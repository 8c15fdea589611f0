//! Programs that are run for a limited time.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::table::Row;

/// Where programs run, and until when.
pub struct Place {
    /// The packed folder.
    pub folder: PathBuf,
    /// Programs that run longer are ended.
    pub deadline: Instant,
    /// What the part may take, for who asks why.
    pub limit: Duration,
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq)]
pub enum Missed {
    /// The time was over first.
    Late(String),
    Failed(String),
}

impl Missed {
    /// The row of a part of which there is none. What there was no time for is no failure.
    pub fn row(self, part: impl Into<String>) -> Row {
        match self {
            Missed::Late(why) => Row::skipped(part, why),
            Missed::Failed(why) => Row::failed(part, why),
        }
    }
}

impl From<String> for Missed {
    fn from(why: String) -> Self {
        Missed::Failed(why)
    }
}

impl From<Missed> for String {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Late(why) | Missed::Failed(why) => why,
        }
    }
}

/// Programs that were run, which number their logs.
static RUNS: AtomicUsize = AtomicUsize::new(0);

/// Small programs that run at a time.
const AT_ONCE: usize = 4;

/// How often it is looked whether a program has ended.
const LOOK: Duration = Duration::from_millis(20);

impl Place {
    /// Whether the part's time is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// A program of the folder, or of the system.
    pub fn command(&self, program: &str) -> Command {
        let own = self.folder.join(program);
        let mut command = Command::new(if own.is_file() { &own } else { Path::new(program) });
        command.current_dir(&self.folder);
        let libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let libraries = std::env::split_paths(&libraries).chain([self.folder.join("lib")]);
        if let Ok(libraries) = std::env::join_paths(libraries) {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Runs it: what it printed.
    ///
    /// # Errors
    /// It could not be started, took too long, or failed: its last line of errors.
    pub fn run(&self, command: &mut Command) -> Result<String, Missed> {
        self.start(command)?.ends(self)
    }

    /// Starts it, to be ended or waited for.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(&self, command: &mut Command) -> Result<Running, String> {
        let logs = self.folder.join("logs");
        fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
        let name = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let log = logs.join(format!("{number:03}-{name}"));
        let file = |kind: &str| {
            let path = log.with_added_extension(kind);
            File::create(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("err")?);
        // In a group of its own, so that all that it starts ends with it.
        let child = command.process_group(0).spawn().map_err(|error| format!("{name}: {error}"))?;
        Ok(Running { child, name, log, is_over: false })
    }

    /// The same of a program that prints JSON.
    ///
    /// # Errors
    /// See [`Place::run`]; or it is something else.
    pub fn json(&self, command: &mut Command) -> Result<Value, Missed> {
        let printed = self.run(command)?;
        serde_json::from_str(&printed).map_err(|error| {
            let begin: String = printed.chars().take(80).collect();
            format!("{}: {error} in {begin:?}", command.get_program().to_string_lossy()).into()
        })
    }

    /// What `work` makes of each item, in their order, by a few threads: most of the time of a small program is its start.
    pub fn each<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        let next = AtomicUsize::new(0);
        let take = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else { return done };
                done.push((at, work(item)));
            }
        };
        let mut all: Vec<(usize, R)> = thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(take)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("a thread that runs programs"))
                .collect()
        });
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, result)| result).collect()
    }

    /// The command line's program, with these words.
    pub fn anysplit(&self, words: &str) -> Command {
        let mut command = self.command("anysplit");
        command.args(words.split_whitespace());
        command
    }
}

/// A program that was started. What is left of it is ended with this.
pub struct Running {
    child: Child,
    name: String,
    /// Where it prints to, without the kind of it.
    log: PathBuf,
    is_over: bool,
}

impl Running {
    /// What it printed so far: `out`, or `err`.
    pub fn said(&self, kind: &str) -> String {
        let bytes = fs::read(self.log.with_added_extension(kind)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks it to end.
    pub fn ask_to_end(&self) {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().ok();
    }

    /// Waits until something can be read from what it says on its errors' stream.
    ///
    /// # Errors
    /// It ended before, or the time did.
    pub fn until<R>(&mut self, place: &Place, read: impl Fn(&str) -> Option<R>) -> Result<R, Missed> {
        loop {
            let has_ended = self.has_ended()?.is_some();
            if let Some(found) = read(&self.said("err")) {
                return Ok(found);
            }
            match (has_ended, place.is_over()) {
                (true, _) => {
                    let why = cause(&self.said("err"), &self.said("out"));
                    return Err(format!("{} ended{why}", self.name).into());
                }
                (false, true) => return Err(self.took_too_long(place)),
                (false, false) => thread::sleep(LOOK),
            }
        }
    }

    /// Waits for its end: what it printed.
    ///
    /// # Errors
    /// It took too long, or failed: its last line of errors.
    pub fn ends(mut self, place: &Place) -> Result<String, Missed> {
        let status = loop {
            match self.has_ended()? {
                Some(status) => break status,
                None if !place.is_over() => thread::sleep(LOOK),
                None => return Err(self.took_too_long(place)),
            }
        };
        match status.success() {
            true => Ok(self.said("out")),
            false => {
                let why = cause(&self.said("err"), &self.said("out"));
                Err(format!("{}: {status}{why}", self.name).into())
            }
        }
    }

    fn has_ended(&mut self) -> Result<Option<ExitStatus>, String> {
        let status = self.child.try_wait().map_err(|error| format!("{}: {error}", self.name))?;
        self.is_over |= status.is_some();
        Ok(status)
    }

    fn took_too_long(&mut self, place: &Place) -> Missed {
        self.kill();
        // What it was at is what it said last.
        let (name, last) = (&self.name, last_line(&self.said("err")));
        let limit = place.limit.as_secs_f64();
        Missed::Late(format!("{name} took longer than the {limit:.0} s of this part{last}"))
    }

    fn kill(&mut self) {
        let group = format!("-{}", self.child.id());
        let ended = Command::new("kill").args(["-KILL", "--", &group]).status();
        if !ended.is_ok_and(|status| status.success()) {
            self.child.kill().ok();
        }
        self.child.wait().ok();
        self.is_over = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.kill();
        }
    }
}

/// What `compute-sanitizer` begins its lines with, and what those of them have that say what it found.
const SANITIZER: &str = "=========";
const FINDINGS: [&str; 5] = ["Invalid ", "hazard", "Race reported", "Barrier error", NOT_SUPPORTED];
/// What `compute-sanitizer` says where it can't work.
pub const NOT_SUPPORTED: &str = "Device not supported";

/// The line that says why a program failed, if one does.
fn cause(errors: &str, output: &str) -> String {
    // What a fault leads to is told as an error too, on the other stream. A summary tells of hazards even if there are none.
    let finds = |line: &&str| {
        let is_one = line.starts_with(SANITIZER) && !line.contains("SUMMARY");
        is_one && FINDINGS.iter().any(|finding| line.contains(finding))
    };
    let says = |line: &&str| line.contains("error") || line.contains("panicked") || line.contains("ERROR");
    let found = errors.lines().find(finds).or_else(|| output.lines().find(finds));
    let line = found.or_else(|| errors.lines().find(says)).or_else(|| output.lines().find(says));
    line.map_or_else(|| last_line(errors), |line| format!(": {}", line.trim()))
}

/// What was said last, behind a colon.
fn last_line(text: &str) -> String {
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.map_or(String::new(), |line| format!(": {}", line.trim()))
}
