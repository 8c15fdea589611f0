//! Which rank holds which expert, where ranks hold whole ones.

use serde_json::Value;
use tensor::ReductionTree;

use super::cuts;
use super::split::SplitReduction;
use super::styles::ExpertForm;
use crate::ModelError;
use crate::config::ModelConfig;

/// What is wanted of a mixture's experts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertOptions {
    /// Sliced or whole; `None`: whole where a token chooses more than two, else sliced.
    pub form: Option<ExpertForm>,
    /// Where whole experts are.
    pub placement: ExpertPlacement,
}

/// How whole experts are placed on ranks.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ExpertPlacement {
    /// Consecutive ones, as many as even out what the ranks hold of the rest.
    #[default]
    Contiguous,
    /// Expert `e` on rank `e` modulo the number of ranks.
    RoundRobin,
    /// Each expert's rank: one list for all layers, or one for every layer that has experts.
    Given(Vec<Vec<usize>>),
    /// Such that ranks get tokens in proportion to their weights, by recorded counts of tokens per expert: one list for
    /// all layers, or one for every layer that has experts.
    Balanced(Vec<Vec<u64>>),
}

impl ExpertPlacement {
    /// The most tokens that are counted of an expert: sums of so many stay exact in f64.
    pub const MOST_TOKENS: u64 = 1 << 40;

    /// Reads `[0, 0, 1, 1]`, or a list of such lists, or an object that has either under `placement`.
    ///
    /// # Errors
    /// Something else.
    pub fn given(json: &Value) -> Result<Self, ModelError> {
        let lists = lists(json, "placement").ok_or_else(|| {
            wrong("the file must be a list of ranks, one per expert, such as [0,0,1,1], or one such list per layer")
        })?;
        let ranks = lists.into_iter().map(|l| l.into_iter().map(|rank| rank as usize).collect());
        Ok(ExpertPlacement::Given(ranks.collect()))
    }

    /// Reads recorded counts in the same form, or an object that has them under `tokens_per_expert`.
    ///
    /// # Errors
    /// Something else.
    pub fn balanced(json: &Value) -> Result<Self, ModelError> {
        let lists = lists(json, "tokens_per_expert").ok_or_else(|| {
            wrong("recorded counts must be a list of numbers of tokens, one per expert, or one such list per layer")
        })?;
        if lists.iter().flatten().any(|&tokens| tokens > Self::MOST_TOKENS) {
            return Err(wrong("recorded counts are at most 2^40 tokens per expert"));
        }
        Ok(ExpertPlacement::Balanced(lists))
    }
}

/// One list of whole numbers, or several.
fn lists(json: &Value, key: &str) -> Option<Vec<Vec<u64>>> {
    let all = json.get(key).unwrap_or(json).as_array()?;
    let numbers = |list: &[Value]| list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>();
    match all.first()? {
        Value::Array(_) => all.iter().map(|list| numbers(list.as_array()?)).collect(),
        _ => Some(vec![numbers(all)?]),
    }
}

fn wrong(what: impl std::fmt::Display) -> ModelError {
    ModelError::Split(format!("expert placement: {what}"))
}

/// The rank of every expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    ranks: usize,
    /// By layer of the model; empty where a layer has no experts.
    rank_of: Vec<Vec<usize>>,
}

