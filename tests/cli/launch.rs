//! `anysplit launch`: what the processes get, and what the user sees of them. Any program can be launched, so these are
//! scripts.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::child::{Anysplit, anysplit, is_crowded};

/// Longer than any launch here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// What a launch left behind.
pub struct Told {
    pub status: Option<i32>,
    pub stdout: String,
    /// Without the warning of too few cores, which depends on the machine.
    pub stderr: Vec<String>,
}

/// A launch of a script, as often as the options say.
pub fn launch(options: &str, script: &str) -> Anysplit {
    anysplit("launch").args(options).arg("--").arg("sh").arg("-c").arg(script)
}

/// Runs a launch to its end.
pub fn told(launch: Anysplit) -> Told {
    told_with(launch, "")
}

fn told_with(launch: Anysplit, stdin: &'static str) -> Told {
    let mut command = assert_cmd::Command::from_std(launch.command());
    let output = command.write_stdin(stdin).timeout(LIMIT).output().expect("the launcher can be started");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("scripts print UTF-8");
    let stderr = text(output.stderr);
    let lines = stderr.lines().filter(|line| !is_crowded(line)).map(str::to_owned).collect();
    Told { status: output.status.code(), stdout: text(output.stdout), stderr: lines }
}

impl Told {
    /// Checks that the job failed with this status and one line, which is returned.
    #[track_caller]
    pub fn fails_with(self, status: i32) -> String {
        assert_eq!(self.status, Some(status), "{:?}", self.stderr);
        let [line] = &self.stderr[..] else { panic!("one line: {:?}", self.stderr) };
        line.strip_prefix("error: ").unwrap_or_else(|| panic!("no error: {line}")).to_owned()
    }

    #[track_caller]
    fn succeeds(mut self) -> (String, Vec<String>) {
        assert_eq!(self.status, Some(0), "{:?}", self.stderr);
        self.stderr.sort();
        (self.stdout, self.stderr)
    }
}

#[test]
fn every_rank_has_torchruns_variables_on_both_of_two_nodes() {
    let script = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $GROUP_RANK $MASTER_ADDR $MASTER_PORT \
                  $ANYSPLIT_COMM_TIMEOUT >&2";
    let node = |rank: u32| {
        let options =
            format!("--nproc-per-node 2 --nnodes 2 --node-rank {rank} --master-port 41000 --comm-timeout 7");
        told(launch(&options, script)).succeeds()
    };
    assert_eq!(node(0).1, ["0 0 4 2 0 127.0.0.1 41000 7", "rank 1: 1 1 4 2 0 127.0.0.1 41000 7"]);
    assert_eq!(node(1).1, ["rank 2: 2 0 4 2 1 127.0.0.1 41000 7", "rank 3: 3 1 4 2 1 127.0.0.1 41000 7"]);
    let defaults = told(launch("", script)).succeeds();
    assert_eq!(defaults.1, ["0 0 1 1 0 127.0.0.1 29500 30"]);
}

#[test]
fn twins_of_the_flags_are_heeded() {
    let launch = launch("", "echo $RANK of $WORLD_SIZE at $MASTER_ADDR >&2");
    let launch = launch.env("ANYSPLIT_NPROC_PER_NODE", "2").env("ANYSPLIT_NNODES", "3");
    let launch = launch.env("ANYSPLIT_NODE_RANK", "2").env("ANYSPLIT_MASTER_ADDR", "localhost");
    assert_eq!(told(launch).succeeds().1, ["rank 4: 4 of 6 at localhost", "rank 5: 5 of 6 at localhost"]);
}

#[test]
fn stdout_is_rank_0s_byte_for_byte() {
    let script = r"printf 'r%s\r\n\377\0 end' $RANK";
    let run = |options: &str| launch(options, script).command().stderr(Stdio::null()).output().unwrap();
    assert_eq!(run("--nproc-per-node 3").stdout, b"r0\r\n\xff\0 end");
    // Rank 0 is on the other host.
    assert_eq!(run("--nproc-per-node 2 --nnodes 2 --node-rank 1").stdout, b"");
}

#[test]
fn stdin_is_rank_0s() {
    let told = told_with(launch("--nproc-per-node 2", "echo \"$RANK: $(cat)\" >&2"), "a prompt");
    assert_eq!(told.succeeds().1, ["0: a prompt", "rank 1: 1: "]);
}

#[test]
fn anysplit_is_this_very_program() {
    let direct = anysplit("tp-plan --tp 2 --json").prints();
    let launched = anysplit("launch -- anysplit tp-plan --tp 2 --json").env("PATH", "");
    assert_eq!(told(launched).succeeds().0, direct);
    // torchrun's spelling, without dashes.
    assert_eq!(told(anysplit("launch anysplit tp-plan --tp 2 --json")).succeeds().0, direct);
}

