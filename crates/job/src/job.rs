//! A process's membership in its job.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use collective::{Group, Secret, TcpConfig, TcpMesh};

use crate::env::JobEnv;
use crate::frame::{Failure, Seat};
use crate::group::{Backend, JobGroup, Maker, Mpi, spin};
use crate::host::{Host, number_hosts, side_by_side, together};
use crate::rendezvous::{self, Link};
use crate::report::{Ending, Report};
use crate::watch::{Hold, Watch};
use crate::{Fingerprint, JobError};

/// After another rank has ended the job, a process that has asked for more time gets this much.
const HELD: Duration = Duration::from_secs(10);

/// How a job is joined.
#[derive(Clone, Debug)]
pub struct JobOptions {
    /// What keeps others out; needed unless all is on loopback.
    pub secret: Secret,
    /// A rank that is silent for so long is dead.
    pub comm_timeout: Duration,
    /// All ranks must have come within this time.
    pub startup_timeout: Duration,
    /// When another rank has ended the job, the process gets this long to end in order; then it exits.
    /// `None` leaves it to itself.
    pub exit_after: Option<Duration>,
    /// Where the launcher wants to read why the process ended.
    pub report: Option<Report>,
    /// What groups exchange over; all ranks say the same.
    pub backend: Backend,
}

impl Default for JobOptions {
    fn default() -> Self {
        JobOptions {
            secret: Secret::none(),
            comm_timeout: Duration::from_secs(30),
            startup_timeout: Duration::from_secs(60),
            exit_after: Some(Duration::from_millis(500)),
            report: None,
            backend: Backend::Auto,
        }
    }
}

/// A process's membership in its job: it meets the other ranks, watches them and is watched.
///
/// A job ends with [`Job::finish`]. One that is dropped instead ends it for all, as a failure of this rank.
pub struct Job {
    rank: usize,
    seats: Vec<Seat>,
    node_of_rank: Vec<usize>,
    watch: Arc<Watch>,
    link: Option<Link>,
    report: Option<Report>,
    backend: Backend,
    /// Connections for data, if ranks are on several hosts.
    mesh: Option<TcpMesh>,
    mpi: Option<Mpi>,
}

impl Job {
    /// Meets the other ranks. All call it with the same fingerprint.
    ///
    /// # Errors
    /// The ranks are not all there in time, or do not belong together: then all of them get the same line. The secret is
    /// wrong or missing, the port taken, rank 0 not to be found.
    pub fn join(env: &JobEnv, fingerprint: &Fingerprint, options: &JobOptions) -> Result<Job, JobError> {
        let host = Host::this(env.node);
        let watch = Watch::new(env.rank, options.comm_timeout, options.report.clone());
        watch.place();
        let meeting = rendezvous::join(
            env,
            &host,
            fingerprint,
            &options.secret,
            options.startup_timeout,
            watch.clone(),
        )?;
        let node_of_rank = number_hosts(meeting.seats.iter().map(|seat| seat.host.as_str()));
        let mut job = Job {
            rank: env.rank,
            seats: meeting.seats,
            node_of_rank,
            watch,
            link: Some(meeting.link),
            report: options.report.clone(),
            backend: options.backend,
            mesh: None,
            mpi: None,
        };
        if let Some(patience) = options.exit_after {
            job.guard(patience)?;
        }
        match job.connect(meeting.listener, options) {
            Ok(()) => Ok(job),
            Err(error) => {
                job.leave(Some(Failure::from(&error)));
                let verdict = job.watch.verdict();
                Err(verdict.map_or(error, JobError::from))
            }
        }
    }

