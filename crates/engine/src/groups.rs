//! The groups that a rank is in: one per axis of the mesh.

use std::time::Duration;

use collective::{
    Collective, CollectiveError, Coordinates, Group, Members, Mesh, SharedConfig, SharedGroup, Solo,
    WireDType,
};
use job::{Job, JobError, JobGroup};
use model::ModelError;
use tensor::{Device, HostDevice, WeightFormat};

use crate::EngineError;

/// A device of a rank: how its tensors get to the others'.
pub(crate) trait RankDevice: Device + Sized + 'static {
    /// Whose matrices transports see.
    type Host: HostDevice + 'static;
    /// A group of this device over one that transports know. Its ranks are the job's `ranks`; the sums of all-reduces travel as
    /// `wire`; who waits longer than `deadline` gives up.
    fn over(
        group: Box<dyn Collective<Self::Host> + Send>,
        ranks: &[usize],
        wire: WireDType,
        deadline: Duration,
    ) -> Box<dyn Collective<Self> + Send>;
    /// Why layers with weights of this format are slower than was asked for, if they are.
    fn slowed_by(&self, _format: WeightFormat) -> Option<String> {
        None
    }
}

/// How ranks are grouped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouping {
    pub mesh: Mesh,
    /// Tensor-parallel ranks that share a KV cache by position.
    pub context: usize,
    /// What the sums of all-reduces travel as.
    pub wire: WireDType,
}

/// A rank's place in the mesh and its handles on the groups that it is in.
pub(crate) struct RankGroups<D: Device> {
    /// The rank's number in the job.
    pub rank: usize,
    pub mesh: Mesh,
    pub at: Coordinates,
    /// The ranks that share its layers.
    pub tensor: Members<D>,
    /// Those of them with which it shares its KV cache by position, if there are any.
    pub context: Option<Members<D>>,
    /// The ranks of its replica, if they are more than those: activations and replies travel here.
    pipeline: Option<Members<D>>,
    /// The leaders of all replicas, if there are several and it is one.
    pub leaders: Option<Members<D>>,
}

