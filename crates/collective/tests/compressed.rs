//! Compressed all-reduces: near the exact sums, the same on all ranks, and in half the bytes or less.

use collective::{
    Collective, Compressed, Group, ReducePlan, SharedConfig, SharedGroup, WireDType, conformance,
};
use tensor::{Device, ReductionTree, Reference};

const COMPRESSED: [WireDType; 3] = [WireDType::Bfloat16, WireDType::Fp8, WireDType::Int8];

/// As engines hold it: chosen at run time.
type Boxed = Compressed<Box<dyn Collective<Reference> + Send>>;

fn group(ranks: usize, dtype: WireDType) -> Vec<Boxed> {
    let boxed = |rank| Compressed::new(Box::new(rank) as Box<dyn Collective<Reference> + Send>, dtype);
    SharedGroup::new(ranks, SharedConfig::default()).into_iter().map(boxed).collect()
}

/// Runs `work` on every rank and returns what they return.
fn on_all<R: Send>(ranks: Vec<Boxed>, work: impl Fn(usize, Boxed) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let work = &work;
        let spawn = |(rank, group)| scope.spawn(move || work(rank, group));
        let threads: Vec<_> = ranks.into_iter().enumerate().map(spawn).collect();
        threads.into_iter().map(|t| t.join().expect("a rank's thread")).collect()
    })
}

/// A tree over ids whose leaves are cut between ranks.
struct Split {
    tree: ReductionTree,
    cuts: Vec<usize>,
    plan: ReducePlan,
}

impl Split {
    fn new(cuts: &[usize]) -> Self {
        let tree = ReductionTree::over_ids(*cuts.last().expect("a last cut"));
        let leaves: Vec<_> = cuts.windows(2).map(|c| c[0]..c[1]).collect();
        let nodes_of_rank = leaves.iter().map(|l| tree.cover(l.clone()).len()).collect();
        let plan = ReducePlan { nodes_of_rank, finish: tree.finish(&leaves) };
        Split { tree, cuts: cuts.to_vec(), plan }
    }

    /// One rank's nodes, node-major.
    fn nodes(&self, rank: usize, elements: usize) -> Vec<f32> {
        let leaves = self.cuts[rank]..self.cuts[rank + 1];
        let program = self.tree.program(leaves.clone());
        let mut nodes = vec![0.0; program.num_nodes() * elements];
        for e in 0..elements {
            let sums = program.run(|i| value(leaves.start + i, e));
            sums.into_iter().enumerate().for_each(|(node, sum)| nodes[node * elements + e] = sum);
        }
        nodes
    }

    /// Each element's exact sum, and how far off a compressed one may be.
    fn sums(&self, elements: usize, dtype: WireDType) -> Vec<(f64, f64)> {
        let nodes: Vec<Vec<f32>> = (0..self.cuts.len() - 1)
            .flat_map(|rank| {
                let nodes = self.nodes(rank, elements);
                nodes.chunks(elements.max(1)).map(<[f32]>::to_vec).collect::<Vec<_>>()
            })
            .collect();
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |m: f64, x| m.max(x.abs()));
        let most_of: Vec<f64> = nodes.iter().map(|n| most(&mut n.iter().map(|x| f64::from(*x)))).collect();
        let off = |x: f64, most: f64| match dtype {
            WireDType::Float32 => 0.0,
            WireDType::Bfloat16 => x.abs() / 256.0,
            WireDType::Fp8 => (x.abs() / 16.0).max(most / 400_000.0),
            WireDType::Int8 => most / 252.0,
        };
        let sum = |e: usize| -> f64 { nodes.iter().map(|n| f64::from(n[e])).sum() };
        let most_sum = most(&mut (0..elements).map(sum)) + most_of.iter().map(|m| off(*m, *m)).sum::<f64>();
        let of_element = |e: usize| {
            let came: f64 = nodes.iter().zip(&most_of).map(|(n, most)| off(f64::from(n[e]), *most)).sum();
            // f32's own rounding is far below any of these.
            (sum(e), 1.001 * (came + off(sum(e).abs() + came, most_sum)) + 1e-6)
        };
        (0..elements).map(of_element).collect()
    }
}

fn value(leaf: usize, element: usize) -> f32 {
    let h = (leaf as u32 * 7919 + element as u32).wrapping_mul(0x9E37_79B9);
    let h = (h ^ h >> 15).wrapping_mul(0x85EB_CA6B);
    (h ^ h >> 13) as f32 / u32::MAX as f32 - 0.5
}

/// Even ones, uneven ones, ranks with several nodes, ranks with none.
const CUTS: [&[usize]; 8] = [
    &[0, 1, 2],
    &[0, 3, 8],
    &[0, 0, 5],
    &[0, 6, 6],
    &[0, 2, 4, 6],
    &[0, 5, 5, 7],
    &[0, 1, 6, 7],
    &[0, 1, 2, 3, 3, 11],
];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn all_ranks_get_the_same_bits_near_the_exact_sum() {
    for (cuts, dtype) in CUTS.iter().flat_map(|cuts| COMPRESSED.map(|dtype| (cuts, dtype))) {
        let split = Split::new(cuts);
        for [rows, cols] in [[1, 1], [1, 31], [3, 33], [1, 64], [7, 65], [2, 2048], [40, 517]] {
            let sums = on_all(group(cuts.len() - 1, dtype), |rank, group| {
                let dev = Reference;
                let partial = split.nodes(rank, rows * cols);
                let partial = dev.upload(&partial, split.plan.nodes_of_rank[rank] * rows, cols);
                let sum = group.all_reduce(&dev, partial, rows, &split.plan).expect("all_reduce");
                assert_eq!(dev.shape(&sum), [rows, cols]);
                dev.download(&sum).expect("download")
            });
            assert!(sums.iter().all(|s| bits(s) == bits(&sums[0])), "{dtype:?} {cuts:?} [{rows}, {cols}]");
            for (found, (expected, off)) in sums[0].iter().zip(split.sums(rows * cols, dtype)) {
                let near = (f64::from(*found) - expected).abs() <= off;
                assert!(near, "{dtype:?} {cuts:?} [{rows}, {cols}]: {found} for {expected} ± {off}");
            }
        }
    }
}