    /// Connects with all other ranks, if some of them can't share memory or need not.
    fn connect(&mut self, listener: TcpListener, options: &JobOptions) -> Result<(), JobError> {
        let is_one_host = self.node_of_rank.iter().all(|&node| node == 0);
        match options.backend {
            Backend::Mpi => {
                self.mpi = Some(Mpi::start(self.rank, self.size(), options.comm_timeout)?);
                return Ok(());
            }
            Backend::Auto if is_one_host => return Ok(()),
            Backend::Shared => return Ok(()),
            Backend::Auto | Backend::Tcp => {}
        }
        let address = |(rank, seat): (usize, &Seat)| (rank != self.rank).then_some(seat.data);
        let peers: Vec<_> = self.seats.iter().enumerate().map(address).collect();
        let config = TcpConfig { connect_deadline: options.startup_timeout, spin: self.spin() };
        self.mesh = Some(TcpMesh::connect(self.rank, listener, &peers, &options.secret, &config)?);
        Ok(())
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the job.
    pub fn size(&self) -> usize {
        self.seats.len()
    }

    /// The name of each rank's host.
    pub fn hosts(&self) -> Vec<&str> {
        self.seats.iter().map(|seat| seat.host_name.as_str()).collect()
    }

    /// The host of each rank as a number; hosts are counted in the order of their first ranks. Ranks of one host can
    /// share memory.
    pub fn node_of_rank(&self) -> &[usize] {
        &self.node_of_rank
    }

    /// Ranks of this process's host, this one too, ascending.
    pub fn ranks_here(&self) -> Vec<usize> {
        let nodes = &self.node_of_rank;
        (0..self.size()).filter(|&rank| nodes[rank] == nodes[self.rank]).collect()
    }

    /// Ranks of this host that may use cores that this process may use, this one too, ascending. Launchers of MPI and Slurm
    /// can give each rank, or the ranks of a socket, cores of their own.
    pub fn ranks_on_my_cores(&self) -> Vec<usize> {
        let mine = &self.seats[self.rank].cores;
        self.ranks_here().into_iter().filter(|&rank| self.seats[rank].cores.overlap(mine)).collect()
    }

    fn spin(&self) -> Duration {
        let here = self.ranks_here();
        spin(here.len(), together(here.iter().map(|&rank| &self.seats[rank].cores)))
    }

    /// All ranks, those of one host side by side, rank 0 first.
    pub fn order(&self) -> Vec<usize> {
        side_by_side(&self.node_of_rank)
    }

    /// This rank's part of a group of `members`, world ranks in the order of the group's ranks. All members call it with
    /// the same arguments, and make their groups in the same order; an `id` is used once. Every wait in the group ends
    /// after `deadline`, or as soon as a rank of the job is lost.
    ///
    /// # Errors
    /// A member is lost or does not come, the system has no memory to share, or the backend can't connect these ranks.
    ///
    /// # Panics
    /// If this rank is no member, or the members are no ranks of the job or come twice.
    pub fn group(&self, id: u16, members: &[usize], deadline: Duration) -> Result<JobGroup, JobError> {
        assert!(members.contains(&self.rank), "rank {} makes a group of {members:?}", self.rank);
        let is_twice = |i: usize| members[..i].contains(&members[i]);
        let is_bad = |i: usize| members[i] >= self.size() || is_twice(i);
        assert!(!(0..members.len()).any(is_bad), "{members:?} of {} ranks", self.size());
        let link = self.link.as_ref().expect("a job has its connection until it is finished");
        let maker = Maker {
            backend: self.backend,
            hosts: &self.hosts(),
            node_of_rank: &self.node_of_rank,
            watch: &self.watch,
            link,
            spin: self.spin(),
            mesh: self.mesh.as_ref(),
            mpi: self.mpi.as_ref(),
        };
        let group = maker.make(id, members, deadline)?;
        self.watch.register(members, group.watched());
        Ok(group)
    }

    /// While the value is there, a process that should end because another rank has ended the job gets more time for it than
    /// [`JobOptions::exit_after`], up to ten seconds: it may be writing what nobody else has.
    pub fn hold(&self) -> Hold {
        Hold::new(self.watch.clone())
    }

    /// Leaves the job, with what went wrong if something did. Waits until the cause is known, and on rank 0 until all
    /// ranks have left. Returns how the process should end, if not well; the launcher has been told.
    pub fn finish(mut self, result: Result<(), Failure>) -> Option<Ending> {
        self.conclude(result.err())
    }

    fn conclude(&mut self, failure: Option<Failure>) -> Option<Ending> {
        self.leave(failure.clone());
        let (rank, host, report) = (self.rank, self.host_name(), self.report.as_ref());
        let ending = match (self.watch.verdict(), failure) {
            (Some(verdict), _) => Ending::of_verdict(rank, host, &verdict, report),
            (None, Some(failure)) => Ending::of_failure(rank, host, &failure, report),
            (None, None) => return None,
        };
        report.inspect(|report| report.send(&ending));
        Some(ending)
    }

    fn host_name(&self) -> &str {
        &self.seats[self.rank].host_name
    }

    fn leave(&mut self, failure: Option<Failure>) {
        self.watch.leave();
        match self.link.take() {
            Some(Link::Hub(hub)) => hub.leave(failure),
            Some(Link::Member(member)) => member.leave(failure),
            None => {}
        }
    }

    /// Ends the process if it does not end by itself after a verdict: it may be loading, or computing for long.
    fn guard(&self, patience: Duration) -> Result<(), JobError> {
        let (watch, report) = (self.watch.clone(), self.report.clone());
        let (rank, host) = (self.rank, self.host_name().to_owned());
        let spawned = std::thread::Builder::new().name("job guard".into()).spawn(move || {
            let Some(verdict) = watch.wait_for_a_doomed_process(patience, HELD) else { return };
            let ending = Ending::of_verdict(rank, &host, &verdict, report.as_ref());
            report.inspect(|report| report.send(&ending));
            if ending.is_printed {
                crate::say!("error: {}", ending.message);
            }
            std::process::exit(ending.code.into());
        });
        spawned.map(drop).map_err(|e| JobError::system("cannot start a thread to watch the job", e))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.link.is_some() {
            let what = if std::thread::panicking() { "panicked" } else { "left without a reason" };
            self.conclude(Some(Failure::own(what, 1)));
        }
    }
}
