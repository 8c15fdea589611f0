//! Where the ranks' shares of something begin and end.

use std::ops::Range;

use tensor::ReductionTree;

/// No rank may hold more than this times its even share for the sake of whole KV groups or of fewer nodes.
const MAX_IMBALANCE: f64 = 1.15;

/// Ranges of consecutive cuts.
pub(super) fn ranges(cuts: &[usize]) -> Vec<Range<usize>> {
    cuts.windows(2).map(|c| c[0]..c[1]).collect()
}

/// Cuts of `0..items` nearest to each rank's share, at multiples of `step`. `shares` add up to 1.
pub(super) fn nearest(items: usize, step: usize, shares: &[f64]) -> Vec<usize> {
    let targets: Vec<f64> = shares.iter().map(|s| s * items as f64).collect();
    let mut at = 0.0;
    let mut cuts = vec![0];
    for target in &targets[..targets.len() - 1] {
        at += target;
        let cut = ((at / step as f64).round() as usize * step).min(items);
        cuts.push(cut.max(cuts[cuts.len() - 1]));
    }
    cuts.push(items);
    cuts
}

/// The largest share in relation to what it should be.
fn imbalance(cuts: &[usize], shares: &[f64]) -> f64 {
    let items = cuts[cuts.len() - 1] as f64;
    let excess = |(range, share): (Range<usize>, &f64)| range.len() as f64 / (share * items);
    ranges(cuts).into_iter().zip(shares).map(excess).fold(0.0, f64::max)
}

/// Cuts of query heads: at KV groups where that stays even enough, else at any head. Every rank gets at least
/// one head.
pub(super) fn heads(num_heads: usize, num_kv_heads: usize, shares: &[f64]) -> Vec<usize> {
    if shares.len() <= num_kv_heads {
        let cuts = nearest(num_heads, num_heads / num_kv_heads, shares);
        let all_have_some = ranges(&cuts).iter().all(|range| !range.is_empty());
        if all_have_some && imbalance(&cuts, shares) <= MAX_IMBALANCE {
            return cuts;
        }
    }
    at_least_one(nearest(num_heads, 1, shares))
}

/// Moves cuts so that no range is empty; there are at least as many items as ranges.
fn at_least_one(mut cuts: Vec<usize>) -> Vec<usize> {
    let last = cuts.len() - 1;
    for i in 1..last {
        cuts[i] = cuts[i].max(cuts[i - 1] + 1);
    }
    for i in (1..last).rev() {
        cuts[i] = cuts[i].min(cuts[i + 1] - 1);
    }
    cuts
}

/// Cuts of a tree's leaves nearest to `targets` (inputs that each rank should have, adding up to all of them).
/// Among the leaf boundaries on either side of each target it takes those that leave the fewest nodes, as long
/// as no rank exceeds its target by more than a leaf or by [`MAX_IMBALANCE`].
pub(super) fn leaves(tree: &ReductionTree, targets: &[f64]) -> Vec<usize> {
    let boundaries: Vec<usize> =
        (0..=tree.num_leaves()).map(|l| tree.inputs_of(l..tree.num_leaves()).start).collect();
    let candidates: Vec<[usize; 2]> = targets[..targets.len() - 1]
        .iter()
        .scan(0.0, |at, target| {
            *at += target;
            let above = boundaries.partition_point(|&b| (b as f64) < *at).min(tree.num_leaves());
            Some([above.saturating_sub(1), above])
        })
        .collect();
    // Best way to every candidate of each cut: what exceeds the first bound, what exceeds the second, nodes,
    // distance; and the cuts so far.
    type Way = (f64, f64, usize, f64, Vec<usize>);
    let mut ways: Vec<Way> = vec![(0.0, 0.0, 0, 0.0, vec![0])];
    let mut goal = 0.0;
    for (rank, target) in targets.iter().enumerate() {
        goal += target;
        let ends = candidates.get(rank).map_or(vec![tree.num_leaves()], |c| c.to_vec());
        let largest_leaf = (0..tree.num_leaves()).map(|l| tree.inputs_of(l..l + 1).len()).max().unwrap_or(0);
        let next = ends.into_iter().filter_map(|end| {
            let step = |(over_leaf, over_share, nodes, distance, cuts): &Way| {
                let start = cuts[cuts.len() - 1];
                if start > end {
                    return None;
                }
                let share = (boundaries[end] - boundaries[start]) as f64;
                let mut cuts = cuts.clone();
                cuts.push(end);
                Some((
                    over_leaf.max(share - target - largest_leaf as f64),
                    over_share.max(share - target * MAX_IMBALANCE),
                    nodes + tree.cover(start..end).len(),
                    distance + (boundaries[end] as f64 - goal).abs(),
                    cuts,
                ))
            };
            let key = |way: &Way| (way.0, way.1, way.2, way.3);
            ways.iter().filter_map(step).min_by(|a, b| key(a).partial_cmp(&key(b)).expect("finite"))
        });
        ways = next.collect();
    }
    ways.into_iter().next().map(|way| way.4).expect("the ceiling of every target is a way")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn even(ranks: usize) -> Vec<f64> {
        vec![1.0 / ranks as f64; ranks]
    }

    #[test]
    fn cuts_fall_on_kv_groups_while_the_shares_stay_even_enough() {
        assert_eq!(heads(32, 8, &even(3)), [0, 12, 20, 32]);
        assert_eq!(heads(32, 8, &even(4)), [0, 8, 16, 24, 32]);
        assert_eq!(heads(8, 4, &even(3)), [0, 3, 5, 8]);
        assert_eq!(heads(8, 2, &even(8)), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(heads(96, 96, &even(8)), [0, 12, 24, 36, 48, 60, 72, 84, 96]);
    }

    #[test]
    fn unequal_ranks_get_unequal_shares_and_never_no_head() {
        assert_eq!(heads(8, 8, &[0.5, 0.25, 0.25]), [0, 4, 6, 8]);
        assert_eq!(heads(3, 1, &[0.98, 0.01, 0.01]), [0, 1, 2, 3]);
        assert_eq!(heads(4, 4, &[0.01, 0.01, 0.98]), [0, 1, 2, 4]);
    }

    proptest! {
        #[test]
        fn no_rank_exceeds_its_target_by_more_than_a_leaf(inputs in 1..5000usize, h in 1..70usize, weights in prop::collection::vec(1..5u32, 1..9)) {
            let tree = ReductionTree::over_granules(inputs, h);
            let total: u32 = weights.iter().sum();
            let targets: Vec<f64> = weights.iter().map(|&w| inputs as f64 * f64::from(w) / f64::from(total)).collect();
            let cuts = leaves(&tree, &targets);
            let largest = (0..tree.num_leaves()).map(|l| tree.inputs_of(l..l + 1).len()).max().unwrap();
            for (range, target) in ranges(&cuts).into_iter().zip(&targets) {
                prop_assert!(tree.inputs_of(range).len() as f64 <= target + largest as f64 + 1e-6);
            }
            prop_assert_eq!(cuts[cuts.len() - 1], tree.num_leaves());
        }
    }
}