#[test]
fn a_rank_that_exits_with_2_makes_it_2_and_any_other_failure_1() {
    let line = told(launch("--nproc-per-node 2", "exit $((RANK * 2))")).fails_with(2);
    assert!(line.starts_with("rank 1 on ") && line.ends_with(" exited with status 2"), "{line}");
    let line = told(launch("--nproc-per-node 2", "echo oops >&2; exit $((3 - 3 * RANK))"));
    assert_eq!(line.status, Some(1));
    let line = told(launch("", "exit 77")).fails_with(1);
    assert!(line.starts_with("rank 0 on ") && line.ends_with(" exited with status 77"), "{line}");
}

#[test]
fn wrong_use_of_the_command_is_told_once_however_many_ranks_say_it() {
    let line = told(anysplit("launch --nproc-per-node 3 -- anysplit score --text x --beams 4")).fails_with(2);
    assert!(line.contains("rank ") && line.contains("--beams"), "{line}");
    assert!(!line.contains("error"), "{line}");
}

#[test]
fn the_root_cause_is_told_and_its_echoes_are_not() {
    let script = r#"
        report() { echo "{\"rank\":$RANK,\"host\":\"h\",\"cause\":\"$1\",\"code\":1,\"message\":\"$2\"}" >&4; }
        case $RANK in
        1) report own "disk full"; echo "error: disk full" >&2; : > "$DONE";;
        *) until [ -e "$DONE" ]; do :; done; report other "rank 1 went away"; echo "error: rank 1 went away" >&2;;
        esac
        exit 1"#;
    let dir = tempfile::tempdir().unwrap();
    let run =
        |options: &str| told(launch(options, script).env("DONE", dir.path().join("done"))).fails_with(1);
    let line = run("--nproc-per-node 3");
    assert!(line.starts_with("rank 1 on ") && line.ends_with(": disk full"), "{line}");
    // On a host that only has echoes, one of them is what there is to tell.
    assert_eq!(run("--nproc-per-node 2 --nnodes 2 --node-rank 1"), "rank 1 went away");
}

#[test]
fn stderr_says_whose_it_is_and_errors_of_a_job_that_goes_well_are_shown_at_its_end() {
    let script =
        "[ $RANK = 0 ] && sync=0 || sync=1; echo \"error: none $sync\" >&2; printf 'table %s' $RANK >&2";
    let (_, stderr) = told(launch("--nproc-per-node 2", script)).succeeds();
    let text = stderr.join("|");
    assert!(text.contains("rank 1: table 1") && text.contains("rank 1: error: none 1"), "{text}");
    assert!(text.contains("table 0") && !text.contains("rank 0: "), "{text}");
    let (_, stderr) = told(launch("", "echo 'error: first' >&2; echo second >&2")).succeeds();
    assert_eq!(stderr, ["error: first", "second"]);
}

#[test]
fn a_job_is_started_again_as_often_as_max_restarts_says() {
    let script =
        "echo $RANK $TORCHELASTIC_RESTART_COUNT; echo why >&2; exit $((1 - TORCHELASTIC_RESTART_COUNT))";
    let told_twice = told(launch("--max-restarts 1", script));
    assert_eq!((told_twice.status, &*told_twice.stdout), (Some(0), "0 0\n0 1\n"));
    let warning = &told_twice.stderr[1];
    assert!(warning.starts_with("warning: rank 0 on ") && warning.contains("status 1: why"), "{warning}");
    assert!(warning.ends_with("all ranks start again (restart 1 of 1)"), "{warning}");

    let always = told(launch("--max-restarts 2", "echo x; exit 1"));
    assert_eq!((always.status, &*always.stdout), (Some(1), "x\nx\nx\n"));
    // Wrong use does not mend itself.
    let wrong = told(launch("--max-restarts 2", "echo x; exit 2"));
    assert_eq!((wrong.status, &*wrong.stdout), (Some(2), "x\n"));
}

#[test]
fn more_ranks_than_cores_work_and_are_warned_of_in_one_line() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let run = |ranks: usize| launch(&format!("--nproc-per-node {ranks}"), ":").command().output().unwrap();
    let output = run(cores + 1);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.lines().count() == 1 && is_crowded(&stderr), "{stderr}");
    assert_eq!(String::from_utf8(run(cores).stderr).unwrap(), "");
}

#[test]
fn rank_0_draws_on_a_terminal_where_the_launcher_has_one() {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).unwrap();
    unlockpt(&ours).unwrap();
    let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
    let size = Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&theirs, size).unwrap();
    let script = "if [ $RANK = 0 ]; then stty size <&2 >&2; printf 'half\\r\\033[2K' >&2; echo 'error: held' >&2; \
                  else [ -t 2 ] && echo terminal >&2; fi; exit 1";
    let mut command = launch("--nproc-per-node 2", script).command();
    let mut child = command.stderr(theirs).spawn().unwrap();
    drop(command);
    let mut shown = Vec::new();
    // The end of a terminal is an error.
    let end = std::fs::File::from(ours).read_to_end(&mut shown);
    assert!(end.is_err() && !child.wait().unwrap().success());
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("31 97\r\n") && shown.contains("half\r\u{1b}[2K"), "{shown:?}");
    assert!(!shown.contains("terminal") && shown.matches("error: ").count() == 1, "{shown:?}");
}
