//! What every backend of [`Collective`] must do. Each backend's tests call [`run`].

use std::ops::Range;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use tensor::{Device, ReductionTree};

use crate::{Collective, CollectiveError, ReducePlan};

/// A deadline that no check reaches unless something hangs.
const LONG: Duration = Duration::from_secs(60);
/// A deadline that is waited for.
const SHORT: Duration = Duration::from_millis(100);

/// Runs all checks on groups of `ranks` threads and panics at the first that does not hold.
///
/// `make_group(ranks, deadline)` makes the ranks of a fresh group, `make_device(rank)` a rank's device on its thread.
pub fn run<D: Device, C: Collective<D> + Send>(
    ranks: usize,
    make_group: impl Fn(usize, Duration) -> Vec<C> + Sync,
    make_device: impl Fn(usize) -> D + Sync,
) {
    let checks = Checks { ranks, make_group, make_device };
    checks.trees();
    checks.sizes();
    checks.gathers();
    checks.broadcasts();
    checks.mixed_calls();
    if ranks > 1 {
        checks.a_missing_rank_is_named();
        checks.a_failure_ends_all();
        checks.an_end_ends_all();
    }
}

/// A plan, and the leaves that each rank owns.
struct Split {
    tree: ReductionTree,
    leaves: Vec<Range<usize>>,
    plan: ReducePlan,
}

impl Split {
    fn new(tree: &ReductionTree, cuts: &[usize]) -> Self {
        let leaves: Vec<_> = cuts.windows(2).map(|c| c[0]..c[1]).collect();
        let nodes_of_rank = leaves.iter().map(|l| tree.cover(l.clone()).len()).collect();
        let plan = ReducePlan { nodes_of_rank, finish: tree.finish(&leaves) };
        Split { tree: tree.clone(), leaves, plan }
    }

    /// Even cuts, three uneven ones, and cuts where only the first or the last rank owns something.
    fn all(tree: &ReductionTree, ranks: usize) -> Vec<Self> {
        let n = tree.num_leaves();
        let uneven = |seed: u32| (1..ranks).map(move |r| hash(seed, r as u32) as usize % (n + 1));
        let mut cuts: Vec<Vec<usize>> = vec![(0..=ranks).map(|r| r * n / ranks).collect()];
        cuts.extend((0..3).map(|seed| uneven(seed).chain([0, n]).collect()));
        cuts.extend([0, n].map(|middle| [0].into_iter().chain(vec![middle; ranks - 1]).chain([n]).collect()));
        cuts.iter_mut().for_each(|c| c.sort());
        cuts.iter().map(|c| Split::new(tree, c)).collect()
    }

    /// `[nodes · elements]`: the sums of the nodes that cover `leaves`.
    fn sums(&self, leaves: Range<usize>, elements: usize, seed: u32) -> Vec<f32> {
        let program = self.tree.program(leaves.clone());
        let mut sums = vec![0.0; program.num_nodes() * elements];
        for e in 0..elements {
            let nodes = program.run(|i| value(hash(seed, e as u32), (leaves.start + i) as u32));
            nodes.into_iter().enumerate().for_each(|(node, sum)| sums[node * elements + e] = sum);
        }
        sums
    }

    /// All-reduces `[rows, cols]` and compares with the whole tree on one rank.
    fn check<D: Device>(&self, group: &impl Collective<D>, dev: &D, rows: usize, cols: usize, seed: u32) {
        let rank = group.rank();
        let partial = self.sums(self.leaves[rank].clone(), rows * cols, seed);
        let partial = dev.upload(&partial, self.plan.nodes_of_rank[rank] * rows, cols);
        let sum = group.all_reduce(dev, partial, rows, &self.plan).expect("all_reduce");
        assert_eq!(dev.shape(&sum), [rows, cols]);
        let expected = self.sums(0..self.tree.num_leaves(), rows * cols, seed);
        let sum = dev.download(&sum).expect("download");
        assert!(bits(&sum) == bits(&expected), "other bits: {:?}, [{rows}, {cols}]", self.leaves);
    }
}

struct Checks<G, M> {
    ranks: usize,
    make_group: G,
    make_device: M,
}

