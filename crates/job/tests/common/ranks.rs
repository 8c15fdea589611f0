//! Processes that are ranks of one job.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::free_port;

/// The variable with what a process of a test does; unset in the test itself.
pub const ROLE: &str = "ANYSPLIT_TEST_ROLE";
/// The variable with the seconds of silence after which a rank counts as dead. Without it nobody that is held up does.
pub const PATIENCE: &str = "ANYSPLIT_TEST_PATIENCE_S";
/// Short enough to wait for.
pub const TIMEOUT: Duration = Duration::from_millis(1500);
/// How much later than the timeout everything has ended. The promise is 1 s, which the crate's own tests add up; the rest is for a machine
/// that is busy. It is less than those wait who need no timeout.
pub const SLACK: Duration = Duration::from_secs(20);

/// This test binary, and how it becomes a rank if the environment says so.
pub fn binary() -> Vec<String> {
    let file = std::env::current_exe().expect("this test's file");
    let file = file.to_str().expect("a name that is text").to_owned();
    let args = ["--exact", "a_process_that_no_launcher_started_is_no_job", "--nocapture"];
    std::iter::once(file).chain(args.map(String::from)).collect()
}

/// This test binary as a rank.
pub fn rank_command(rank: usize, size: usize, port: u16) -> Command {
    let words = binary();
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .envs(
            [("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_WORLD_SIZE", size)]
                .map(|(n, v)| (n, v.to_string())),
        )
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .stdin(Stdio::piped());
    command
}

/// The processes of a job, killed if the test fails.
pub struct Ranks {
    children: Vec<Child>,
    pulses: Vec<ChildStdin>,
    heard: Receiver<String>,
    errors: Vec<JoinHandle<String>>,
    readers: Vec<JoinHandle<()>>,
}

/// The line that the user reads: exactly one of all ranks' standard errors.
pub fn only_line(errors: &[String]) -> String {
    let lines: Vec<&str> = errors.iter().flat_map(|text| text.lines()).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0].to_owned()
}

/// How processes ended.
pub struct Ended {
    /// Exit statuses; `None` of those that a signal ended.
    pub codes: Vec<Option<i32>>,
    /// What they wrote to their standard errors.
    pub errors: Vec<String>,
}

impl Ranks {
    /// With more variables than a launcher's own.
    pub fn start(size: usize, role: &str, more: &[(&str, &str)]) -> Ranks {
        Ranks::start_each(size, role, |_| more.to_vec())
    }

    /// With variables for each rank.
    pub fn start_each<'a>(size: usize, role: &str, more: impl Fn(usize) -> Vec<(&'a str, &'a str)>) -> Ranks {
        let port = free_port();
        let command = |rank: usize| {
            let mut command = rank_command(rank, size, port);
            command.env(ROLE, role).envs(more(rank));
            command
        };
        Ranks::start_commands((0..size).map(command).collect())
    }

    /// Ranks, or launchers of them.
    pub fn start_commands(commands: Vec<Command>) -> Ranks {
        let start = |mut command: Command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("a process")
        };
        let mut children: Vec<Child> = commands.into_iter().map(start).collect();
        let (say, heard) = channel();
        let listen = |child: &mut Child| listen(child.stdout.take().expect("a pipe"), say.clone());
        let readers = children.iter_mut().map(listen).collect();
        let errors = children.iter_mut().map(|child| collect(child.stderr.take().expect("a pipe"))).collect();
        let pulses = children.iter_mut().map(|child| child.stdin.take().expect("a pipe")).collect();
        Ranks { children, pulses, heard, errors, readers }
    }

    /// Waits until every rank has said this.
    pub fn hear_all(&self, text: &str) {
        assert!(self.have_all_said(text), "all ranks say {text}");
    }

    /// The same; whether they have, or ended before.
    pub fn have_all_said(&self, text: &str) -> bool {
        let hear = || self.heard.recv_timeout(Duration::from_secs(60)).map(|heard| assert_eq!(heard, text));
        self.children.iter().all(|_| hear().is_ok())
    }

    pub fn pid(&self, rank: usize) -> u32 {
        self.children[rank].id()
    }

    pub fn signal(&mut self, rank: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.children[rank]), signal).expect("it is there");
    }

    /// A launcher's beat.
    pub fn pulse(&mut self) {
        use std::io::Write;
        self.pulses.iter_mut().for_each(|pulse| pulse.write_all(b".").expect("it listens"));
    }

    /// The launcher dies.
    pub fn stop_the_pulse(&mut self) {
        self.pulses.clear();
    }

    /// Waits for all.
    pub fn end(self) -> Ended {
        self.end_but(usize::MAX)
    }

    /// Waits for all but one, and kills that one.
    pub fn end_but(mut self, stopped: usize) -> Ended {
        let mut codes = vec![None; self.children.len()];
        for (rank, child) in self.children.iter_mut().enumerate().filter(|(rank, _)| *rank != stopped) {
            codes[rank] = child.wait().expect("it ends").code();
        }
        if let Some(child) = self.children.get_mut(stopped) {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
        self.readers.drain(..).for_each(|reader| reader.join().expect("no panic"));
        let errors = self.errors.drain(..).map(|reader| reader.join().expect("no panic")).collect();
        Ended { codes, errors }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }
}

/// Passes on what a rank says to the test. The test's runner prints too.
fn listen(out: ChildStdout, say: Sender<String>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if let Some(text) = line.strip_prefix('@') {
                let _ = say.send(text.to_owned());
            }
        }
    })
}

fn collect(mut errors: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).expect("text");
        text
    })
}
