//! What is refused before anything starts, and what is only warned of.

use std::net::IpAddr;
use std::num::NonZero;

use super::LaunchArgs;
use crate::error::CliError;
use crate::{secret, startup};

/// Checks what no single flag's parser can.
///
/// # Errors
/// Flags that contradict each other, or a secret that can't be used.
pub fn check(args: &LaunchArgs) -> Result<(), CliError> {
    let refuse = |text: String| Err(CliError::Usage(text));
    if args.node_rank >= args.nnodes {
        return refuse(format!(
            "--node-rank {} must be below --nnodes {}; hosts count from 0",
            args.node_rank, args.nnodes
        ));
    }
    if args.master_addr.is_empty() || args.master_addr.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return refuse(format!(
            "--master-addr {:?} is no host; give a name or an address such as 10.0.0.1",
            args.master_addr
        ));
    }
    if args.nnodes > 1 && args.max_restarts > 0 {
        return refuse(format!(
            "--max-restarts {} needs --nnodes 1: the launchers of several hosts do not restart together; let what starts them \
             (Kubernetes, Slurm, systemd) start all of them again",
            args.max_restarts
        ));
    }
    match &args.group_secret_file {
        Some(file) => secret::check(file),
        None if args.nnodes > 1 && !is_loopback(&args.master_addr) => refuse(format!(
            "--master-addr {} is another host's, so the hosts must share a secret: give each the same --group-secret-file \
             (head -c 32 /dev/urandom | base64 > secret; chmod 600 secret)",
            args.master_addr
        )),
        None => Ok(()),
    }
}

/// Told if this host has fewer cores than ranks.
pub fn crowded(ranks: u32) -> Option<String> {
    let (ranks, cores) = (ranks as usize, std::thread::available_parallelism().map_or(1, NonZero::get));
    (ranks > cores).then(|| startup::crowded(ranks, cores))
}

/// Whether the name or address can't be but this host. Names are not resolved: they may not be known yet.
fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_what_is_surely_this_host_is_loopback() {
        for host in ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "node-0", "0.0.0.0", "127.0.0.1.example.org", "::"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
