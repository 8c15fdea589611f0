//! Which rank is what: data × pipeline × tensor parallel.

use std::fmt;

/// How many parts each axis has. Experts are spread inside the tensor-parallel group: `ep` is `tp` where ranks hold
/// whole experts, else 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Replicas of the model.
    pub dp: usize,
    /// Stages of consecutive layers.
    pub pp: usize,
    /// Ranks over which whole experts are spread.
    pub ep: usize,
    /// Ranks that share every layer of a stage.
    pub tp: usize,
}

/// A rank's place on each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinates {
    /// Its replica.
    pub dp: usize,
    /// Its stage.
    pub pp: usize,
    /// Its place in the tensor-parallel group.
    pub tp: usize,
}

impl Mesh {
    /// One rank.
    pub const SOLO: Mesh = Mesh { dp: 1, pp: 1, ep: 1, tp: 1 };

    /// Ranks in all.
    pub fn size(&self) -> usize {
        self.dp * self.replica_size()
    }

    /// Ranks of one replica.
    pub fn replica_size(&self) -> usize {
        self.pp * self.tp
    }

    /// Where a rank is. Ranks of a tensor-parallel group follow each other, then come the stages, then the replicas: so
    /// neighbours, who share the fastest links, share layers, and replicas are furthest apart.
    pub fn coordinates(&self, rank: usize) -> Coordinates {
        assert!(rank < self.size(), "rank {rank} of {}", self.size());
        let stage = rank / self.tp;
        Coordinates { dp: stage / self.pp, pp: stage % self.pp, tp: rank % self.tp }
    }

    /// The rank at a place.
    pub fn rank(&self, at: Coordinates) -> usize {
        (at.dp * self.pp + at.pp) * self.tp + at.tp
    }

    /// The ranks of a rank's tensor-parallel group.
    pub fn tensor_group(&self, rank: usize) -> Vec<usize> {
        let first = rank - self.coordinates(rank).tp;
        (first..first + self.tp).collect()
    }

    /// The ranks of a rank's replica; the first leads it.
    pub fn replica_group(&self, rank: usize) -> Vec<usize> {
        let first = self.coordinates(rank).dp * self.replica_size();
        (first..first + self.replica_size()).collect()
    }

    /// The leaders of all replicas.
    pub fn leaders(&self) -> Vec<usize> {
        (0..self.dp).map(|dp| dp * self.replica_size()).collect()
    }

    /// The sizes that `ranks` ranks can have, at most `max_tp` tensor-parallel and `max_pp` stages.
    pub fn choices(ranks: usize, max_tp: usize, max_pp: usize) -> Vec<Mesh> {
        let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
        let of_tp = |tp: usize| {
            let rest = ranks / tp;
            divisors(rest).filter(move |&pp| pp <= max_pp).map(move |pp| Mesh {
                dp: rest / pp,
                pp,
                ep: 1,
                tp,
            })
        };
        let mut all: Vec<Mesh> = divisors(ranks).filter(|&tp| tp <= max_tp).flat_map(of_tp).collect();
        // What splits one model the most comes first.
        all.sort_by_key(|m| (m.dp, m.pp));
        all
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--tp {} --pp {} --dp {}", self.tp, self.pp, self.dp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_one_place_and_every_place_one_rank() {
        let mesh = Mesh { dp: 2, pp: 3, ep: 1, tp: 4 };
        for rank in 0..mesh.size() {
            assert_eq!(mesh.rank(mesh.coordinates(rank)), rank);
            assert!(mesh.tensor_group(rank).contains(&rank) && mesh.replica_group(rank).contains(&rank));
        }
        assert_eq!(mesh.tensor_group(6), [4, 5, 6, 7]);
        assert_eq!(mesh.replica_group(13), (12..24).collect::<Vec<_>>());
        assert_eq!(mesh.leaders(), [0, 12]);
    }

    #[test]
    fn choices_multiply_to_the_ranks() {
        let all = Mesh::choices(8, 4, 3);
        assert!(all.iter().all(|m| m.size() == 8 && m.tp <= 4 && m.pp <= 3));
        assert_eq!((all[0].tp, all[0].pp, all[0].dp), (4, 2, 1));
        assert_eq!(Mesh::choices(7, 4, 2).len(), 1, "seven replicas");
    }
}
