//! Groups of a job's ranks: each pair of ranks exchanges by the fastest way between their hosts.

mod mpi;
mod setup;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use collective::{
    Collective, CollectiveError, CollectiveStats, Group, Hierarchical, ReducePlan, SharedRank, Solo, TcpRank,
    Watched,
};
use tensor::HostDevice;

pub(crate) use mpi::Mpi;
pub(crate) use setup::{Maker, spin};

/// What a group exchanges over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Memory inside a host, TCP between hosts.
    #[default]
    Auto,
    /// Memory; all ranks of a group must be on one host.
    Shared,
    /// TCP, inside a host too.
    Tcp,
    /// MPI, inside a host too.
    Mpi,
}

impl Backend {
    const ALL: [(Backend, &'static str); 4] =
        [(Backend::Auto, "auto"), (Backend::Shared, "shared"), (Backend::Tcp, "tcp"), (Backend::Mpi, "mpi")];

    /// Its name in flags.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Backend, String> {
        let named = Self::ALL.iter().find(|(_, name)| *name == text).map(|(backend, _)| *backend);
        named.ok_or_else(|| format!("{text:?} is no backend: auto, shared, tcp or mpi"))
    }
}

/// One rank of a group of a job.
#[derive(Debug)]
pub enum JobGroup {
    /// The only rank.
    Solo(Solo),
    /// All ranks are on one host.
    Shared(SharedRank),
    /// No two ranks can share memory, or they need not.
    Tcp(TcpRank),
    /// Several hosts, some with several ranks.
    Hierarchical(Box<Hierarchical>),
    /// All ranks are MPI's too.
    #[cfg(feature = "mpi")]
    Mpi(collective::mpi::MpiRank),
}

macro_rules! each {
    ($group:expr, $rank:ident => $call:expr) => {
        match $group {
            JobGroup::Solo($rank) => $call,
            JobGroup::Shared($rank) => $call,
            JobGroup::Tcp($rank) => $call,
            JobGroup::Hierarchical($rank) => $call,
            #[cfg(feature = "mpi")]
            JobGroup::Mpi($rank) => $call,
        }
    };
}

impl JobGroup {
    /// What it exchanges over, by name.
    pub fn transport(&self) -> &'static str {
        match self {
            JobGroup::Solo(_) => "none",
            JobGroup::Shared(_) => "shared",
            JobGroup::Tcp(_) => "tcp",
            JobGroup::Hierarchical(_) => "hierarchical",
            #[cfg(feature = "mpi")]
            JobGroup::Mpi(_) => "mpi",
        }
    }
}

impl Group for JobGroup {
    fn rank(&self) -> usize {
        each!(self, group => group.rank())
    }

    fn size(&self) -> usize {
        each!(self, group => group.size())
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        each!(self, group => group.all_gather_host(part))
    }

    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        each!(self, group => group.all_to_all_host(parts))
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        each!(self, group => group.broadcast(bytes, deadline))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        each!(self, group => group.barrier())
    }

    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        each!(self, group => group.send_bytes(bytes, to))
    }

    fn recv_bytes(&self, from: usize, deadline: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        each!(self, group => group.recv_bytes(from, deadline))
    }

    fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        each!(self, group => group.try_recv_bytes(from))
    }

    fn check(&self) -> Result<(), CollectiveError> {
        each!(self, group => group.check())
    }

    fn fail(&self, message: &str) {
        each!(self, group => group.fail(message))
    }

    fn watched(&self) -> Arc<dyn Watched> {
        each!(self, group => group.watched())
    }

    fn stats(&self) -> CollectiveStats {
        each!(self, group => group.stats())
    }
}

impl<D: HostDevice> Collective<D> for JobGroup {
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        each!(self, group => group.all_reduce(dev, partial, rows, plan))
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        each!(self, group => group.reduce_scatter(dev, partial, rows_of_rank, plan))
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        each!(self, group => group.all_gather(dev, part, rows_of_rank))
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        each!(self, group => group.all_to_all(dev, x, rows_to, rows_from))
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        each!(self, group => group.send(dev, x, to))
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        each!(self, group => group.recv(dev, from, rows, cols, deadline))
    }
}
