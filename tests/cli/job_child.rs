//! A job under way: its processes, what they say, how they end, and that they leave nothing behind.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

/// Longer than any wait here takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(50);

/// What a busy machine may add to what was planned. Far less than [`LONG`].
const SLACK: Duration = Duration::from_secs(10);

/// A deadline for jobs whose end has to wait for none.
pub const LONG: Duration = Duration::from_secs(40);

/// The variable by which the processes of one job are known, and their children, wherever they end up.
const MARK: &str = "TEST_JOB";

/// A `launch`, or a rank that is started without one. What is left of it is killed if its test fails.
pub struct Running {
    child: Child,
    mark: String,
    /// Where it would put temporary files.
    temporary: TempDir,
    /// Lines of stderr as they come.
    lines: Receiver<String>,
    /// Pieces of stdout as they come.
    pieces: Receiver<Vec<u8>>,
    said: Vec<String>,
    printed: Vec<u8>,
}

/// How a job ended.
pub struct End {
    pub status: Option<i32>,
    pub stderr: Vec<String>,
    pub stdout: String,
    /// From the fault to the end of the last process.
    pub took: Duration,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}.{}.", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = tempfile::tempdir().expect("there is room for temporary files");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.env(MARK, &mark).env("TMPDIR", temporary.path()).spawn().expect("the job starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut stdout = child.stdout.take().expect("it is piped");
        let ((line, lines), (piece, pieces)) = (channel(), channel());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|said| line.send(said)));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if piece.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Running { child, mark, temporary, lines, pieces, said: Vec::new(), printed: Vec::new() }
    }

    /// Waits until something of this kind is said on stderr, and gives that line.
    #[track_caller]
    pub fn says(&mut self, part: &str) -> String {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(line) = self.said.iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(e) => panic!("nobody says {part:?} ({e}): {:?}", self.said),
            }
        }
    }

    /// Waits for the first text.
    #[track_caller]
    pub fn prints(&mut self) {
        match self.pieces.recv_timeout(LIMIT) {
            Ok(piece) => self.printed.extend(piece),
            Err(e) => panic!("rank 0 prints nothing ({e}): {:?}", self.lines.try_iter().collect::<Vec<_>>()),
        }
    }

    /// Waits until a rank's process has a property.
    #[track_caller]
    pub fn waits_for(&mut self, rank: usize, what: &str, has: impl Fn(u32) -> bool) -> u32 {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(pid) = rank_of_job(&self.mark, rank).filter(|&pid| has(pid)) {
                return pid;
            }
            let ended = self.child.try_wait().expect("the child can be asked");
            let said = || self.lines.try_iter().collect::<Vec<_>>();
            assert!(ended.is_none(), "it ended before rank {rank} {what}: {:?}", said());
            assert!(Instant::now() < until, "rank {rank} {what}: {:?}", said());
            std::thread::yield_now();
        }
    }

    /// Waits until the process that was started has a property.
    #[track_caller]
    pub fn waits_until(&mut self, what: &str, has: impl Fn(u32) -> bool) {
        let until = Instant::now() + LIMIT;
        while !has(self.child.id()) {
            let ended = self.child.try_wait().expect("the child can be asked");
            let said = || self.lines.try_iter().collect::<Vec<_>>();
            assert!(ended.is_none(), "it ended before it {what}: {:?}", said());
            assert!(Instant::now() < until, "it never {what}: {:?}", said());
            std::thread::yield_now();
        }
    }

    /// Waits until a rank's process holds so much memory.
    #[track_caller]
    pub fn holds(&mut self, rank: usize, bytes: u64) {
        self.waits_for(rank, "loads", |pid| rss_bytes(pid) >= bytes);
    }

    /// The process of a rank of this node, once it is there.
    #[track_caller]
    pub fn pid(&mut self, rank: usize) -> u32 {
        self.waits_for(rank, "starts", |_| true)
    }

    /// Sends a rank a signal and gives the time at which it did.
    #[track_caller]
    pub fn signal_rank(&mut self, rank: usize, signal: Signal) -> Instant {
        signal_process(self.pid(rank), signal)
    }

    /// The same to a process that the one that was started has started itself.
    #[track_caller]
    pub fn signal_child_of_first(&mut self, signal: Signal) -> Instant {
        let own = self.child.id();
        let child = processes_of_job(&self.mark).into_iter().find(|&pid| pid != own);
        signal_process(child.expect("it has a child"), signal)
    }

    /// The same to the process that was started: the launcher, if there is one.
    pub fn signal(&self, signal: Signal) -> Instant {
        signal_process(self.child.id(), signal)
    }

    /// Waits for the end of the process and of all that it has started, and looks for what they left behind.
    #[track_caller]
    pub fn ends(mut self, fault: Instant) -> End {
        assert!(
            wait_for_end(self.child.id()),
            "the job ends: {:?}",
            self.lines.try_iter().collect::<Vec<_>>()
        );
        let status = self.child.wait().expect("it has ended").code();
        while let Some(pid) = processes_of_job(&self.mark).first() {
            assert!(fault.elapsed() < LIMIT, "process {pid} is left behind");
            std::thread::yield_now();
        }
        let took = fault.elapsed();
        self.said.extend(self.lines.iter());
        self.printed.extend(self.pieces.iter().flatten());
        let files = |dir: &Path| match std::fs::read_dir(dir) {
            Ok(entries) => entries.map(|e| e.expect("an entry").file_name().display().to_string()).collect(),
            Err(_) => Vec::new(),
        };
        assert_eq!(files(self.temporary.path()), Vec::<String>::new(), "temporary files are left behind");
        let memory: Vec<String> = files(Path::new("/dev/shm"));
        assert!(
            !memory.iter().any(|name| name.contains("anysplit")),
            "shared memory is left behind: {memory:?}"
        );
        let stdout = String::from_utf8(std::mem::take(&mut self.printed)).expect("what was printed is whole");
        End { status, stderr: std::mem::take(&mut self.said), stdout, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in processes_of_job(&self.mark) {
            let _ = kill_process(pid_of(pid), Signal::KILL);
        }
    }
}

