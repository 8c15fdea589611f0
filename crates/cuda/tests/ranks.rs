//! Ranks on GPUs that use each other's memory: what they sum has the bits of the processor's, and nobody waits for ever.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use collective::{
    Collective, CollectiveError, CollectiveStats, Compressed, Group, ReducePlan, SharedConfig, SharedGroup,
    SharedRank, WireDType, conformance,
};
use cuda::{CudaDevice, CudaGroup};
use tensor::{Device, NormKind, NormSpec, ReductionTree, Reference, RowNorm};

mod emulated;
use emulated::{Emulated, Launches};

const LONG: Duration = Duration::from_secs(60);

fn can_emulate() -> bool {
    Emulated::new(0).is_some()
}

/// What two ranks share: of one that is narrow each has a block, of one that is wide many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gpu {
    Narrow,
    Wide,
}

impl Gpu {
    /// A rank's device, and what runs there.
    fn device(self, rank: usize) -> (CudaDevice, Launches) {
        let (turn, multiprocessors) = match self {
            Gpu::Narrow => (rank, 2),
            // A block waits for the same one of other ranks, and blocks run one after another: all must begin at the same end.
            Gpu::Wide => (2 * rank, 32),
        };
        let mut driver = Emulated::new(turn as u32).expect("there is a compiler");
        (driver.ordinal, driver.multiprocessors) = (Some(rank as u32 / 2), multiprocessors);
        let launches = driver.launches.clone();
        (CudaDevice::new(Box::new(driver)), launches)
    }
}

fn groups(
    ranks: usize,
    deadline: Duration,
    wire: WireDType,
    slot_bytes: usize,
) -> Vec<CudaGroup<SharedRank>> {
    // No spinning: tests have more ranks than cores.
    let config = SharedConfig { deadline, spin: Duration::ZERO, ..SharedConfig::default() };
    let group = |rank| CudaGroup::new(rank, wire, deadline).with_slots(slot_bytes);
    SharedGroup::new(ranks, config).into_iter().map(group).collect()
}

#[test]
fn groups_of_gpus_are_groups() {
    if !can_emulate() {
        return;
    }
    for (gpu, ranks, slot_bytes) in
        [(Gpu::Narrow, 2, 1 << 20), (Gpu::Narrow, 3, 4096), (Gpu::Wide, 2, 1 << 20)]
    {
        let make = |ranks, deadline| groups(ranks, deadline, WireDType::Float32, slot_bytes);
        conformance::run(ranks, make, |rank| gpu.device(rank).0);
    }
}

/// Runs `work` on all ranks of a group on such GPUs that knows its ways, with what ran there.
fn on_all(
    gpu: Gpu,
    groups: Vec<CudaGroup<SharedRank>>,
    work: impl Fn(usize, &CudaGroup<SharedRank>, &CudaDevice, &Launches) + Sync,
) {
    let all_are_ready = Barrier::new(groups.len());
    std::thread::scope(|scope| {
        for (rank, group) in groups.into_iter().enumerate() {
            let (work, all_are_ready) = (&work, &all_are_ready);
            scope.spawn(move || {
                let (dev, launches) = gpu.device(rank);
                all_are_ready.wait();
                group.prepare(&dev).expect("prepare");
                work(rank, &group, &dev, &launches);
            });
        }
    });
}

/// A case on both GPUs.
fn both<T: Copy>(case: T) -> [(Gpu, T); 2] {
    [(Gpu::Narrow, case), (Gpu::Wide, case)]
}

/// How often one of these kernels ran, and in how many blocks at most.
fn ran(launches: &Launches, names: &[&str]) -> [u32; 2] {
    let launches = launches.borrow();
    let of = names.iter().filter_map(|name| launches.get(name));
    of.fold([0; 2], |[times, most], of| [times + of[0], most.max(of[1])])
}

