//! `anysplit launch`: ranks that die, stop or go on for ever, and launchers that are interrupted or killed. Nothing is
//! left behind.
//!
//! `tail -f /dev/null` never ends by itself. Waits are for events: a line, the end of a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::job_child::{is_ignored, wait_for_end};
use crate::launch::{launch, told};

/// Longer than any wait here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A launch that is under way. It is killed if its test fails.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(options: &str, script: &str) -> Self {
        Self::spawn(launch(options, script).command())
    }

    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Running { child, lines }
    }

    /// The next line of rank 0.
    fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("rank 0 prints a line in time")
    }

    /// The next lines, as process ids.
    fn pids(&self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.line().parse().expect("a process id")).collect()
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the launcher's end: its status and stderr.
    fn ends(mut self) -> (Option<i32>, String) {
        assert!(wait_for_end(self.child.id()), "the launcher ends");
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status.code(), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks that processes are gone: they have ended, and someone took note.
#[track_caller]
fn are_gone(pids: &[u32]) {
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left behind");
    }
}

#[test]
fn a_rank_killed_by_a_signal_is_named_with_it_and_the_others_end() {
    let script = "if [ $RANK = 1 ]; then echo 'layer 7' >&2; read go < $FIFO; kill -9 $$; fi; \
                  tail -f /dev/null & echo $$; echo $!; echo go > $FIFO; wait";
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = launch("--nproc-per-node 2", script).command();
    command.env("FIFO", &fifo);
    let running = Running::spawn(command);
    let pids = running.pids(2);
    let (status, stderr) = running.ends();
    assert_eq!(status, Some(1));
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let [line] = errors[..] else { panic!("one error: {stderr}") };
    assert!(line.starts_with("error: rank 1 on ") && line.contains("(pid "), "{line}");
    assert!(line.ends_with("was killed by SIGKILL; its last line: layer 7"), "{line}");
    are_gone(&pids);
}

#[test]
fn a_crash_counts_more_than_what_the_others_make_of_it() {
    let script =
        "if [ $RANK = 0 ]; then kill -SEGV $$; fi; echo '{\"message\":\"I lost rank 0\"}' >&4; exit 1";
    let line = told(launch("--nproc-per-node 2", script)).fails_with(1);
    assert!(line.starts_with("rank 0 on ") && line.contains("SIGSEGV"), "{line}");
}

#[test]
fn a_stopped_rank_is_killed_after_the_time_out_and_named() {
    let script = "if [ $RANK = 1 ]; then kill -STOP $$; fi; exec tail -f /dev/null";
    let line = told(launch("--nproc-per-node 2 --comm-timeout 1", script)).fails_with(1);
    assert!(line.starts_with("rank 1 on ") && line.contains("(pid "), "{line}");
    assert!(line.contains("was stopped for 1 s, and was killed"), "{line}");
}

#[test]
fn ranks_that_are_all_stopped_are_killed_too() {
    let line = told(launch("--nproc-per-node 2 --comm-timeout 1", "kill -STOP $$")).fails_with(1);
    assert!(line.contains("was stopped for 1 s"), "{line}");
}

#[test]
fn a_stopped_rank_is_the_cause_of_what_the_others_report() {
    // Rank 0 hears nothing of rank 1, whose life the launcher would have spared for longer.
    let script = "if [ $RANK = 1 ]; then echo $$ > $FILE; kill -STOP $$; fi; \
                  until grep -q '^State:.T' /proc/$(cat $FILE)/status; do :; done 2>/dev/null; \
                  echo '{\"cause\":\"other\",\"message\":\"rank 1 is silent\"}' >&4; exit 1";
    let dir = tempfile::tempdir().unwrap();
    let launch = launch("--nproc-per-node 2", script).env("FILE", dir.path().join("pid"));
    let line = told(launch).fails_with(1);
    assert!(line.starts_with("rank 1 on ") && line.contains("was stopped"), "{line}");
}

