//! One rank's process: its environment, its pipes, its process group.
//!
//! Two pipes besides the usual three, by number in the environment:
//! - `ANYSPLIT_LIFE_FD`: a byte five times a second; its end is the launcher's, and whoever reads it ends then, too. A launcher that was
//!   killed can't do more.
//! - `ANYSPLIT_REPORT_FD`: where the process notes from time to time, in a JSON line, which collective it is in, and writes,
//!   before it ends with an error, one that says whose error it is.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use command_fds::{CommandFdExt, FdMapping};
use job::process_state;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpgid,
};

use super::LaunchArgs;
use super::cause::{End, Heard, How};
use super::lines::{Following, Seen};
use super::terminal::Terminal;
use crate::error::CliError;

/// The numbers of the two pipes in the child; the first that are free.
const LIFE_FD: i32 = 3;
const REPORT_FD: i32 = 4;
/// Whether a process has ended, without taking note of it.
const ENDED: WaitIdOptions = WaitIdOptions::EXITED.union(WaitIdOptions::NOHANG).union(WaitIdOptions::NOWAIT);

/// What all processes of a job have in common.
pub struct Job {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    local_ranks: u32,
    first_rank: u64,
}

impl Job {
    /// The command and the environment that all ranks get.
    ///
    /// # Errors
    /// The path of this program is asked for and not known.
    pub fn new(args: &LaunchArgs) -> Result<Self, CliError> {
        let (word, arguments) = args
            .command
            .split_first()
            .ok_or_else(|| CliError::Usage("there is no command to start".into()))?;
        let itself = || {
            let path = std::env::current_exe().map(PathBuf::into_os_string);
            path.map_err(|e| CliError::failed(format!("cannot find this program's own file: {e}")))
        };
        let program = if word == "anysplit" { itself()? } else { word.clone() };
        let local_ranks = args.nproc_per_node;
        let mut environment = vec![
            ("WORLD_SIZE", (u64::from(local_ranks) * u64::from(args.nnodes)).to_string().into()),
            ("LOCAL_WORLD_SIZE", local_ranks.to_string().into()),
            ("GROUP_RANK", args.node_rank.to_string().into()),
            ("MASTER_ADDR", args.master_addr.clone().into()),
            ("MASTER_PORT", args.master_port.to_string().into()),
            ("ANYSPLIT_COMM_TIMEOUT", args.comm_timeout.to_string().into()),
            ("ANYSPLIT_SHUTDOWN_TIMEOUT", args.shutdown_timeout.to_string().into()),
            ("ANYSPLIT_LIFE_FD", LIFE_FD.to_string().into()),
            ("ANYSPLIT_REPORT_FD", REPORT_FD.to_string().into()),
        ];
        if args.nnodes == 1 {
            environment.push(("ANYSPLIT_JOB_ID", job_id().into()));
        }
        if let Some(file) = &args.group_secret_file {
            environment.push(("ANYSPLIT_GROUP_SECRET_FILE", file.clone().into()));
        }
        let first_rank = u64::from(args.node_rank) * u64::from(local_ranks);
        Ok(Job { program, arguments: arguments.to_vec(), environment, local_ranks, first_rank })
    }

    /// Starts all ranks of this host. If one can't be started, those that were are ended.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn start(&self, restart: u32) -> Result<Vec<Process>, CliError> {
        (0..self.local_ranks).map(|local_rank| self.start_one(local_rank, restart)).collect()
    }

    fn start_one(&self, local_rank: u32, restart: u32) -> Result<Process, CliError> {
        let rank = self.first_rank + u64::from(local_rank);
        let failed = |e: io::Error| CliError::failed(format!("cannot start rank {rank}: {e}"));
        let (life_reader, life) = io::pipe().map_err(failed)?;
        let (report, report_writer) = io::pipe().map_err(failed)?;
        // A child that doesn't read must not stop the launcher, nor a grandchild that keeps the report open.
        fcntl_setfl(&life, OFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        fcntl_setfl(&report, OFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        let terminal = if rank == 0 { Terminal::like_stderr().map_err(failed)? } else { None };
        let mut command = self.command(rank, local_rank, restart);
        let terminal = terminal.map(|Terminal { writer, reader }| {
            command.stderr(writer);
            reader
        });
        let pipes = vec![
            FdMapping { parent_fd: life_reader.into(), child_fd: LIFE_FD },
            FdMapping { parent_fd: report_writer.into(), child_fd: REPORT_FD },
        ];
        command.fd_mappings(pipes).map_err(|e| CliError::failed(format!("cannot start rank {rank}: {e}")))?;
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                CliError::Usage(format!("cannot start {:?}: {e}", self.program.display().to_string()))
            }
            _ => failed(e),
        })?;
        let stderr: Box<dyn Read + Send> = match (terminal, child.stderr.take()) {
            (Some(reader), _) => Box::new(reader),
            (None, Some(pipe)) => Box::new(pipe),
            (None, None) => unreachable!("stderr is piped"),
        };
        let group = Pid::from_child(&child);
        let mut process = Process {
            rank,
            child,
            group,
            life,
            report,
            heard: Heard::default(),
            stderr: None,
            stopped_since: None,
            sent: None,
            ended: None,
            gone: false,
        };
        let prefix = (rank != 0).then(|| format!("rank {rank}: "));
        process.stderr = Some(Following::start(stderr, prefix).map_err(failed)?);
        Ok(process)
    }

    fn command(&self, rank: u64, local_rank: u32, restart: u32) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", local_rank.to_string());
        command.env("TORCHELASTIC_RESTART_COUNT", restart.to_string());
        // Of a terminal a process group in the background can't read: the kernel would stop it.
        let reads = rank == 0 && !io::IsTerminal::is_terminal(&io::stdin());
        command.stdin(if reads { Stdio::inherit() } else { Stdio::null() });
        command.stdout(if rank == 0 { Stdio::inherit() } else { Stdio::null() });
        command.stderr(Stdio::piped()).process_group(0);
        command
    }
}