impl<D, C, G, M> Checks<G, M>
where
    D: Device,
    C: Collective<D> + Send,
    G: Fn(usize, Duration) -> Vec<C> + Sync,
    M: Fn(usize) -> D + Sync,
{
    /// Runs `work` on all ranks of a fresh group, each on its thread. The group ends when `work` does.
    fn on_all(&self, deadline: Duration, work: impl Fn(usize, C, D) + Sync) {
        let group = (self.make_group)(self.ranks, deadline);
        assert_eq!(group.len(), self.ranks);
        std::thread::scope(|scope| {
            for (rank, group) in group.into_iter().enumerate() {
                let (work, make_device) = (&work, &self.make_device);
                scope.spawn(move || {
                    assert_eq!((group.rank(), group.size()), (rank, self.ranks));
                    work(rank, group, make_device(rank));
                });
            }
        });
    }

    fn trees(&self) {
        let heads = [6, 8, 32].map(|heads| ReductionTree::over_heads(heads, 4));
        let granules =
            [(136, 6), (1000, 32)].map(|(inputs, heads)| ReductionTree::over_granules(inputs, heads));
        let trees: Vec<_> =
            heads.into_iter().chain(granules).chain([1, 5, 128].map(ReductionTree::over_ids)).collect();
        let splits: Vec<_> = trees.iter().flat_map(|tree| Split::all(tree, self.ranks)).collect();
        self.on_all(LONG, |_, group, dev| {
            for (seed, split) in splits.iter().enumerate() {
                split.check(&group, &dev, 1 + seed % 3, 1 + 13 * (seed % 5), seed as u32);
            }
            assert_eq!(group.stats().all_reduce_calls, splits.len() as u64);
        });
    }

    fn sizes(&self) {
        let tree = ReductionTree::over_heads(6, 4);
        let splits = Split::all(&tree, self.ranks);
        self.on_all(LONG, |rank, group, dev| {
            let mut bytes = 0;
            for rows in [0, 1, 2, 7, 100] {
                for cols in [1, 17, 64, 2048] {
                    // The largest only once for even and once for uneven cuts.
                    for split in &splits[..if rows * cols > 20_000 { 2 } else { splits.len() }] {
                        split.check(&group, &dev, rows, cols, (rows * cols) as u32);
                        bytes += split.plan.nodes_of_rank[rank] * rows * cols * size_of::<f32>();
                    }
                }
            }
            assert_eq!(group.stats().all_reduce_bytes, bytes as u64);
        });
    }

    fn gathers(&self) {
        let rows_of_rank = |case: usize| (0..self.ranks).map(move |r| [1, r, 150 * ((r + 1) % 2), 0][case]);
        self.on_all(LONG, |rank, group, dev| {
            for (case, cols) in (0..4).flat_map(|case| [1, 17, 2048].map(|cols| (case, cols))) {
                let rows: Vec<usize> = rows_of_rank(case).collect();
                let of = |rank: usize| -> Vec<f32> {
                    (0..rows[rank] * cols).map(|i| value(rank as u32, i as u32)).collect()
                };
                let part = dev.upload(&of(rank), rows[rank], cols);
                let all = group.all_gather(&dev, &part, &rows).expect("all_gather");
                assert_eq!(dev.shape(&all), [rows.iter().sum(), cols]);
                let expected: Vec<f32> = (0..self.ranks).flat_map(of).collect();
                assert!(bits(&dev.download(&all).expect("download")) == bits(&expected), "rows {rows:?}");
                let all = group.all_gather_host(&of(rank)).expect("all_gather_host");
                assert!(all == (0..self.ranks).map(of).collect::<Vec<_>>(), "lengths {rows:?} · {cols}");
            }
        });
    }

    fn broadcasts(&self) {
        self.on_all(LONG, |rank, group, _| {
            for (seed, len) in [0, 3, 5_000_001, 1, 0].into_iter().enumerate() {
                let sent: Vec<u8> = (0..len).map(|i| hash(seed as u32, i) as u8).collect();
                // The others' content and length must not matter.
                let mut bytes = if rank == 0 { sent.clone() } else { vec![1; 7 * rank] };
                group.broadcast(&mut bytes, [Some(LONG), None][seed % 2]).expect("broadcast");
                assert!(bytes == sent, "{len} bytes");
                group.barrier().expect("barrier");
            }
        });
    }

    /// Hundreds of calls in a row, some ranks late at each.
    fn mixed_calls(&self) {
        let splits = Split::all(&ReductionTree::over_heads(8, 4), self.ranks);
        self.on_all(LONG, |rank, group, dev| {
            for call in 0..400 {
                let (shared, own) = (hash(7, call), hash(rank as u32 + 100, call));
                (0..own % 4 * (own >> 8) % 5_000).for_each(|_| std::hint::spin_loop());
                match shared % 5 {
                    0 | 1 => {
                        let split = &splits[(shared >> 8) as usize % splits.len()];
                        split.check(
                            &group,
                            &dev,
                            1 + (shared >> 12) as usize % 9,
                            1 + (shared >> 16) as usize % 70,
                            call,
                        );
                    }
                    2 => {
                        let len = |r: usize| (shared >> 8) as usize % (10 * (r + 1));
                        let all =
                            group.all_gather_host(&vec![rank as f32; len(rank)]).expect("all_gather_host");
                        assert_eq!(all, (0..self.ranks).map(|r| vec![r as f32; len(r)]).collect::<Vec<_>>());
                    }
                    3 => {
                        let mut bytes = if rank == 0 { shared.to_le_bytes().to_vec() } else { Vec::new() };
                        group.broadcast(&mut bytes, None).expect("broadcast");
                        assert_eq!(bytes, shared.to_le_bytes());
                    }
                    _ => group.barrier().expect("barrier"),
                }
            }
        });
    }

    fn a_missing_rank_is_named(&self) {
        let last = self.ranks - 1;
        let seen = Barrier::new(self.ranks);
        self.on_all(SHORT, |rank, group, _| {
            if rank == last {
                seen.wait(); // alive, but it does not come
                assert!(group.barrier().is_err(), "the others have given up");
                return;
            }
            let error = group.all_gather_host(&[1.0]).expect_err("a rank is missing");
            seen.wait();
            let text = error.to_string();
            assert!(text.contains("all_gather_host number 1 on rank"), "{text}");
            assert!(text.contains(&format!("rank [{last}] did not arrive")), "{text}");
            assert!(group.barrier().is_err(), "a group that lost a rank stays failed");
        });
    }

    fn a_failure_ends_all(&self) {
        let (last, began) = (self.ranks - 1, Instant::now());
        for op in 0..OPS {
            for failing in [0, last] {
                let expected =
                    CollectiveError::Failed { rank: failing, message: "out of memory: größer".into() };
                self.on_all(LONG, |rank, group, dev| {
                    group.barrier().expect("barrier");
                    if rank == failing {
                        (0..hash(op, 0) % 10_000).for_each(|_| std::hint::spin_loop());
                        group.fail("out of memory: größer");
                        group.fail("a second message");
                    }
                    for _ in 0..2 {
                        let error = call(op, &group, &dev, self.ranks).expect_err("a rank has failed");
                        assert_eq!(error, expected);
                    }
                });
            }
        }
        assert!(began.elapsed() < LONG, "a failure ends all at once");
    }

    fn an_end_ends_all(&self) {
        let (last, began) = (self.ranks - 1, Instant::now());
        for op in 0..OPS {
            for ending in [0, last] {
                self.on_all(LONG, |rank, group, dev| {
                    group.barrier().expect("barrier");
                    if rank == ending {
                        return;
                    }
                    let error = call(op, &group, &dev, self.ranks).expect_err("a rank has ended");
                    assert!(
                        matches!(error, CollectiveError::Failed { rank, .. } if rank == ending),
                        "{error}"
                    );
                });
            }
        }
        assert!(began.elapsed() < LONG, "an end ends all at once");
    }
}

