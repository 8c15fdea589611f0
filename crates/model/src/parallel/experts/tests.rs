use super::traffic::Rows;
use tensor::ReductionTree;

/// All ways to choose `k` of `n`.
fn choices(n: usize, k: usize) -> Vec<Vec<usize>> {
    let all = 0..1usize << n;
    let chosen = |bits: usize| (0..n).filter(|i| bits >> i & 1 == 1).collect::<Vec<_>>();
    all.map(chosen).filter(|c| c.len() == k).collect()
}

#[test]
fn the_expected_rows_are_the_mean_over_all_choices() {
    let placements: [&[usize]; 6] = [
        &[0, 0, 0, 0, 1, 1, 1, 1],
        &[0, 1, 2, 0, 1, 2, 0, 1],
        &[0, 0, 0, 1, 1, 1, 2, 2],
        &[2, 0, 0, 2, 0, 0, 0],
        &[0, 0, 0, 0, 0],
        &[1, 1, 0, 1, 0, 0, 1, 1, 1, 3],
    ];
    for rank_of in placements {
        let tree = ReductionTree::over_ids(rank_of.len());
        for k in 1..=rank_of.len().min(5) {
            let all = choices(rank_of.len(), k);
            let (mut sent, mut returned) = (0, 0);
            for chosen in &all {
                let mut ranks: Vec<_> = chosen.iter().map(|&e| rank_of[e]).collect();
                ranks.sort();
                ranks.dedup();
                sent += ranks.len();
                returned += tree.runs(chosen, |a, b| rank_of[a] == rank_of[b]).len();
            }
            let rows = Rows::expected(rank_of, 4, k);
            let mean = |sum: usize| sum as f64 / all.len() as f64;
            assert!((rows.sent - mean(sent)).abs() < 1e-12, "{rank_of:?}, {k}: {} {}", rows.sent, mean(sent));
            assert!((rows.returned - mean(returned)).abs() < 1e-12, "{rank_of:?}, {k}: {}", rows.returned);
        }
    }
}
