//! A launched job under way: its processes, what they say, and how they end.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than any wait here takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(50);

/// A `launch` under way. It is killed if its test fails.
pub struct Running {
    child: Child,
    /// Lines of stderr as they come.
    lines: Receiver<String>,
    /// Pieces of stdout as they come.
    pieces: Receiver<Vec<u8>>,
    said: Vec<String>,
    /// Processes of the job that were seen.
    ranks: Vec<(usize, u32)>,
}

/// How a job ended.
pub struct End {
    pub status: Option<i32>,
    pub stderr: Vec<String>,
    /// From the fault to the end.
    pub took: Duration,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the job starts");
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
        Running { child, lines, pieces, said: Vec::new(), ranks: Vec::new() }
    }

    /// Waits until something of this kind is said on stderr.
    pub fn says(&mut self, part: &str) {
        let until = Instant::now() + LIMIT;
        while !self.said.iter().any(|line| line.contains(part)) {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(e) => panic!("nobody says {part:?} ({e}): {:?}", self.said),
            }
        }
    }

    /// Waits for the first text.
    pub fn prints(&mut self) {
        self.pieces
            .recv_timeout(LIMIT)
            .unwrap_or_else(|e| panic!("rank 0 prints nothing ({e}): {:?}", self.said));
    }

    /// The process of each rank of this node, once all are there.
    pub fn ranks(&mut self, count: usize) -> Vec<(usize, u32)> {
        let until = Instant::now() + LIMIT;
        while self.ranks.len() < count {
            assert!(Instant::now() < until, "{count} ranks start");
            self.ranks = children(self.child.id());
            std::thread::yield_now();
        }
        self.ranks.clone()
    }

    /// Waits until a rank's process holds so much memory.
    pub fn holds(&mut self, rank: usize, ranks: usize, bytes: u64) {
        let pid = self.pid(rank, ranks);
        let until = Instant::now() + LIMIT;
        while rss_bytes(pid) < bytes {
            assert!(Instant::now() < until, "rank {rank} loads");
            std::thread::yield_now();
        }
    }

    pub fn pid(&mut self, rank: usize, ranks: usize) -> u32 {
        let all = self.ranks(ranks);
        all.iter().find(|(r, _)| *r == rank).unwrap_or_else(|| panic!("rank {rank} of {all:?}")).1
    }

    pub fn signal_rank(&mut self, rank: usize, ranks: usize, signal: Signal) {
        signal_process(self.pid(rank, ranks), signal);
    }

    pub fn signal(&self, signal: Signal) {
        signal_process(self.child.id(), signal);
    }

    /// Waits for the launcher's end, and that of all ranks that were seen.
    pub fn ends(mut self) -> End {
        let began = Instant::now();
        let status = loop {
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                break status;
            }
            assert!(began.elapsed() < LIMIT, "the job ends: {:?}", self.said);
        };
        let took = began.elapsed();
        self.said.extend(self.lines.iter());
        for (rank, pid) in &self.ranks {
            let until = Instant::now() + LIMIT;
            while is_alive(*pid) {
                assert!(Instant::now() < until, "rank {rank}, process {pid}, is left behind");
                std::thread::yield_now();
            }
        }
        End { status: status.code(), stderr: std::mem::take(&mut self.said), took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// Checks the one line of a failure that a rank caused.
    #[track_caller]
    pub fn names(&self, rank: usize) -> &str {
        assert_eq!(self.status, Some(1), "{:?}", self.stderr);
        let errors: Vec<&String> = self.stderr.iter().filter(|line| line.contains("error:")).collect();
        assert_eq!(errors.len(), 1, "one line tells the cause: {:?}", self.stderr);
        assert!(errors[0].contains(&format!("rank {rank}")), "rank {rank} is named: {}", errors[0]);
        errors[0]
    }
}

fn signal_process(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

/// The ranks among a process's children.
fn children(parent: u32) -> Vec<(usize, u32)> {
    let mut found: Vec<(usize, u32)> = std::fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| stat(pid).is_some_and(|(ppid, _)| ppid == parent))
        .filter_map(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let rank = environment.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(b"RANK="))?;
            Some((std::str::from_utf8(rank).ok()?.parse().ok()?, pid))
        })
        .collect();
    found.sort_unstable();
    found
}

/// Parent and state.
fn stat(pid: u32) -> Option<(u32, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists() && stat(pid).is_some_and(|(_, state)| state != 'Z')
}

fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}