#[test]
fn a_rank_that_goes_on_after_rank_0_has_ended_is_killed_after_the_time_out_and_named() {
    let script = "if [ $RANK = 1 ]; then exec tail -f /dev/null; fi; echo done";
    let told = told(launch("--nproc-per-node 2 --comm-timeout 1", script));
    assert_eq!(told.stdout, "done\n");
    let line = told.fails_with(1);
    assert!(line.starts_with("rank 1 on ") && line.contains("had not ended 1 s after rank 0 had"), "{line}");
}

#[test]
fn a_rank_that_ignores_requests_to_end_is_killed_when_another_fails() {
    let script = "if [ $RANK = 1 ]; then read go < $FIFO; exit 5; fi; \
                  trap '' TERM; tail -f /dev/null & echo $$; echo $!; echo go > $FIFO; wait";
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = launch("--nproc-per-node 2", script).command();
    command.env("FIFO", &fifo);
    let running = Running::spawn(command);
    let pids = running.pids(2);
    let (status, stderr) = running.ends();
    assert_eq!(status, Some(1));
    assert!(stderr.contains("rank 1 on ") && stderr.contains("exited with status 5"), "{stderr}");
    are_gone(&pids);
}

#[test]
fn what_a_rank_started_ends_with_it() {
    let told = told(launch("", "tail -f /dev/null & echo $!"));
    assert_eq!(told.status, Some(0));
    are_gone(&[told.stdout.trim().parse().unwrap()]);
}

#[test]
fn signals_to_the_launcher_end_all_ranks() {
    for (signal, name, status) in
        [(Signal::INT, "SIGINT", 130), (Signal::TERM, "SIGTERM", 143), (Signal::HUP, "SIGHUP", 129)]
    {
        if is_ignored(signal) {
            continue;
        }
        let script = "trap 'echo bye; exit 9' TERM; tail -f /dev/null & echo $$; echo $!; wait";
        let running = Running::start("--nproc-per-node 2", script);
        let pids = running.pids(2);
        running.send(signal);
        assert_eq!(running.line(), "bye");
        let (ended, stderr) = running.ends();
        assert_eq!(ended, Some(status), "{stderr}");
        assert!(stderr.lines().last().unwrap() == format!("error: ended by {name}"), "{stderr}");
        are_gone(&pids);
    }
}

#[test]
fn a_second_signal_does_not_wait() {
    let script = "trap 'echo not yet' TERM; tail -f /dev/null & echo $$; wait; wait; tail -f /dev/null";
    let running = Running::start("", script);
    let pids = running.pids(1);
    running.send(Signal::TERM);
    assert_eq!(running.line(), "not yet");
    running.send(Signal::TERM);
    assert_eq!(running.ends().0, Some(143));
    are_gone(&pids);
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let launcher = launch("", "echo ready; read line; echo $line").command();
    let mut command = Command::new("sh");
    command.arg("-c").arg("trap '' HUP; exec \"$@\"").arg("nohup");
    command.arg(launcher.get_program()).args(launcher.get_args());
    let mut running = Running::spawn(command);
    assert_eq!(running.line(), "ready");
    running.send(Signal::HUP);
    running.child.stdin.take().unwrap().write_all(b"still here\n").unwrap();
    assert_eq!(running.line(), "still here");
    assert_eq!(running.ends().0, Some(0));
}

#[test]
fn the_life_pipe_tells_that_the_launcher_lives_and_then_that_it_does_not() {
    let script = "head -c 2 <&3 | wc -c; echo $$; cat <&3 >/dev/null";
    let mut running = Running::start("", script);
    // Two beats.
    assert_eq!(running.line().trim(), "2");
    let pids = running.pids(1);
    running.child.kill().unwrap();
    assert!(pids.iter().all(|pid| wait_for_end(*pid)), "the ranks end");
}
