//! The groups that a rank is in: one per axis of the mesh.

use std::time::Duration;

use collective::{
    Collective, CollectiveError, Coordinates, Group, Members, Mesh, SharedConfig, SharedGroup, Solo,
};
use job::{Job, JobError};
use model::ModelError;
use tensor::{Device, HostDevice};

/// A rank's place in the mesh and its handles on the groups that it is in.
pub(crate) struct RankGroups<D: Device> {
    /// The rank's number in the job.
    pub rank: usize,
    pub mesh: Mesh,
    pub at: Coordinates,
    /// The ranks that share its layers.
    pub tensor: Members<D>,
    /// The ranks of its replica, if they are more than those: activations and replies travel here.
    pipeline: Option<Members<D>>,
    /// The leaders of all replicas, if there are several and it is one.
    pub leaders: Option<Members<D>>,
}

impl<D: Device> RankGroups<D> {
    /// Has `group` make each group that the mesh's rank `at` is in, always in the same order. `rank` is its number in
    /// the job.
    pub fn new<E>(
        mesh: Mesh,
        at: usize,
        rank: usize,
        mut group: impl FnMut(Axis, &[usize]) -> Result<Members<D>, E>,
    ) -> Result<Self, E> {
        let place = mesh.coordinates(at);
        let leads = place.pp == 0 && place.tp == 0;
        Ok(RankGroups {
            rank,
            mesh,
            at: place,
            tensor: group(Axis::Tensor, &mesh.tensor_group(at))?,
            pipeline: match mesh.pp {
                1 => None,
                _ => Some(group(Axis::Replica, &mesh.replica_group(at))?),
            },
            leaders: match leads && mesh.dp > 1 {
                true => Some(group(Axis::Leaders, &mesh.leaders())?),
                false => None,
            },
        })
    }

    /// The ranks of this replica; rank 0 of it leads.
    pub fn replica(&self) -> &Members<D> {
        self.pipeline.as_ref().unwrap_or(&self.tensor)
    }

    /// This rank's number in [`RankGroups::replica`].
    pub fn in_replica(&self) -> usize {
        self.at.pp * self.mesh.tp + self.at.tp
    }

    /// Whether this rank leads its replica.
    pub fn leads(&self) -> bool {
        self.in_replica() == 0
    }

    fn all(&self) -> impl Iterator<Item = &Members<D>> {
        std::iter::once(&self.tensor).chain(&self.pipeline).chain(&self.leaders)
    }

    /// Whether all groups can go on.
    pub fn check(&self) -> Result<(), CollectiveError> {
        self.all().try_for_each(Group::check)
    }

    /// Tells all groups that this rank cannot go on, and whose fault it is.
    pub fn fail(&self, error: &ModelError) {
        match error {
            ModelError::Collective(CollectiveError::Failed { rank, message }) => {
                self.all().for_each(|group| group.pass_on(*rank, message));
            }
            own => self.fail_with(&own.to_string()),
        }
    }

    /// Tells all groups that this rank cannot go on.
    pub fn fail_with(&self, message: &str) {
        self.all().for_each(|group| group.fail(message));
    }
}

/// What a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    Tensor,
    Replica,
    Leaders,
}

/// The groups of all ranks, as threads of this process.
pub(crate) fn of_threads<D: HostDevice + 'static>(mesh: Mesh, config: &SharedConfig) -> Vec<RankGroups<D>> {
    // Handles that wait for their ranks, by axis and members.
    let mut made: Vec<(Axis, Vec<usize>, Vec<Option<Members<D>>>)> = Vec::new();
    let mut take = |axis: Axis, members: &[usize], rank: usize| -> Members<D> {
        let at = made.iter().position(|(a, m, _)| *a == axis && m == members).unwrap_or_else(|| {
            made.push((axis, members.to_vec(), handles(members, config)));
            made.len() - 1
        });
        let place = members.iter().position(|&m| m == rank).expect("a rank asks for its own groups");
        made[at].2[place].take().expect("a rank takes its place once")
    };
    (0..mesh.size())
        .map(|rank| {
            let groups = RankGroups::new(mesh, rank, rank, |axis, members| {
                Ok::<_, std::convert::Infallible>(take(axis, members, rank))
            });
            groups.unwrap_or_else(|never| match never {})
        })
        .collect()
}

/// The groups of this process's rank in its job. The mesh's rank `i` is the job's rank `order[i]`, so that ranks of one
/// host are neighbours in the mesh.
///
/// # Errors
/// A rank is lost.
pub(crate) fn of_job<D: HostDevice + 'static>(
    mesh: Mesh,
    job: &Job,
    deadline: Duration,
) -> Result<RankGroups<D>, JobError> {
    let order = job.order();
    let at = order.iter().position(|&rank| rank == job.rank()).expect("every rank is in the order");
    RankGroups::new(mesh, at, job.rank(), |axis, members| {
        let members: Vec<usize> = members.iter().map(|&at| order[at]).collect();
        let group = job.group(axis as u16 + 1, &members, deadline)?;
        Ok(Members::new(Box::new(group), &members))
    })
}

fn handles<D: HostDevice + 'static>(members: &[usize], config: &SharedConfig) -> Vec<Option<Members<D>>> {
    let named = |inner: Box<dyn Collective<D> + Send>| Some(Members::new(inner, members));
    match members.len() {
        1 => vec![named(Box::new(Solo::default()))],
        n => SharedGroup::new(n, config.clone()).into_iter().map(|rank| named(Box::new(rank))).collect(),
    }
}