/// A tree whose leaves are cut between ranks.
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

    /// Cuts for so many ranks: even ones, with several nodes each, and with none for some.
    fn of(ranks: usize) -> Vec<Split> {
        let even: Vec<usize> = (0..=ranks).collect();
        let uneven: Vec<usize> = (0..=ranks).map(|rank| rank * (rank + 1) / 2 + rank).collect();
        let empty: Vec<usize> = (0..=ranks).map(|rank| if rank < ranks { rank / 2 } else { 5 }).collect();
        [even, uneven, empty].iter().map(|cuts| Split::new(cuts)).collect()
    }

    fn nodes(&self, rank: usize, elements: usize, seed: u32) -> Vec<f32> {
        let leaves = self.cuts[rank]..self.cuts[rank + 1];
        let program = self.tree.program(leaves.clone());
        let mut nodes = vec![0.0; program.num_nodes() * elements];
        for e in 0..elements {
            let sums = program.run(|i| value((leaves.start + i) as u32, e as u32 ^ seed << 20));
            sums.into_iter().enumerate().for_each(|(node, sum)| nodes[node * elements + e] = sum);
        }
        nodes
    }

    fn partial<D: Device>(&self, dev: &D, rank: usize, [rows, cols]: [usize; 2], seed: u32) -> D::Tensor {
        dev.upload(&self.nodes(rank, rows * cols, seed), self.plan.nodes_of_rank[rank] * rows, cols)
    }

    fn sums(&self, elements: usize, seed: u32) -> Vec<u32> {
        let sum = |e: usize| {
            let sums =
                self.tree.program(0..self.tree.num_leaves()).run(|i| value(i as u32, e as u32 ^ seed << 20));
            sums[0].to_bits()
        };
        (0..elements).map(sum).collect()
    }
}

/// Numbers of very different sizes, whose sums depend on the order.
fn value(a: u32, b: u32) -> f32 {
    let h = (a.wrapping_mul(0x9E37_79B9) ^ b).wrapping_mul(0x85EB_CA6B);
    let h = (h ^ h >> 13).wrapping_mul(0xC2B2_AE35);
    let h = h ^ h >> 16;
    (h as f32 / u32::MAX as f32 - 0.5) * [1e-3, 1e-1, 1.0, 30.0, 1e4][h as usize % 5]
}

fn bits<D: Device>(dev: &D, x: &D::Tensor) -> Vec<u32> {
    dev.download(x).expect("numbers").iter().map(|x| x.to_bits()).collect()
}

#[test]
fn one_shot_and_two_shots_have_the_bits_of_the_tree() {
    if !can_emulate() {
        return;
    }
    for (gpu, ranks) in [2, 3, 4, 8].into_iter().flat_map(both) {
        let splits = Split::of(ranks);
        for (slot_bytes, one_shot_bytes) in
            [(1 << 20, usize::MAX), (1 << 20, 0), (2048, 0), (2048, usize::MAX)]
        {
            let groups = groups(ranks, LONG, WireDType::Float32, slot_bytes);
            on_all(gpu, groups, |rank, group, dev, launches| {
                assert_eq!(group.path(), "peer memory");
                group.set_one_shot_bytes(one_shot_bytes);
                for (seed, split) in (0..).zip(&splits) {
                    for shape in [[1, 1], [1, 64], [3, 17], [7, 36], [64, 8], [20, 333]] {
                        let partial = split.partial(dev, rank, shape, seed);
                        let sum = group.all_reduce(dev, partial, shape[0], &split.plan).expect("all_reduce");
                        let elements = shape[0] * shape[1];
                        assert!(bits(dev, &sum) == split.sums(elements, seed), "{ranks} ranks, {shape:?}");
                    }
                }
                let name = if one_shot_bytes == 0 { "two_shot" } else { "one_shot" };
                let names = ["fours", "ones"].map(|of| format!("{name}_{of}"));
                let [_, blocks] = ran(launches, &names.each_ref().map(|name| &**name));
                // A rank's part of what a small slot holds is little.
                let has_many = gpu == Gpu::Wide && slot_bytes > 2048;
                assert!(blocks == 1 || gpu == Gpu::Wide, "{blocks} blocks");
                assert!(blocks > 1 || !has_many, "{name} in one block");
            });
        }
    }
}

/// More calls than there are slots, nobody reading anything in between, some ranks late.
#[test]
fn many_calls_follow_each_other() {
    if !can_emulate() {
        return;
    }
    let (ranks, split, shape) = (3, &Split::of(3)[1], [2, 40]);
    for gpu in [Gpu::Narrow, Gpu::Wide] {
        on_all(gpu, groups(ranks, LONG, WireDType::Float32, 1 << 16), |rank, group, dev, _| {
            for round in 0..20 {
                let mut sums = Vec::new();
                for seed in 0..10 {
                    group.set_one_shot_bytes(if (seed + round) % 3 == 0 { 0 } else { usize::MAX });
                    if (seed as usize + rank).is_multiple_of(4) {
                        std::thread::yield_now();
                    }
                    let partial = split.partial(dev, rank, shape, seed);
                    sums.push(group.all_reduce(dev, partial, shape[0], &split.plan).expect("all_reduce"));
                }
                for (seed, sum) in (0..).zip(&sums) {
                    assert!(bits(dev, sum) == split.sums(80, seed), "round {round}, call {seed}");
                }
            }
        });
    }
}