/// Calls that wait for all ranks; `broadcast` without a deadline.
const OPS: u32 = 5;

fn call<D: Device>(
    op: u32,
    group: &impl Collective<D>,
    dev: &D,
    ranks: usize,
) -> Result<(), CollectiveError> {
    match op {
        0 => group.broadcast(&mut vec![1, 2, 3], None),
        1 => group.barrier(),
        2 => group.all_gather_host(&[1.0]).map(drop),
        3 => group.all_gather(dev, &dev.upload(&[1.0], 1, 1), &vec![1; ranks]).map(drop),
        _ => {
            let cuts: Vec<usize> = (0..=ranks).collect();
            let split = Split::new(&ReductionTree::over_ids(ranks), &cuts);
            group.all_reduce(dev, dev.upload(&[1.0], 1, 1), 1, &split.plan).map(drop)
        }
    }
}

fn hash(a: u32, b: u32) -> u32 {
    let h = (a.wrapping_mul(0x9E37_79B9) ^ b).wrapping_mul(0x85EB_CA6B);
    let h = (h ^ h >> 13).wrapping_mul(0xC2B2_AE35);
    h ^ h >> 16
}

/// Numbers of very different sizes, so that their sum depends on the order.
fn value(a: u32, b: u32) -> f32 {
    const SCALES: [f32; 5] = [1e-3, 1e-1, 1.0, 30.0, 1e4];
    let h = hash(a, b);
    (h as f32 / u32::MAX as f32 - 0.5) * SCALES[h as usize % 5]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
