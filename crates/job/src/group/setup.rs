//! How the ranks of a group come to exchange: which way, and the memory that those of one host share.

use std::time::{Duration, Instant};

use collective::{Hierarchical, SharedConfig, SharedRank, SharedSegment, Solo, TcpMesh};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::AsRawFd;

use super::mpi::Mpi;
use super::{Backend, JobGroup};
use crate::JobError;
use crate::rendezvous::Link;
use crate::watch::Watch;

/// What ranks of one host say to each other to make a group. The first creates the memory.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Where the memory is: the first rank's process and its descriptor there.
    Segment(u32, i32),
    /// The memory is mapped.
    Ready,
    /// There will be no group.
    Failed(String),
}

/// What a group is made from.
pub(crate) struct Maker<'a> {
    pub backend: Backend,
    pub hosts: &'a [&'a str],
    pub node_of_rank: &'a [usize],
    pub watch: &'a Watch,
    pub link: &'a Link,
    /// For how long a rank polls before it sleeps.
    pub spin: Duration,
    /// There if ranks are on several hosts, or the backend says so.
    pub mesh: Option<&'a TcpMesh>,
    /// There if the backend says so.
    #[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "there never is one"))]
    pub mpi: Option<&'a Mpi>,
}

impl Maker<'_> {
    /// This rank's part of a group. `members` are world ranks.
    pub fn make(&self, id: u16, members: &[usize], deadline: Duration) -> Result<JobGroup, JobError> {
        if members.len() == 1 {
            return Ok(JobGroup::Solo(Solo::default()));
        }
        #[cfg(feature = "mpi")]
        if let Some(mpi) = self.mpi {
            return Ok(JobGroup::Mpi(mpi.group(id, members, deadline)?));
        }
        let nodes: Vec<usize> = members.iter().map(|&rank| self.node_of_rank[rank]).collect();
        let elsewhere = nodes.iter().position(|&node| node != nodes[0]);
        match (self.backend, elsewhere, self.mesh) {
            (Backend::Auto | Backend::Shared, None, _) => {
                self.share(id, members, deadline).map(JobGroup::Shared)
            }
            (Backend::Auto, Some(_), Some(mesh)) if has_blocks(&nodes) => {
                let is_here = |rank: &usize| self.node_of_rank[*rank] == self.node_of_rank[self.watch.me];
                let here: Vec<usize> = members.iter().copied().filter(is_here).collect();
                let local = self.share(id, &here, deadline)?;
                let wire = mesh.group(id, members, deadline)?;
                Ok(JobGroup::Hierarchical(Box::new(Hierarchical::new(local, wire, nodes)?)))
            }
            (Backend::Auto | Backend::Tcp, _, Some(mesh)) => {
                Ok(JobGroup::Tcp(mesh.group(id, members, deadline)?))
            }
            (_, elsewhere, _) => {
                let ranks = [members[0], members[elsewhere.unwrap_or(1)]];
                Err(JobError::NotShared { ranks, hosts: ranks.map(|rank| self.hosts[rank].to_owned()) })
            }
        }
    }

    /// Memory between ranks of one host.
    fn share(&self, id: u16, members: &[usize], deadline: Duration) -> Result<SharedRank, JobError> {
        let me = members.iter().position(|&rank| rank == self.watch.me).expect("a member makes the group");
        let config = SharedConfig { deadline, spin: self.spin, ..SharedConfig::default() };
        // The first operation has the deadline; members may come to make the group with more of a delay.
        let until = Instant::now() + deadline.max(self.watch.pace.timeout);
        if me == 0 {
            return self.create(id, members, &config, until);
        }
        match self.hear(id, members[0], until)? {
            Word::Segment(pid, fd) => {
                let rank =
                    open(pid, fd, members.len(), &config).and_then(|segment| segment.rank(me, &config));
                let rank = rank.map_err(|e| no_memory(members[0], &e));
                let word = match &rank {
                    Ok(_) => Word::Ready,
                    Err(e) => Word::Failed(e.to_string()),
                };
                self.say(id, members[0], &word)?;
                rank
            }
            Word::Failed(message) => Err(JobError::Lost { message, is_usage: false }),
            Word::Ready => Err(no_memory(members[0], &"an answer out of turn")),
        }
    }

    /// The first rank's part: it keeps the memory open until all have it.
    fn create(
        &self,
        id: u16,
        members: &[usize],
        config: &SharedConfig,
        until: Instant,
    ) -> Result<SharedRank, JobError> {
        let created = SharedSegment::create(members.len(), config)
            .and_then(|segment| segment.rank(0, config).map(|rank| (segment, rank)))
            .map_err(|e| no_memory(members[0], &e));
        let word = match &created {
            Ok((segment, _)) => Word::Segment(std::process::id(), segment.as_fd().as_raw_fd()),
            Err(e) => Word::Failed(e.to_string()),
        };
        for &member in &members[1..] {
            self.say(id, member, &word)?;
        }
        let (segment, rank) = created?;
        for &member in &members[1..] {
            if let Word::Failed(message) = self.hear(id, member, until)? {
                return Err(JobError::Lost { message: format!("rank {member}: {message}"), is_usage: false });
            }
        }
        drop(segment);
        Ok(rank)
    }

    fn say(&self, id: u16, to: usize, word: &Word) -> Result<(), JobError> {
        let bytes = postcard::to_stdvec(word).map_err(|e| JobError::system("cannot make a group", e))?;
        let posted = match self.link {
            Link::Hub(hub) => hub.post(id, to, bytes),
            Link::Member(member) => member.post(id, to, bytes),
        };
        posted.map_err(|e| match self.watch.verdict() {
            Some(verdict) => verdict.into(),
            None => JobError::system(format!("cannot reach rank {to} to make group {id}"), e),
        })
    }

    fn hear(&self, id: u16, from: usize, until: Instant) -> Result<Word, JobError> {
        let bytes = self.watch.collect(id, from, until)?;
        postcard::from_bytes(&bytes).map_err(|e| JobError::system(format!("group {id} with rank {from}"), e))
    }
}

