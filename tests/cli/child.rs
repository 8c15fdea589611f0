//! Runs `anysplit` as a child and checks how it ends.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use crate::ports::free_port;
use crate::stand_ins;

/// A child that takes longer is killed, and fails its test.
const LIMIT: Duration = Duration::from_secs(60);
/// NVIDIA's driver shows the GPUs that this lists.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// Bad input is found before anything long begins.
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);

/// A command line.
pub struct Anysplit {
    command: Command,
    shown: String,
}

/// How a child ended.
pub struct Ended {
    shown: String,
    output: Output,
    took: Duration,
}

/// `anysplit` with arguments that are divided by spaces. Variables of the outer environment that it would heed are
/// not there, nor is any GPU of this machine.
pub fn anysplit(arguments: &str) -> Anysplit {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anysplit"));
    for (name, _) in std::env::vars_os() {
        if is_heeded(&name) {
            command.env_remove(name);
        }
    }
    command.env(VISIBLE, "");
    let this = Anysplit { command, shown: "anysplit".into() };
    this.args(arguments)
}

/// Whether the binary looks at an environment variable of that name.
fn is_heeded(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let prefixes = [
        "ANYSPLIT_",
        "HF_",
        "HUGGING",
        "OPENAI_",
        "COLUMNS",
        "XDG_CACHE_HOME",
        "NO_COLOR",
        "CLICOLOR",
        "RUST_",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "MASTER_",
        "GROUP_RANK",
        "OMPI_",
        "PMI",
        "MPI_LOCAL",
        "SLURM_",
        "LWS_",
        "JOB_COMPLETION",
        "TORCHELASTIC",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || name.to_ascii_lowercase().ends_with("_proxy")
}

impl Anysplit {
    /// More arguments, divided by spaces.
    pub fn args(self, arguments: &str) -> Self {
        arguments.split_whitespace().fold(self, Anysplit::arg)
    }

    /// One argument more, spaces and all.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.shown += &format!(" {:?}", argument.as_ref());
        self.command.arg(argument);
        self
    }

    /// `--model` and where it is.
    pub fn model(self, model: impl AsRef<Path>) -> Self {
        self.arg("--model").arg(model.as_ref())
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{name}={:?} {}", value.as_ref(), self.shown);
        self.command.env(name, value);
        self
    }

    /// Runs it with the libraries of this folder, of which NVIDIA's driver shows its GPUs.
    pub fn with_gpus_of(mut self, folder: &Path) -> Self {
        self.command.env_remove(VISIBLE);
        self.env("LD_LIBRARY_PATH", stand_ins::search_path(folder))
            .env("XDG_CACHE_HOME", folder.join("cache"))
    }

    /// Runs it in this directory.
    pub fn within(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it by way of another command, which gets it as arguments.
    pub fn by_way_of(self, mut other: Command) -> Self {
        other.arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => other.env(name, value),
                None => other.env_remove(name),
            };
        }
        Anysplit { command: other, shown: self.shown }
    }

    /// The command itself, for tests that want to hold its pipes. It has no time limit.
    pub fn command(self) -> Command {
        self.command
    }

    pub fn run(self) -> Ended {
        let started = Instant::now();
        let mut command = assert_cmd::Command::from_std(self.command);
        let output = command.timeout(LIMIT).output().expect("the child can be started");
        let took = started.elapsed();
        assert!(took < LIMIT, "{} did not end within {LIMIT:?}", self.shown);
        Ended { shown: self.shown, output, took }
    }

    /// Runs it to success and gives what it printed. Nothing is on stderr, but for the warning of too few cores.
    pub fn prints(self) -> String {
        let (stdout, stderr) = self.run().succeeds();
        assert_eq!(without_crowding(&stderr), "");
        stdout
    }

    /// Runs it to success and gives the one JSON value that it printed.
    pub fn json(self) -> Value {
        let shown = self.shown.clone();
        let stdout = self.prints();
        assert!(stdout.ends_with('\n'), "{shown}: {stdout:?}");
        serde_json::from_str(&stdout)
            .unwrap_or_else(|e| panic!("{shown} printed no JSON value: {e}\n{stdout}"))
    }

    /// Runs it to exit status 2, and to one line that has all these parts, which is returned.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) -> String {
        self.run().refused(parts)
    }
}

impl Ended {
    /// Whether it says that all went well.
    pub fn is_well(&self) -> bool {
        self.output.status.success()
    }

    /// stdout and stderr of a success.
    #[track_caller]
    pub fn succeeds(self) -> (String, String) {
        let (stdout, stderr) = (text(&self.output.stdout), text(&self.output.stderr));
        assert!(self.output.status.success(), "{}: {}\n{stderr}", self.shown, self.output.status);
        (stdout, stderr)
    }

    /// Checks the contract for wrong use and unusable input.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) -> String {
        let line = self.fails_with(2);
        for part in parts {
            assert!(line.contains(part), "{}\nsaid:       {line}\nshould say: {part}", self.shown);
        }
        assert!(self.took < REFUSAL_LIMIT, "{} took {:?} to say: {line}", self.shown, self.took);
        line
    }

    /// Checks the exit status and that the last line of stderr is the only error, which is returned without `error: `. What was told
    /// until then is warnings, and which ranks there are.
    #[track_caller]
    pub fn fails_after_all_with(&self, status: i32) -> String {
        let stderr = text(&self.output.stderr);
        let whole = format!("{}: {}\nstderr: {stderr:?}", self.shown, self.output.status);
        assert_eq!(self.output.status.code(), Some(status), "{whole}");
        let told = stderr.strip_suffix('\n').expect(&whole);
        let (before, last) = told.rsplit_once('\n').unwrap_or(("", told));
        let is_told = |line: &str| {
            let of_ranks =
                line.contains(" ranks: ") || line.starts_with("rank ") || line.starts_with("ranks ");
            let is_of_errors = line.contains("error: ") || line.contains("panicked");
            line.starts_with("warning: ") || (of_ranks && !is_of_errors)
        };
        assert!(before.lines().all(is_told), "{whole}");
        last.strip_prefix("error: ").expect(&whole).to_owned()
    }

    /// Checks the exit status and that stderr is one line, without `error: `. The warning of too few cores is none.
    #[track_caller]
    pub fn fails_with(&self, status: i32) -> String {
        let (stdout, stderr) = (text(&self.output.stdout), text(&self.output.stderr));
        let whole = format!("{}: {}\nstdout: {stdout:?}\nstderr: {stderr:?}", self.shown, self.output.status);
        assert_eq!(self.output.status.code(), Some(status), "{whole}");
        assert_eq!(stdout, "", "{whole}");
        let told = without_crowding(&stderr);
        let line = told.strip_suffix('\n').expect(&whole);
        assert!(!line.contains(|c: char| c.is_control()), "one line, without control characters: {whole}");
        assert!(!line.contains("panicked") && line.len() < 1500, "{whole}");
        let line = line.strip_prefix("error: ").expect(&whole);
        assert!(!line.starts_with("error"), "{whole}");
        line.to_owned()
    }
}

/// Whether a line warns of more ranks or threads than cores, which depends on the machine.
pub fn is_crowded(line: &str) -> bool {
    line.starts_with("warning: ") && line.contains(" share ") && line.contains(" of this host: ")
}

fn without_crowding(stderr: &str) -> String {
    stderr.split_inclusive('\n').filter(|line| !is_crowded(line)).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("what is printed is UTF-8")
}