#[test]
fn a_rank_gets_its_rows_of_a_reduce_scatter() {
    for (cuts, dtype) in CUTS.iter().flat_map(|cuts| COMPRESSED.map(|dtype| (cuts, dtype))) {
        let (split, ranks) = (Split::new(cuts), cuts.len() - 1);
        for (rows_of_rank, cols) in [(vec![1; ranks], 64), ((0..ranks).map(|r| 5 * (r % 2)).collect(), 99)] {
            let rows: usize = rows_of_rank.iter().sum();
            let parts = on_all(group(ranks, dtype), |rank, group| {
                let dev = Reference;
                let partial = split.nodes(rank, rows * cols);
                let partial = dev.upload(&partial, split.plan.nodes_of_rank[rank] * rows, cols);
                let part = group.reduce_scatter(&dev, partial, &rows_of_rank, &split.plan);
                let part = part.expect("reduce_scatter");
                assert_eq!(dev.shape(&part), [rows_of_rank[rank], cols]);
                dev.download(&part).expect("download")
            });
            for (found, (expected, off)) in parts.concat().iter().zip(split.sums(rows * cols, dtype)) {
                let near = (f64::from(*found) - expected).abs() <= off;
                assert!(near, "{dtype:?} {cuts:?} {rows_of_rank:?}: {found} for {expected} ± {off}");
            }
        }
    }
}

#[test]
fn an_empty_matrix_and_a_single_rank_need_nothing() {
    for dtype in WireDType::ALL {
        on_all(group(2, dtype), |_, group| {
            let plan = Split::new(&[0, 1, 2]).plan;
            let sum = group.all_reduce(&Reference, Reference.alloc(0, 8), 0, &plan).expect("all_reduce");
            assert_eq!(Reference.shape(&sum), [0, 8]);
        });
        on_all(group(1, dtype), |_, group| {
            let split = Split::new(&[0, 1]);
            let own = Reference.upload(&split.nodes(0, 100), 1, 100);
            let sum = group.all_reduce(&Reference, own, 1, &split.plan).expect("all_reduce");
            assert_eq!(bits(&Reference.download(&sum).expect("download")), bits(&split.nodes(0, 100)));
        });
    }
}

#[test]
fn what_is_sent_is_counted_and_half_of_float32_or_less() {
    let bytes_of = |ranks: usize, dtype| -> Vec<u64> {
        let split = Split::new(&(0..=ranks).collect::<Vec<_>>());
        on_all(group(ranks, dtype), |rank, group| {
            let partial = Reference.upload(&split.nodes(rank, 2 * 3072), 2, 3072);
            group.all_reduce(&Reference, partial, 2, &split.plan).expect("all_reduce");
            let stats = group.stats();
            assert_eq!((stats.all_reduce_calls, stats.other_calls, stats.sent_bytes), (1, 0, 0), "{stats:?}");
            stats.all_reduce_bytes
        })
    };
    for ranks in [2, 3, 4] {
        let float32 = 2 * 3072 * 4;
        assert_eq!(bytes_of(ranks, WireDType::Float32), vec![float32; ranks]);
        assert_eq!(bytes_of(ranks, WireDType::Bfloat16), vec![float32 / 2; ranks]);
        for dtype in [WireDType::Fp8, WireDType::Int8] {
            assert_eq!(bytes_of(ranks, dtype), vec![float32 * 17 / 64; ranks]);
        }
    }
}

#[test]
fn what_is_not_finite_is_still_noticed() {
    for (bad, dtype) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
        .into_iter()
        .flat_map(|bad| COMPRESSED.map(|dtype| (bad, dtype)))
    {
        let split = Split::new(&[0, 1, 2, 3]);
        on_all(group(3, dtype), |rank, group| {
            let mut partial = split.nodes(rank, 400);
            if rank == 1 {
                partial[7] = bad;
                partial[399] = bad;
            }
            let partial = Reference.upload(&partial, 1, 400);
            let sum = group.all_reduce(&Reference, partial, 1, &split.plan).expect("all_reduce");
            let sum = Reference.download(&sum).expect("download");
            assert!(!sum[7].is_finite() && !sum[399].is_finite(), "{dtype:?} {bad}: {} {}", sum[7], sum[399]);
            assert!(sum[100].is_finite(), "other blocks are as they were");
        });
    }
}

#[test]
fn the_rest_is_the_inner_group_and_float32_is_all_of_it() {
    for ranks in [1, 3] {
        let make = |ranks, deadline| {
            let inner = SharedGroup::new(ranks, SharedConfig { deadline, ..SharedConfig::default() });
            inner.into_iter().map(|rank| Compressed::new(rank, WireDType::Float32)).collect::<Vec<_>>()
        };
        conformance::run(ranks, make, |_| Reference);
    }
}