/// Tells this job's ranks from those of another launch that was given the same port at the same time.
fn job_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// A rank's process. It ends with its value, and so does what it started.
pub struct Process {
    /// The rank.
    pub rank: u64,
    child: Child,
    group: Pid,
    life: PipeWriter,
    report: PipeReader,
    heard: Heard,
    stderr: Option<Following>,
    stopped_since: Option<Instant>,
    /// How it will have ended, since a signal was sent.
    sent: Option<How>,
    ended: Option<(How, Instant)>,
    gone: bool,
}

impl Process {
    /// How it ended, if it has.
    pub fn ended(&self) -> Option<How> {
        self.ended.map(|(how, _)| how)
    }

    /// Looks whether it has ended; true if it had not when this was asked last.
    pub fn has_just_ended(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        // It stays unreaped until its group is gone, so that the group's number is no one else's.
        if let Ok(None) | Err(Errno::INTR) = waitid(WaitId::Pid(self.group), ENDED) {
            return false;
        }
        let _ = kill_process_group(self.group, Signal::KILL);
        let status = self.child.wait();
        let how = self.sent.unwrap_or_else(|| match status.map(|status| (status.code(), status.signal())) {
            Ok((Some(code), _)) => How::Exited(code),
            Ok((None, signal)) => How::Killed(signal.unwrap_or(0)),
            Err(_) => How::Exited(1),
        });
        self.ended = Some((how, Instant::now()));
        true
    }

    /// Whether it and all that it started have ended, and left no zombies.
    pub fn is_gone(&mut self) -> bool {
        // Orphans of the group are the launcher's children, so that they can be waited for.
        while self.ended.is_some() && !self.gone {
            match waitpgid(self.group, WaitOptions::NOHANG) {
                Ok(None) => break,
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Err(_) => self.gone = true,
            }
        }
        self.gone
    }

    /// Says to it that the launcher lives.
    pub fn beat(&mut self) {
        // A full pipe is of a child that doesn't read, a broken one of a child that has ended.
        let _ = self.life.write(&[1]);
    }

    /// Takes what it has written into its report pipe, so that there is room for more.
    pub fn listen(&mut self) {
        let mut buffer = [0; 4096];
        // One that writes without an end is not listened to without an end.
        for _ in 0..16 {
            match self.report.read(&mut buffer) {
                Ok(n @ 1..) => self.heard.take(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more, or nothing more yet.
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// For how long the process has been stopped (not merely waited), as far as was looked.
    pub fn stopped_since(&mut self) -> Option<Instant> {
        let is_stopped = self.ended.is_none() && process_state(self.child.id()) == Some('T');
        self.stopped_since = is_stopped.then(|| self.stopped_since.unwrap_or_else(Instant::now));
        self.stopped_since
    }

    /// Asks it, and what it started, to end.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM, How::Ended);
    }

    /// Kills it, and what it started. It has ended a little later.
    pub fn kill(&mut self, how: How) {
        self.signal(Signal::KILL, how);
    }

    fn signal(&mut self, signal: Signal, how: How) {
        // What has ended by itself, was not ended by the launcher.
        let has_ended = waitid(WaitId::Pid(self.group), ENDED).is_ok_and(|status| status.is_some());
        if self.ended.is_none() && !has_ended {
            let _ = kill_process_group(self.group, signal);
            self.sent.get_or_insert(how);
        }
    }

    /// When it ended, and all that is known of it.
    pub fn end(&mut self, deadline: Instant) -> (Option<Instant>, End, Seen) {
        let seen = self.stderr.as_ref().map(|stderr| stderr.finish(deadline)).unwrap_or_default();
        self.listen();
        let mut heard = std::mem::take(&mut self.heard);
        heard.end_line();
        let end = End {
            rank: self.rank,
            pid: self.child.id(),
            how: self.ended().unwrap_or(How::Ended),
            heard,
            last_line: seen.last.clone(),
        };
        (self.ended.map(|(_, at)| at), end, seen)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill(How::Ended);
    }
}