/// Matrices of some megabytes, of all sizes beside multiples of four and of what a ring holds, and rows for all of all.
#[test]
fn what_ranks_hand_each_other_is_what_they_sent() {
    if !can_emulate() {
        return;
    }
    let content = |from: usize, case: usize, count: usize| -> Vec<f32> {
        (0..count as u32).map(|i| value((from * 100 + case) as u32, i)).collect()
    };
    let shapes = [[1, 1], [0, 7], [3, 5], [8, 64], [1030, 1021], [2, 3], [700, 1111]];
    for (gpu, ranks) in [2, 3].into_iter().flat_map(both) {
        on_all(gpu, groups(ranks, LONG, WireDType::Float32, 1 << 16), |rank, group, dev, launches| {
            let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
            for (case, [rows, cols]) in shapes.into_iter().enumerate() {
                let x = dev.upload(&content(rank, case, rows * cols), rows, cols);
                let send = || group.send(dev, &x, next).expect("send");
                let receive = || {
                    let deadline = [None, Some(LONG)][case % 2];
                    let came = group.recv(dev, before, rows, cols, deadline).expect("recv");
                    assert!(
                        dev.download(&came).expect("numbers") == content(before, case, rows * cols),
                        "{case}"
                    );
                };
                // No ring holds all of it, so somebody must take something first.
                if rank == 0 {
                    send();
                    receive();
                } else {
                    receive();
                    send();
                }
            }
            for (case, cols) in [1, 6, 33, 4099].into_iter().enumerate() {
                let rows = |from: usize, to: usize| {
                    (3 * from + 5 * to + case) % 7 * usize::from(from != 1 || to != 0)
                };
                let to: Vec<usize> = (0..ranks).map(|to| rows(rank, to)).collect();
                let from: Vec<usize> = (0..ranks).map(|from| rows(from, rank)).collect();
                let all = content(rank, case, to.iter().sum::<usize>() * cols);
                let x = dev.upload(&all, to.iter().sum(), cols);
                let sent = group.stats().sent_bytes;
                let came = group.all_to_all(dev, &x, &to, &from).expect("all_to_all");
                let others = to.iter().sum::<usize>() - to[rank];
                assert_eq!(group.stats().sent_bytes - sent, 4 * (others * cols) as u64);
                let mut expected = Vec::new();
                for (of, &count) in from.iter().enumerate() {
                    let first: usize = (0..rank).map(|to| rows(of, to)).sum();
                    let all: usize = (0..ranks).map(|to| rows(of, to)).sum();
                    expected.extend(&content(of, case, all * cols)[first * cols..(first + count) * cols]);
                }
                assert!(dev.download(&came).expect("numbers") == expected, "{cols} columns");
            }
            assert_eq!(ran(launches, &["move_words"])[1], if gpu == Gpu::Wide { 8 } else { 1 }, "lanes");
        });
    }
}

/// A message that never comes, and one for which there is no room because nobody takes what is there.
#[test]
fn who_hands_nothing_on_or_takes_nothing_is_named() {
    if !can_emulate() {
        return;
    }
    let deadline = Duration::from_secs(1);
    for (gpu, is_sent) in [false, true].into_iter().flat_map(both) {
        on_all(gpu, groups(2, deadline, WireDType::Float32, 1 << 16), |rank, group, dev, _| {
            if rank == 1 {
                group.send(dev, &dev.upload(&[1.0; 30_000], 300, 100), 0).expect("send");
                while group.check().is_ok() {
                    std::thread::yield_now();
                }
                return;
            }
            group.recv(dev, 1, 300, 100, None).expect("recv");
            let began = Instant::now();
            let error = match is_sent {
                false => group.recv(dev, 1, 2, 3, Some(deadline)).map(drop).expect_err("nothing was sent"),
                true => {
                    let x = dev.upload(&vec![1.0; 1 << 20], 1 << 10, 1 << 10);
                    (0..).find_map(|_| group.send(dev, &x, 1).err()).expect("nobody takes it")
                }
            };
            let text = error.to_string();
            let op = if is_sent { "send number" } else { "recv number 2 on rank 0" };
            assert!(text.contains(op) && text.contains("rank [1] did not arrive within 1 s"), "{text}");
            assert!(began.elapsed() < 10 * deadline, "{:?}", began.elapsed());
            assert!(dev.download(&dev.alloc(1, 1)).is_err(), "what follows is nothing");
        });
    }
}