impl End {
    /// The one line that tells why.
    #[track_caller]
    pub fn line(&self) -> &str {
        let mut errors = self.stderr.iter().filter(|line| line.contains("error:"));
        match (errors.next(), errors.next()) {
            (Some(line), None) => line,
            _ => panic!("one line tells the cause: {:?}", self.stderr),
        }
    }

    /// Checks the end of a job that a rank was the cause of: in time, exit status 1, and one line that names the rank and its
    /// host.
    #[track_caller]
    pub fn names_rank(&self, rank: usize, timeout: Duration) -> &str {
        assert_eq!(self.status, Some(1), "{:?}", self.stderr);
        let line = self.line();
        assert!(line.starts_with(&format!("error: rank {rank} on ")), "rank {rank} is named: {line}");
        assert!(line.contains("(pid "), "{line}");
        self.is_in_time(timeout);
        line
    }

    /// The same, where the line also names what the rank was in.
    #[track_caller]
    pub fn names(&self, rank: usize, timeout: Duration) -> &str {
        let line = self.names_rank(rank, timeout);
        let has_place = line.contains(" number ") || line.contains(" before the first collective");
        assert!(has_place, "the operation is named: {line}");
        line
    }

    /// Checks that no process was left long after the deadline. What is planned takes less than two seconds of that, as
    /// `launch/watch.rs` checks; this machine may be busy.
    #[track_caller]
    pub fn is_in_time(&self, timeout: Duration) {
        assert!(self.took < timeout + SLACK, "{:?}: {:?}", self.took, self.stderr);
    }
}

/// Waits until a process has ended, though not for ever: whether it has. One that is not there any more has.
pub fn wait_for_end(pid: u32) -> bool {
    let Ok(process) = pidfd_open(pid_of(pid), PidfdFlags::empty()) else { return true };
    let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    let ready = retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)));
    ready.expect("a process can be polled") == 1
}

/// Whether whoever started this test ignores a signal (a shell that starts something in the background does with SIGINT),
/// and so all that the test starts. Says so, since then the signal can't be tested.
pub fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let is_ignored = bits >> (signal.as_raw() - 1) & 1 == 1;
    if is_ignored {
        eprintln!("skipped: {signal:?} is ignored here");
    }
    is_ignored
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).expect("a process id")
}

fn signal_process(pid: u32, signal: Signal) -> Instant {
    kill_process(pid_of(pid), signal).expect("the process is there");
    Instant::now()
}

/// All processes of a job that have not ended. One that is about to end has no environment any more.
fn processes_of_job(mark: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is there");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| variable(pid, MARK).is_some_and(|value| value == mark)).collect()
}

fn rank_of_job(mark: &str, rank: usize) -> Option<u32> {
    let is_rank = |&pid: &u32| variable(pid, "RANK").is_some_and(|value| value == rank.to_string());
    processes_of_job(mark).into_iter().find(is_rank)
}

/// A variable of a process's environment, as it was when it started.
fn variable(pid: u32, name: &str) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |entry: &[u8]| Some(entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec());
    environment.split(|&b| b == 0).find_map(value).and_then(|value| String::from_utf8(value).ok())
}

fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}