/// Whether some host has several ranks, and those of each host follow each other.
fn has_blocks(nodes: &[usize]) -> bool {
    let starts: Vec<usize> = nodes.chunk_by(|a, b| a == b).map(|block| block[0]).collect();
    let is_first = |i: usize| !starts[..i].contains(&starts[i]);
    starts.len() < nodes.len() && (0..starts.len()).all(is_first)
}

fn open(pid: u32, fd: i32, ranks: usize, config: &SharedConfig) -> std::io::Result<SharedSegment> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(format!("/proc/{pid}/fd/{fd}"), flags, Mode::empty())?;
    SharedSegment::open(fd, ranks, config)
}

fn no_memory(first: usize, error: &dyn std::fmt::Display) -> JobError {
    let what = format!("cannot share memory with rank {first} (ANYSPLIT_COMM_BACKEND=tcp works without)");
    JobError::system(what, error)
}

/// For how long a rank polls before it sleeps. Ranks that outnumber the cores that they share must not keep them busy.
pub(crate) fn spin(ranks: usize, cores: usize) -> Duration {
    if ranks > cores { Duration::ZERO } else { SharedConfig::default().spin }
}

#[cfg(test)]
mod tests {
    use super::has_blocks;

    #[test]
    fn hosts_whose_ranks_follow_each_other_have_blocks() {
        assert!(has_blocks(&[0, 0, 1]) && has_blocks(&[3, 1, 1, 2]));
        assert!(!has_blocks(&[0, 1, 2]), "one each");
        assert!(!has_blocks(&[0, 1, 0]) && !has_blocks(&[0, 0, 1, 0]), "scattered");
    }
}
