//! `anysplit launch`: starts a command as several processes of one job, as torchrun does, and ends them together.
//!
//! | file | has |
//! |---|---|
//! | `mod.rs` | flags, and attempts with `--max-restarts` |
//! | `check.rs` | what is refused before anything starts |
//! | `process.rs` | one rank's process: environment, pipes, process group |
//! | `watch.rs` | the loop that sees ranks fail, stop and end |
//! | `lines.rs` | what a rank writes to stderr |
//! | `terminal.rs` | what rank 0 draws progress bars on |
//! | `cause.rs` | which rank was the cause, in one line |
//! | `signals.rs` | Ctrl-C and the like |

mod cause;
mod check;
mod lines;
mod process;
pub mod signals;
mod terminal;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use signal_hook::consts::SIGCHLD;

use crate::args::seconds;
use crate::error::CliError;
use process::Job;
use watch::{Ended, Patience, Watch};

/// More processes than this on one host are a slip of the finger.
const PROCESSES_MAX: i64 = 1024;
/// More hosts than this, too; and so the number of ranks stays far from overflowing.
const NODES_MAX: i64 = 65_536;

/// Starts a command as several processes of one job, on one host or on several.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    anysplit launch --nproc-per-node 2 -- anysplit score --text \"Call me Ishmael.\" --tp 2\n  \
    anysplit launch --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --group-secret-file secret \\\n    \
    --nproc-per-node 8 -- anysplit generate \"In the beginning\" --tp 8 --pp 2\n  \
    and on the other host the same with --node-rank 1\n\n\
    Each process has RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR and MASTER_PORT, as \
    torchrun's do. Rank 0's stdout is passed through, no other rank's is shown.")]
pub struct LaunchArgs {
    /// Processes on this host
    #[arg(long, env = "ANYSPLIT_NPROC_PER_NODE", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=PROCESSES_MAX))]
    nproc_per_node: u32,
    /// Hosts of the job; run this command once on each
    #[arg(long, env = "ANYSPLIT_NNODES", default_value_t = 1, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=NODES_MAX))]
    nnodes: u32,
    /// Which of the hosts this is, from 0
    #[arg(long, env = "ANYSPLIT_NODE_RANK", default_value_t = 0, value_name = "R")]
    node_rank: u32,
    /// Where rank 0 is: a name or an address of host 0 that the others reach
    #[arg(long, env = "ANYSPLIT_MASTER_ADDR", default_value = "127.0.0.1", value_name = "A")]
    master_addr: String,
    /// The port on which rank 0 gathers the others
    #[arg(long, env = "ANYSPLIT_MASTER_PORT", default_value_t = 29500, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    master_port: u16,
    /// How often all ranks are started again after a failure; one host only
    #[arg(long, env = "ANYSPLIT_MAX_RESTARTS", default_value_t = 0, value_name = "K")]
    max_restarts: u32,
    /// A file with the secret that the hosts share, which no one else can read; needed between hosts
    #[arg(long, env = "ANYSPLIT_GROUP_SECRET_FILE", value_name = "FILE")]
    group_secret_file: Option<PathBuf>,
    /// Seconds after which a rank that is stopped, or does not end when rank 0 has, is killed; also the command's
    /// --comm-timeout, unless it has its own
    #[arg(long, env = "ANYSPLIT_COMM_TIMEOUT", default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=crate::membership::COMM_TIMEOUT_MAX_S))]
    comm_timeout: u64,
    /// Seconds that ranks get to end when the job is asked to (SIGTERM, Ctrl-C), before they are killed; also the
    /// --shutdown-timeout of a server, unless it has its own, which is waited for where it is longer
    #[arg(long, env = "ANYSPLIT_SHUTDOWN_TIMEOUT", default_value = "5", value_name = "S", value_parser = seconds)]
    shutdown_timeout: f64,
    /// What to run; a first word `anysplit` is this very program
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The `--shutdown-timeout` that a command has itself, in seconds; 0 without.
fn own_timeout(command: &[OsString]) -> f64 {
    const FLAG: &str = "--shutdown-timeout";
    let words: Vec<&str> = command.iter().filter_map(|word| word.to_str()).collect();
    let value = |at: usize| match words[at].strip_prefix(FLAG)? {
        "" => words.get(at + 1).copied(),
        joined => joined.strip_prefix('='),
    };
    // What is no number is an error of the command.
    let own = (0..words.len()).rev().find_map(value).and_then(|value| seconds(value).ok());
    own.unwrap_or(0.0)
}

/// Runs the job until all its ranks on this host have ended.
pub fn run(args: &LaunchArgs) -> Result<(), CliError> {
    check::check(args)?;
    let job = Job::new(args)?;
    let signals = signals::listen(signals::to_end().chain([SIGCHLD]))
        .map_err(|e| CliError::failed(format!("cannot listen for signals: {e}")))?;
    // What ranks leave behind becomes the launcher's, which waits for it.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    for restart in 0.. {
        let processes = job.start(restart)?;
        if let (0, Some(warning)) = (restart, check::crowded(args.nproc_per_node)) {
            job::say!("warning: {warning}");
        }
        let patience = Patience {
            stopped: Duration::from_secs(args.comm_timeout),
            asked: Duration::from_secs_f64(args.shutdown_timeout.max(own_timeout(&args.command))),
        };
        match Watch::new(processes, &signals, patience).until_all_ended() {
            Ended::Well => return Ok(()),
            Ended::Interrupted(signal) => {
                let (line, status) = signals::ending(signal);
                return Err(CliError::Job { line, status });
            }
            // Wrong use does not mend itself.
            Ended::Failed { line, status } if status == 2 || restart == args.max_restarts => {
                return Err(CliError::Job { line, status });
            }
            Ended::Failed { line, .. } => {
                let left = format!("restart {} of {}", restart + 1, args.max_restarts);
                job::say!("warning: {line}; all ranks start again ({left})");
            }
        }
    }
    unreachable!("the last attempt returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_take_longer_to_end() {
        let of = |words: &[&str]| own_timeout(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of(&["anysplit", "serve", "--shutdown-timeout", "9"]), 9.0);
        assert_eq!(of(&["anysplit", "serve", "--shutdown-timeout=0.5", "--tp", "2"]), 0.5);
        assert_eq!(of(&["anysplit", "serve", "--shutdown-timeouts", "9"]), 0.0);
        assert_eq!(of(&["anysplit", "serve", "--shutdown-timeout", "soon"]), 0.0);
        assert_eq!(of(&["anysplit", "serve", "--shutdown-timeout"]), 0.0);
    }
}