impl Placement {
    /// `contiguous` are the cuts of [`ExpertPlacement::Contiguous`]; `shares`, one per rank, add up to 1.
    pub(super) fn resolve(
        wanted: &ExpertPlacement,
        config: &ModelConfig,
        shares: &[f64],
        contiguous: &[usize],
    ) -> Result<Self, ModelError> {
        let ranks = shares.len();
        let experts = config.moe.map_or(0, |moe| moe.num_experts);
        let sparse = config.layers.iter().filter(|layer| layer.moe).count();
        let mut lists = match wanted {
            ExpertPlacement::Contiguous => {
                vec![(0..experts).map(|e| contiguous[1..].partition_point(|&cut| cut <= e)).collect()]
            }
            ExpertPlacement::RoundRobin => vec![(0..experts).map(|e| e % ranks).collect()],
            ExpertPlacement::Given(lists) => {
                check(lists, experts, sparse)?;
                if let Some(rank) = lists.iter().flatten().find(|rank| **rank >= ranks) {
                    return Err(wrong(format!("rank {rank} is not one of 0 to {}", ranks - 1)));
                }
                lists.clone()
            }
            ExpertPlacement::Balanced(counts) => {
                check(counts, experts, sparse)?;
                counts.iter().map(|counts| balance(counts, shares)).collect()
            }
        };
        if let [list] = &lists[..] {
            lists = vec![list.clone(); sparse];
        }
        let mut lists = lists.into_iter();
        let of_layer = |layer: &crate::config::LayerConfig| match layer.moe {
            true => lists.next().expect("a list for every layer that has experts"),
            false => Vec::new(),
        };
        Ok(Placement { ranks, rank_of: config.layers.iter().map(of_layer).collect() })
    }

    /// The rank of each expert of a layer; empty if the layer has none.
    pub fn ranks_of(&self, layer: usize) -> &[usize] {
        &self.rank_of[layer]
    }

    /// A rank's experts of a layer, ascending.
    pub fn own(&self, layer: usize, rank: usize) -> Vec<usize> {
        let ranks = self.rank_of[layer].iter().enumerate();
        ranks.filter(|(_, of)| **of == rank).map(|(expert, _)| expert).collect()
    }

    /// The reduction over a layer's ids, if every rank's are consecutive and they are in the order of ranks.
    pub(super) fn reduction(&self, layer: usize) -> Option<SplitReduction> {
        let ranks = &self.rank_of[layer];
        if ranks.is_empty() || !ranks.is_sorted() {
            return None;
        }
        let cuts: Vec<usize> = (0..=self.ranks).map(|rank| ranks.partition_point(|&r| r < rank)).collect();
        Some(SplitReduction::new(ReductionTree::over_ids(ranks.len()), &cuts))
    }

    /// Tokens that each rank's experts get, by those that each expert gets.
    pub fn tokens_per_rank(&self, layer: usize, tokens_per_expert: &[u64]) -> Vec<u64> {
        let mut tokens = vec![0; self.ranks];
        for (&rank, count) in self.rank_of[layer].iter().zip(tokens_per_expert) {
            tokens[rank] += count;
        }
        tokens
    }

    /// What [`ExpertPlacement::given`] reads: a list for every layer that has experts.
    pub fn to_json(&self) -> Value {
        let lists: Vec<&Vec<usize>> = self.rank_of.iter().filter(|ranks| !ranks.is_empty()).collect();
        serde_json::json!(lists)
    }
}

/// The largest number in relation to the mean; 1 where there is nothing.
pub fn imbalance(tokens_per_rank: &[u64]) -> f64 {
    let (most, sum) = (tokens_per_rank.iter().max(), tokens_per_rank.iter().sum::<u64>());
    match (most, sum) {
        (Some(&most), 1..) => most as f64 * tokens_per_rank.len() as f64 / sum as f64,
        _ => 1.0,
    }
}

fn check<T>(lists: &[Vec<T>], experts: usize, sparse: usize) -> Result<(), ModelError> {
    if lists.len() != 1 && lists.len() != sparse {
        return Err(wrong(format!(
            "has {} lists, but the model has {sparse} layers with experts; one list, or {sparse}, would work",
            lists.len()
        )));
    }
    match lists.iter().find(|list| list.len() != experts) {
        Some(list) => {
            Err(wrong(format!("a list has {} experts, but a layer of the model has {experts}", list.len())))
        }
        None => Ok(()),
    }
}