#[test]
fn a_rank_that_never_comes_is_named_within_the_deadline() {
    if !can_emulate() {
        return;
    }
    let deadline = Duration::from_secs(2);
    let (ranks, split) = (4, &Split::of(4)[0]);
    let groups = groups(ranks, deadline, WireDType::Float32, 1 << 16);
    on_all(Gpu::Narrow, groups, |rank, group, dev, launches| {
        let reduce = || group.all_reduce(dev, split.partial(dev, rank, [1, 8], 0), 1, &split.plan);
        reduce().expect("all come");
        if rank == 2 {
            // It lives, but does not come before the others have given up.
            while group.check().is_ok() {
                std::thread::yield_now();
            }
            assert!(reduce().is_err(), "nobody waits for it any more");
            return;
        }
        let began = Instant::now();
        let error = reduce().err().expect("a rank is missing");
        assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
        let text = error.to_string();
        assert!(
            text.contains("all_reduce number") && text.contains("rank [2] did not arrive within 2 s"),
            "{text}"
        );
        // What is read says so too, and nothing waits again: neither a kernel nor the host.
        let before = (launches.borrow().clone(), group.stats().waits);
        let lost = dev.download(&dev.alloc(1, 1)).expect_err("it was never computed").to_string();
        assert!(lost.contains("all_reduce") && lost.contains("rank [2]"), "{lost}");
        assert!(matches!(reduce(), Err(CollectiveError::Missing { .. } | CollectiveError::Failed { .. })));
        assert_eq!((launches.borrow().clone(), group.stats().waits), before);
    });
}

/// A rank that can't share memory, or whose writes others don't see: all of them go through the host.
#[test]
fn ranks_whose_memory_is_not_what_it_should_be_go_through_the_host() {
    if !can_emulate() {
        return;
    }
    let split = &Split::of(3)[1];
    for lost in [None, Some("copy_words")] {
        std::thread::scope(|scope| {
            for (rank, group) in groups(3, LONG, WireDType::Float32, 1 << 16).into_iter().enumerate() {
                scope.spawn(move || {
                    let mut driver = Emulated::new(0).expect("there is a compiler");
                    driver.ordinal = (rank != 1 || lost.is_some()).then_some(0);
                    driver.lost = lost.filter(|_| rank == 1);
                    let dev = CudaDevice::new(Box::new(driver));
                    let group = group.called(&[4, 6, 5]);
                    let why = group.prepare(&dev).expect("prepare").expect("a reason");
                    let expected = ["memory: rank 6: its GPU's memory can't", "in rank 4's memory"];
                    assert!(why.contains(expected[usize::from(lost.is_some())]), "{why}");
                    assert_eq!(group.path(), "through the host");
                    let sum = group.all_reduce(&dev, split.partial(&dev, rank, [3, 5], 7), 3, &split.plan);
                    assert_eq!(bits(&dev, &sum.expect("all_reduce")), split.sums(15, 7));
                });
            }
        });
    }
}

