//! How the processes of a job find each other: all come to rank 0, which looks them over and tells everyone who is who.

mod lead;
mod meet;
mod table;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use collective::Secret;

use crate::auth::Credentials;
use crate::env::{JobEnv, Launcher};
use crate::frame::{Hello, Seat};
use crate::host::Host;
use crate::watch::Watch;
use crate::watch::hub::Hub;
use crate::watch::member::Member;
use crate::{Fingerprint, JobError};

/// This process among the others.
pub(crate) struct Meeting {
    pub seats: Vec<Seat>,
    pub link: Link,
    /// Where other ranks connect to exchange data.
    pub listener: TcpListener,
}

/// This process's connection with the others.
pub(crate) enum Link {
    /// Rank 0 has one with each.
    Hub(Hub),
    /// The others have one with rank 0.
    Member(Member),
}

/// What both sides of a rendezvous need.
struct Party<'a> {
    env: &'a JobEnv,
    host: &'a Host,
    fingerprint: &'a Fingerprint,
    credentials: Credentials,
    until: Instant,
    startup: Duration,
    watch: Arc<Watch>,
}

/// Meets the other ranks.
///
/// # Errors
/// They are not all there in time, or are no job.
pub(crate) fn join(
    env: &JobEnv,
    host: &Host,
    fingerprint: &Fingerprint,
    secret: &Secret,
    startup: Duration,
    watch: Arc<Watch>,
) -> Result<Meeting, JobError> {
    let until = Instant::now() + startup;
    let hosts = master_addresses(env, until)?;
    if secret.is_none() && !hosts.iter().all(IpAddr::is_loopback) {
        return Err(JobError::NoSecret { master: env.master.clone() });
    }
    let credentials = Credentials::new(&env.job_key, secret.clone());
    let party = Party { env, host, fingerprint, credentials, until, startup, watch };
    if env.rank == 0 { lead::lead(&party, &hosts) } else { meet::meet(&party, &hosts) }
}

impl Party<'_> {
    fn hello(&self, data: SocketAddr) -> Hello {
        let seat = Seat {
            host: self.host.identity.clone(),
            host_name: self.host.name.clone(),
            pid: std::process::id(),
            cores: self.host.cores.clone(),
            data,
        };
        let fingerprint = self.fingerprint.clone();
        Hello { rank: self.env.rank as u32, size: self.env.size as u32, seat, fingerprint }
    }
}

/// A listener for data on any port of an address.
fn data_listener(ip: IpAddr) -> Result<TcpListener, JobError> {
    TcpListener::bind((ip, 0)).map_err(|e| JobError::system(format!("cannot listen on {ip}"), e))
}

fn local_addr(listener: &TcpListener) -> Result<SocketAddr, JobError> {
    listener.local_addr().map_err(|e| JobError::system("cannot find an own address", e))
}

/// The addresses of rank 0's host.
fn master_addresses(env: &JobEnv, until: Instant) -> Result<Vec<IpAddr>, JobError> {
    // Names of pods come into being with the pods.
    let may_come = matches!(env.launcher, Launcher::LeaderWorkerSet | Launcher::IndexedJob);
    let addresses = loop {
        match resolve(&env.master, until) {
            Ok(addresses) => break addresses,
            Err(_) if may_come && Instant::now() + Duration::from_secs(1) < until => {
                std::thread::sleep(Duration::from_millis(500));
            }
            Err(message) => return Err(JobError::Unresolved { host: env.master.clone(), message }),
        }
    };
    // Whatever this host is called: those who are all on it need no network.
    Ok(if env.is_local() { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { addresses })
}

/// The system's resolver has deadlines of its own, or none.
fn resolve(host: &str, until: Instant) -> Result<Vec<IpAddr>, String> {
    let (tell, told) = mpsc::channel();
    let name = host.trim_matches(['[', ']']).to_owned();
    let spawned = std::thread::Builder::new().name("job resolver".into()).spawn(move || {
        let found = (name.as_str(), 0).to_socket_addrs();
        let found = found.map(|all| all.map(|address| address.ip()).collect::<Vec<_>>());
        let _ = tell.send(found.map_err(|e| e.to_string()));
    });
    spawned.map_err(|e| e.to_string())?;
    let mut found = match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(found) => found?,
        Err(_) => return Err("the resolver does not answer".into()),
    };
    found.dedup();
    if found.is_empty() { Err("the name has no address".into()) } else { Ok(found) }
}