impl<D: RankDevice> RankGroups<D> {
    /// Has `group` make each group that the mesh's rank `at` is in, always in the same order. `rank` is its number in
    /// the job.
    pub fn new<E>(
        grouping: Grouping,
        at: usize,
        rank: usize,
        deadline: Duration,
        mut group: impl FnMut(Axis, &[usize]) -> Result<Made<D::Host>, E>,
    ) -> Result<Self, E> {
        let Grouping { mesh, context, wire } = grouping;
        let mut group = |axis, members: &[usize]| -> Result<Members<D>, E> {
            let Made { group, ranks } = group(axis, members)?;
            let wire = if axis == Axis::Tensor { wire } else { WireDType::Float32 };
            Ok(Members::new(D::over(group, &ranks, wire, deadline), &ranks))
        };
        let place = mesh.coordinates(at);
        let leads = place.pp == 0 && place.tp == 0;
        Ok(RankGroups {
            rank,
            mesh,
            at: place,
            tensor: group(Axis::Tensor, &mesh.tensor_group(at))?,
            context: match context {
                1 => None,
                size => {
                    let first = at - place.tp % size;
                    Some(group(Axis::Context, &(first..first + size).collect::<Vec<_>>())?)
                }
            },
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
}

impl<D: Device> RankGroups<D> {
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
        std::iter::once(&self.tensor).chain(&self.context).chain(&self.pipeline).chain(&self.leaders)
    }

    /// Returns when all ranks of all replicas have called it, however long the slowest takes.
    fn meet(&self) -> Result<(), CollectiveError> {
        let hear = |group: &Members<D>| match group.rank() {
            0 => (1..group.size()).try_for_each(|rank| group.recv_bytes(rank, None).map(drop)),
            _ => group.send_bytes(&[], 0),
        };
        let tell = |group: &Members<D>| group.broadcast(&mut Vec::new(), None);
        hear(self.replica())?;
        if let Some(leaders) = &self.leaders {
            hear(leaders)?;
            tell(leaders)?;
        }
        tell(self.replica())
    }

    /// Has the groups whose ranks exchange tensors find out how their devices reach each other. All ranks call it when they are ready;
    /// deadlines hold from here on. Gives a line for each reason why tensors have to take a long way, of the groups of which this rank
    /// is the first.
    pub fn prepare(&self, dev: &D) -> Result<Vec<String>, CollectiveError> {
        let tensor = std::iter::once((&self.tensor, "tensor parallel"));
        let context = self.context.iter().map(|group| (group, "decode context parallel"));
        let pipeline = self.pipeline.iter().map(|group| (group, "pipeline"));
        let exchanging: Vec<_> = tensor.chain(context).chain(pipeline).collect();
        self.meet()?;
        exchanging.iter().try_for_each(|(group, _)| group.share(dev))?;
        let mut long_ways: Vec<(String, Vec<String>)> = Vec::new();
        for (group, what) in exchanging {
            // Groups of one kind at a time: no rank gives up what it mapped for another kind while kernels of this one wait.
            self.meet()?;
            let Some(why) = group.prepare(dev)?.filter(|_| group.rank() == 0) else { continue };
            let who = format!("{} ({what})", ranks_in_words(group.ranks()));
            match long_ways.iter_mut().find(|(known, _)| *known == why) {
                Some((_, groups)) => groups.push(who),
                None => long_ways.push((why, vec![who])),
            }
        }
        self.meet()?;
        let line = |(why, who): (String, Vec<String>)| {
            format!("{} exchange through the host: {why}", who.join(" and "))
        };
        Ok(long_ways.into_iter().map(line).collect())
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

/// Some ranks in words: the first and the last if they follow each other.
pub fn ranks_in_words(numbers: &[usize]) -> String {
    let follow = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    match numbers {
        [one] => format!("rank {one}"),
        [first, .., last] if follow => format!("ranks {first}–{last}"),
        all => format!("ranks {}", all.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// What a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    Tensor,
    Context,
    Replica,
    Leaders,
}

/// A group as a transport made it, and the job's numbers of its ranks.
pub(crate) struct Made<D: Device> {
    group: Box<dyn Collective<D> + Send>,
    ranks: Vec<usize>,
}

/// The groups of all ranks, as threads of this process.
pub(crate) fn of_threads<D: RankDevice>(grouping: Grouping, config: &SharedConfig) -> Vec<RankGroups<D>> {
    // Handles that wait for their ranks, by axis and members.
    let mut made: Vec<(Axis, Vec<usize>, Handles<D::Host>)> = Vec::new();
    let mut take = |axis: Axis, members: &[usize], rank: usize| -> Made<D::Host> {
        let at = made.iter().position(|(a, m, _)| *a == axis && m == members).unwrap_or_else(|| {
            made.push((axis, members.to_vec(), handles(members.len(), config)));
            made.len() - 1
        });
        let place = members.iter().position(|&m| m == rank).expect("a rank asks for its own groups");
        let group = made[at].2[place].take().expect("a rank takes its place once");
        Made { group, ranks: members.to_vec() }
    };
    (0..grouping.mesh.size())
        .map(|rank| {
            let groups = RankGroups::new(grouping, rank, rank, config.deadline, |axis, members| {
                Ok::<_, std::convert::Infallible>(take(axis, members, rank))
            });
            groups.unwrap_or_else(|never| match never {})
        })
        .collect()
}

type Handles<D> = Vec<Option<Box<dyn Collective<D> + Send>>>;

fn handles<D: HostDevice + 'static>(ranks: usize, config: &SharedConfig) -> Handles<D> {
    match ranks {
        1 => vec![Some(Box::new(Solo::default()))],
        n => {
            let ranks = SharedGroup::new(n, config.clone()).into_iter();
            ranks.map(|rank| Some(Box::new(rank) as Box<dyn Collective<D> + Send>)).collect()
        }
    }
}

/// The groups of this process's rank in its job. The mesh's rank `i` is the job's rank `order[i]`, so that ranks of one
/// host are neighbours in the mesh.
///
/// # Errors
/// A rank is lost.
pub(crate) fn of_job<D: RankDevice>(
    grouping: Grouping,
    job: &Job,
    deadline: Duration,
) -> Result<RankGroups<D>, JobError> {
    let order = job.order();
    let at = order.iter().position(|&rank| rank == job.rank()).expect("every rank is in the order");
    RankGroups::new(grouping, at, job.rank(), deadline, |axis, members| {
        let ranks: Vec<usize> = members.iter().map(|&at| order[at]).collect();
        let group = Box::new(job.group(axis as u16 + 1, &ranks, deadline)?);
        Ok(Made { group, ranks })
    })
}

/// The job's group of all ranks that agree on something before their groups are made. Ids below are those of [`Axis`].
const AGREEMENT: u16 = 16;

/// What a rank says of GPUs where the choice is open: `None`, it knows of none; else whether it can have one, or why not.
pub(crate) type OfGpus = Option<Result<(), String>>;

/// Where all ranks of a job say something, before their groups are made.
pub(crate) struct Agreement<'a> {
    job: &'a Job,
    group: JobGroup,
}

impl<'a> Agreement<'a> {
    /// All ranks come, within `deadline`.
    pub fn new(job: &'a Job, deadline: Duration) -> Result<Self, EngineError> {
        Ok(Agreement { job, group: job.group(AGREEMENT, &job.order(), deadline)? })
    }

    /// What all ranks say, and which rank says it. All say it at the same time, and hear the same.
    ///
    /// # Errors
    /// A rank is lost, or is of another version.
    pub fn told(&self, own: &OfGpus) -> Result<Vec<(usize, OfGpus)>, EngineError> {
        let failed = |error: CollectiveError| EngineError::Rank {
            rank: self.job.rank(),
            source: Box::new(error.into()),
        };
        let own = serde_json::to_vec(own).expect("a text at most");
        let all = self.group.all_to_all_host(&vec![own; self.group.size()]).map_err(failed)?;
        let read = |said: &Vec<u8>| {
            let other = |_| CollectiveError::Refused("it is of another version".into());
            serde_json::from_slice(said).map_err(other).map_err(failed)
        };
        self.job.order().iter().zip(&all).map(|(&rank, said)| Ok((rank, read(said)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cpu::CpuDevice;

    use super::*;

    #[test]
    fn no_rank_goes_on_before_all_of_all_replicas_are_ready() {
        let mesh = Mesh { dp: 2, pp: 2, ep: 1, tp: 2 };
        let grouping = Grouping { mesh, context: 1, wire: WireDType::Float32 };
        // Nobody's deadline counts there.
        let config = SharedConfig { deadline: Duration::from_millis(10), ..SharedConfig::default() };
        let ready = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for groups in of_threads::<CpuDevice>(grouping, &config) {
                let ready = &ready;
                scope.spawn(move || {
                    let others = groups.mesh.size() - 1;
                    while groups.rank == others && ready.load(Ordering::SeqCst) < others {
                        std::thread::yield_now();
                    }
                    // Time for those who would not wait.
                    (0..100).for_each(|_| std::thread::yield_now());
                    ready.fetch_add(1, Ordering::SeqCst);
                    groups.meet().expect("all come");
                    assert_eq!(ready.load(Ordering::SeqCst), groups.mesh.size(), "rank {}", groups.rank);
                });
            }
        });
    }
}
