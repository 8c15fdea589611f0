//! Runs the scripts of `deploy/` and of the pages with stand-ins for all programs, and catches the `anysplit` commands.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::child::anysplit;

/// Programs that do nothing here.
const IDLE: &[&str] = &[
    "apt-get",
    "cargo",
    "cmp",
    "curl",
    "docker",
    "install",
    "journalctl",
    "kubectl",
    "lscpu",
    "nvidia-smi",
    "python3",
    "sbatch",
    "scp",
    "sleep",
    "systemctl",
];
/// Programs that do what they do.
const REAL: &[&str] = &["base64", "head", "rm"];
/// Programs that start others. What is run elsewhere is run here; what launchers start is started once.
const STARTERS: &[(&str, &str)] = &[
    ("sudo", "exec \"$@\""),
    ("ssh", "shift; exec /bin/sh -c \"$*\""),
    ("mpirun", TO_ANYSPLIT),
    ("torchrun", TO_ANYSPLIT),
    (
        "srun",
        "while [ \"${1#-}\" != \"$1\" ]; do shift; done; \
         [ -z \"$ANYSPLIT_GROUP_SECRET_FILE\" ] || command -p stat -c %a \"$ANYSPLIT_GROUP_SECRET_FILE\" > mode; exec \"$@\"",
    ),
];
/// Skips a launcher's own arguments.
const TO_ANYSPLIT: &str = "while [ \"$1\" != anysplit ]; do shift; done; exec \"$@\"";
/// What ends the arguments of a call.
const END: &str = "\u{1}";

/// A directory in which scripts run.
pub struct Stage {
    dir: tempfile::TempDir,
    programs: PathBuf,
}

impl Stage {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let programs = dir.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let stage = Stage { dir, programs };
        // One write, since commands may run side by side.
        stage.program("anysplit", &format!("printf '%s\\0' \"$@\" '{END}' >> \"$CALLS\""));
        IDLE.iter().for_each(|name| stage.program(name, ":"));
        REAL.iter().for_each(|name| stage.program(name, &format!("command -p {name} \"$@\"")));
        STARTERS.iter().for_each(|(name, script)| stage.program(name, script));
        stage
    }

    fn program(&self, name: &str, script: &str) {
        let file = self.programs.join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a script to success and gives the arguments of every `anysplit` in it.
    pub fn calls(&self, shell: &str, script: &str, variables: &[(&str, &str)]) -> Vec<Vec<String>> {
        let calls = self.dir().join("calls");
        let mut command = Command::new(shell);
        command.args(["-euc", script]).current_dir(self.dir()).env_clear().envs(variables.iter().copied());
        command.env("PATH", &self.programs).env("CALLS", &calls).stdin(Stdio::null());
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{script}\n{stderr}");
        let text = fs::read_to_string(calls).expect("anysplit is called");
        let end = format!("{END}\0");
        text.split_terminator(&end)
            .map(|call| call.split_terminator('\0').map(str::to_owned).collect())
            .collect()
    }
}

/// Checks that the real binary knows all commands, flags and values of these command lines.
#[track_caller]
pub fn are_accepted(calls: &[Vec<String>]) {
    let refused: Vec<String> = calls.iter().filter_map(|call| refusal(call)).collect();
    assert!(refused.is_empty(), "\n{}", refused.join("\n"));
}

/// What the real binary says against a command line.
fn refusal(arguments: &[String]) -> Option<String> {
    // What is launched is a command line of its own.
    if let Some(at) = arguments.iter().position(|argument| argument == "--") {
        let (launch, launched) = (&arguments[..at], &arguments[at + 1..]);
        assert!(launch[0] == "launch" && launched[0] == "anysplit", "{arguments:?}");
        return refusal(launch).or_else(|| refusal(&launched[1..]));
    }
    assert!(!arguments.is_empty(), "anysplit alone does nothing");
    // The parser comes to --help if it has no objection to what is before it.
    let command = arguments.iter().fold(anysplit(""), |command, argument| command.arg(argument));
    let output = command.arg("--help").command().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("anysplit {}\n  {stderr}", arguments.join(" ")))
}

/// The value of a flag in a command line.
pub fn value<'a>(arguments: &'a [String], flag: &str) -> &'a str {
    let at = arguments.iter().position(|argument| argument == flag);
    &arguments[at.unwrap_or_else(|| panic!("{flag} in {arguments:?}")) + 1]
}

/// All `sh` blocks of a page, as one script.
pub fn blocks(page: &str) -> String {
    let pieces = page.split("```sh\n").skip(1);
    pieces.map(|piece| piece.split_once("```").expect("a block ends").0).collect()
}