/// The busiest expert first, each to the rank that is done first with it. No rank gets more experts than its share,
/// rounded up, since it has to hold them.
fn balance(counts: &[u64], shares: &[f64]) -> Vec<usize> {
    let mut by_count: Vec<usize> = (0..counts.len()).collect();
    by_count.sort_by_key(|&expert| (std::cmp::Reverse(counts[expert]), expert));
    let room: Vec<usize> = shares.iter().map(|share| (share * counts.len() as f64).ceil() as usize).collect();
    let mut held = vec![(0u64, 0usize); shares.len()];
    let mut rank_of = vec![0; counts.len()];
    for expert in by_count {
        let done = |rank: usize| held[rank].0.saturating_add(counts[expert]) as f64 / shares[rank];
        let full = |rank: usize| (held[rank].1 + 1) as f64 / shares[rank];
        let earlier = |&a: &usize, &b: &usize| {
            done(a).total_cmp(&done(b)).then(full(a).total_cmp(&full(b))).then(a.cmp(&b))
        };
        let free = (0..shares.len()).filter(|&rank| held[rank].1 < room[rank]);
        // Shares add up to 1 but for rounding, and what they leave over fits anywhere.
        let rank = free.min_by(earlier).unwrap_or(0);
        held[rank] = (held[rank].0.saturating_add(counts[expert]), held[rank].1 + 1);
        rank_of[expert] = rank;
    }
    rank_of
}

/// The contiguous cuts of experts, by how many each rank should have.
pub(super) fn contiguous(experts: usize, targets: &[f64]) -> Vec<usize> {
    cuts::leaves(&ReductionTree::over_ids(experts), targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_busiest_experts_are_apart() {
        assert_eq!(balance(&[9, 8, 1, 1], &[0.5, 0.5]), [0, 1, 1, 0]);
        assert_eq!(balance(&[100, 1, 1, 1], &[0.5, 0.5]), [0, 1, 1, 0], "no rank holds more than its share");
        assert_eq!(balance(&[0; 6], &[0.5, 0.25, 0.25]), [0, 0, 1, 2, 0, 1]);
        assert_eq!(imbalance(&[3, 1]), 1.5);
        assert_eq!(imbalance(&[0, 0]), 1.0);
    }

    #[test]
    fn lists_are_read_in_every_form() {
        let given = |json: &str| ExpertPlacement::given(&serde_json::from_str(json).unwrap());
        assert_eq!(given("[0,1]").unwrap(), ExpertPlacement::Given(vec![vec![0, 1]]));
        assert_eq!(given("[[0,1],[1,0]]").unwrap(), ExpertPlacement::Given(vec![vec![0, 1], vec![1, 0]]));
        assert_eq!(given(r#"{"placement": [[2]]}"#).unwrap(), ExpertPlacement::Given(vec![vec![2]]));
        let counts = ExpertPlacement::balanced(&serde_json::json!({"tokens_per_expert": [5, 7]}));
        assert_eq!(counts.unwrap(), ExpertPlacement::Balanced(vec![vec![5, 7]]));
        for wrong in ["[]", "{}", "3", "[0, -1]", "[[0], 1]", "[0, [1]]", "[\"0\"]", "[0.5]", "null"] {
            let error = given(wrong).unwrap_err().to_string();
            assert!(error.contains("[0,0,1,1]") && !error.contains('\n'), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn balanced_ranks_differ_by_no_more_than_the_busiest_expert(counts in prop::collection::vec(0..1000u64, 1..70), ranks in 1..7usize) {
            let rank_of = balance(&counts, &vec![1.0 / ranks as f64; ranks]);
            let mut load = vec![(0, 0); ranks];
            for (&rank, count) in rank_of.iter().zip(&counts) {
                load[rank].0 += count;
                load[rank].1 += 1;
            }
            prop_assert!(load.iter().all(|l| l.1 <= counts.len().div_ceil(ranks)));
            let mean = counts.iter().sum::<u64>() as f64 / ranks as f64;
            let busiest = *counts.iter().max().unwrap() as f64;
            prop_assert!(load.iter().all(|l| l.0 as f64 <= mean + busiest), "{:?}", load);
        }
    }
}