#[test]
fn a_fused_norm_has_the_bits_of_the_two_steps() {
    if !can_emulate() {
        return;
    }
    let norms = [NormKind::Rms { weight_offset: 1.0 }, NormKind::Layer];
    for (gpu, ranks) in [2, 3, 4].into_iter().flat_map(both) {
        let splits = Split::of(ranks);
        on_all(gpu, groups(ranks, LONG, WireDType::Float32, 1 << 18), |rank, group, dev, launches| {
            let cases = [[1, 64], [1, 33], [2, 512], [5, 100], [8, 36], [11, 33], [17, 8]];
            for (seed, (split, shape)) in (0..).zip(splits.iter().flat_map(|s| cases.map(|c| (s, c)))) {
                let [rows, cols] = shape;
                let vector = |seed: u32| {
                    dev.upload(&(0..cols as u32).map(|i| value(seed, i)).collect::<Vec<_>>(), 1, cols)
                };
                let (weight, bias) = (vector(1000 + seed), vector(2000 + seed));
                for (kind, post) in norms.iter().flat_map(|kind| [(*kind, false), (*kind, true)]) {
                    let spec = NormSpec { kind, eps: 1e-5 };
                    let is_layer = matches!(kind, NormKind::Layer);
                    let norm = || RowNorm { weight: &weight, bias: is_layer.then_some(&bias), spec };
                    let stream = || {
                        let data: Vec<f32> = (0..(rows * cols) as u32).map(|i| value(seed + 77, i)).collect();
                        dev.upload(&data, rows, cols)
                    };
                    let (mut x, mut expected) = (stream(), stream());
                    let partial = || split.partial(dev, rank, shape, seed);
                    let kernels = ["one_shot_norm_fours", "one_shot_norm_ones"];
                    let fusings = ran(launches, &kernels)[0];
                    let before = group.stats().all_reduce_calls;
                    let fused = group.all_reduce_add_norm(
                        dev,
                        partial(),
                        &split.plan,
                        &mut x,
                        post.then(norm),
                        norm(),
                    );
                    let fused = fused.expect("all_reduce_add_norm");
                    assert_eq!(group.stats().all_reduce_calls, before + 1);
                    // A wide GPU has sixteen blocks for each rank.
                    let is_fused = rows == 1 || gpu == Gpu::Wide && rows <= 16;
                    assert_eq!(ran(launches, &kernels)[0] - fusings, u32::from(is_fused), "{shape:?}");
                    let sum = group.all_reduce(dev, partial(), rows, &split.plan).expect("all_reduce");
                    let normed = dev.add_norm(&mut expected, &sum, post.then(norm), norm());
                    assert!(bits(dev, &x) == bits(dev, &expected), "the stream, {ranks} ranks, {shape:?}");
                    assert!(
                        bits(dev, &fused) == bits(dev, &normed),
                        "{kind:?} {post}, {ranks} ranks, {shape:?}"
                    );
                }
            }
        });
    }
}

/// What the processor's compressed group makes of the same nodes.
fn on_host(
    wire: WireDType,
    split: &Split,
    shape: [usize; 2],
    rows: Option<&[usize]>,
) -> Vec<(Vec<u32>, CollectiveStats)> {
    let group = |rank| Compressed::new(rank, wire);
    let groups = SharedGroup::new(split.cuts.len() - 1, SharedConfig::default()).into_iter().map(group);
    std::thread::scope(|scope| {
        let spawn = |(rank, group): (usize, Compressed<SharedRank>)| {
            scope.spawn(move || {
                let partial = split.partial(&Reference, rank, shape, 3);
                let sum = match rows {
                    None => group.all_reduce(&Reference, partial, shape[0], &split.plan),
                    Some(rows) => group.reduce_scatter(&Reference, partial, rows, &split.plan),
                };
                (bits(&Reference, &sum.expect("a sum")), group.stats())
            })
        };
        let threads: Vec<_> = groups.enumerate().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

#[test]
fn compressed_sums_have_the_bits_of_the_processors() {
    if !can_emulate() {
        return;
    }
    let cases = [(2, 1 << 18), (3, 1 << 18), (3, 8192), (4, 1 << 18)];
    for (gpu, (ranks, slot_bytes)) in cases.into_iter().flat_map(both) {
        for wire in [WireDType::Bfloat16, WireDType::Fp8, WireDType::Int8] {
            for split in &Split::of(ranks) {
                for shape in [[1, 1], [1, 64], [3, 33], [7, 65], [9, 411]] {
                    let rows_of_rank: Vec<usize> =
                        (0..ranks).map(|r| if r == 0 { shape[0] - shape[0] / 2 } else { 0 }).collect();
                    let mut rows_of_rank = rows_of_rank;
                    rows_of_rank[ranks - 1] += shape[0] / 2;
                    let sums = on_host(wire, split, shape, None);
                    let parts = on_host(wire, split, shape, Some(&rows_of_rank));
                    on_all(gpu, groups(ranks, LONG, wire, slot_bytes), |rank, group, dev, _| {
                        let what = format!("{wire:?}, {ranks} ranks, {shape:?}");
                        let sum =
                            group.all_reduce(dev, split.partial(dev, rank, shape, 3), shape[0], &split.plan);
                        assert!(bits(dev, &sum.expect("all_reduce")) == sums[rank].0, "{what}");
                        let counted =
                            |stats: CollectiveStats| (stats.all_reduce_calls, stats.all_reduce_bytes);
                        assert_eq!(counted(group.stats()), counted(sums[rank].1), "{what}");
                        let partial = split.partial(dev, rank, shape, 3);
                        let part = group.reduce_scatter(dev, partial, &rows_of_rank, &split.plan);
                        assert!(
                            bits(dev, &part.expect("reduce_scatter")) == parts[rank].0,
                            "{what}, scattered"
                        );
                    });
                }
            }
        }
    }
}
