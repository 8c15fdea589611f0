//! Ranks with a GPU each that exchange by NVIDIA's library, tried with libraries that stand for NVIDIA's. A process loads a library
//! once, so each test runs in a process of its own.

use std::process::Command;
use std::time::{Duration, Instant};

use collective::{
    Collective, CollectiveError, Group, ReducePlan, SharedConfig, SharedGroup, SharedRank, WireDType,
};
use cuda::nccl::Nccl;
use cuda::{CubinCache, CudaDevice, CudaGroup, Gpu, Reduction, Way};
use libloading::Library;
use tensor::{Device, ReductionTree, Reference};

mod fake;

/// Set in the process where a test's body runs.
const BODY: &str = "ANYSPLIT_TEST_BODY";
const LONG: Duration = Duration::from_secs(60);
/// After which ranks that are waited for in vain are given up; whoever is only held up comes before.
const SHORT: Duration = Duration::from_secs(3);

/// Runs the body of the test of this name where those libraries are found, and these variables are set.
fn with_libraries(test: &str, variables: &[(&str, &str)], body: fn()) {
    if std::env::var_os(BODY).is_some() {
        return body();
    }
    let Some(folder) = fake::libraries() else { return };
    let files = tempfile::tempdir().expect("a folder");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env("LD_LIBRARY_PATH", fake::search_path(folder))
        .env("TMPDIR", files.path())
        .env("FAKE_GPUS", "4")
        .env(BODY, "1")
        .envs(variables.iter().copied())
        .output()
        .expect("it can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{told}", String::from_utf8_lossy(&output.stdout));
    let left = std::fs::read_dir(files.path()).expect("the folder").count();
    assert!(left == 0 || test.contains("never_comes_about"), "ranks that met leave no files behind");
}

/// A number that the library counts.
fn counted(function: &str) -> u32 {
    counted_by("libnccl.so.2", function)
}

fn counted_by(library: &str, function: &str) -> u32 {
    // SAFETY: it is loaded already.
    let library = unsafe { Library::new(library) }.expect("the library");
    // SAFETY: the function takes nothing and gives a number.
    let count = unsafe { library.get::<unsafe extern "C" fn() -> u32>(function) }.expect("the function");
    // SAFETY: see above.
    unsafe { count() }
}

type Ranks = CudaGroup<SharedRank>;

fn shared(ranks: usize, deadline: Duration) -> Vec<SharedRank> {
    // No spinning: tests have more ranks than cores.
    SharedGroup::new(ranks, SharedConfig { deadline, spin: Duration::ZERO, ..SharedConfig::default() })
}

/// Runs `work` on a thread of each rank, with a GPU of its own, and gives what came of it.
fn on_all<R: Send>(
    ranks: usize,
    deadline: Duration,
    reduction: Reduction,
    work: impl Fn(usize, &Ranks, &CudaDevice) -> R + Sync,
) -> Vec<R> {
    let spawned = |(rank, host): (usize, SharedRank)| {
        let gpu = Gpu::open(rank as u32, &CubinCache::none()).expect("a GPU");
        let dev = CudaDevice::with(Box::new(gpu.driver(false).expect("a stream")), reduction);
        let group = CudaGroup::new(host, WireDType::Float32, deadline).by(Way::Nccl);
        work(rank, &group, &dev)
    };
    std::thread::scope(|scope| {
        let (spawned, group) = (&spawned, shared(ranks, deadline));
        let threads: Vec<_> =
            group.into_iter().enumerate().map(|rank| scope.spawn(move || spawned(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank's thread")).collect()
    })
}

fn hash(a: usize, b: usize) -> u32 {
    let h = ((a as u32).wrapping_mul(0x9E37_79B9) ^ b as u32).wrapping_mul(0x85EB_CA6B);
    (h ^ h >> 13).wrapping_mul(0xC2B2_AE35)
}

/// Numbers of very different sizes, so that their sum depends on the order.
fn values(seed: usize, count: usize) -> Vec<f32> {
    let value =
        |i| (hash(seed, i) as f32 / u32::MAX as f32 - 0.5) * 10f32.powi((hash(i, seed) % 9) as i32 - 4);
    (0..count).map(value).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// A plan for each way to cut leaves that matters: even, uneven, a rank without any.
fn plans(ranks: usize) -> Vec<ReducePlan> {
    let tree = ReductionTree::over_heads(12, 4);
    let even: Vec<usize> = (0..=ranks).map(|rank| 12 * rank / ranks).collect();
    let uneven =
        (0..=ranks).map(|rank| if rank == ranks { 12 } else { 7 * rank.min(1) + rank.saturating_sub(1) });
    let without = (0..=ranks).map(|rank| if rank == 0 { 0 } else { 12 });
    [even, uneven.collect(), without.collect()]
        .map(|cuts: Vec<usize>| {
            let leaves: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
            let nodes_of_rank = leaves.iter().map(|own| tree.cover(own.clone()).len()).collect();
            ReducePlan { nodes_of_rank, finish: tree.finish(&leaves) }
        })
        .into()
}

/// What a rank has after each of a number of collectives, as bits.
fn collectives<D: Device>(rank: usize, group: &impl Collective<D>, dev: &D) -> Vec<Vec<u32>> {
    let ranks = group.size();
    let mut all = Vec::new();
    let mut keep = |x: D::Tensor| all.push(bits(&dev.download(&x).expect("numbers")));
    for (number, plan) in plans(ranks).iter().enumerate() {
        // Small ones are summed directly, large ones in slices.
        for [rows, cols] in [[1, 1], [3, 17], [5, 4096], [64, 1023], [0, 8]] {
            let rows_of_rank: Vec<usize> =
                (0..ranks).map(|r| rows / ranks + usize::from(r < rows % ranks)).collect();
            let nodes = plan.nodes_of_rank[rank] * rows;
            let partial = || dev.upload(&values(100 * number + rank, nodes * cols), nodes, cols);
            keep(group.all_reduce(dev, partial(), rows, plan).expect("all_reduce"));
            keep(group.reduce_scatter(dev, partial(), &rows_of_rank, plan).expect("reduce_scatter"));
        }
    }
    for rows_of_rank in [vec![3; ranks], (0..ranks).collect(), vec![0; ranks]] {
        let part = dev.upload(&values(rank, 7 * rows_of_rank[rank]), rows_of_rank[rank], 7);
        keep(group.all_gather(dev, &part, &rows_of_rank).expect("all_gather"));
    }
    for uneven in [0, 1, 2] {
        let rows = |from: usize, to: usize| {
            2 + uneven * (from * from + to) % 5 - 2 * usize::from(uneven == 2 && from != to)
        };
        let to: Vec<usize> = (0..ranks).map(|to| rows(rank, to)).collect();
        let from: Vec<usize> = (0..ranks).map(|from| rows(from, rank)).collect();
        let x = dev.upload(&values(rank, 5 * to.iter().sum::<usize>()), to.iter().sum(), 5);
        keep(group.all_to_all(dev, &x, &to, &from).expect("all_to_all"));
    }
    let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    group.send(dev, &dev.upload(&values(rank, 6), 2, 3), next).expect("send");
    keep(group.recv(dev, before, 2, 3, Some(LONG)).expect("recv"));
    all
}

#[test]
fn what_is_exchanged_has_the_bits_of_the_hosts_groups() {
    with_libraries("what_is_exchanged_has_the_bits_of_the_hosts_groups", &[], || {
        for ranks in [2, 3, 4] {
            let found = on_all(ranks, LONG, Reduction::Canonical, |rank, group, dev| {
                group.prepare(dev).expect("prepare");
                assert_eq!(group.path(), "nccl");
                collectives(rank, group, dev)
            });
            let expected: Vec<_> = std::thread::scope(|scope| {
                let spawn = |(rank, group): (usize, SharedRank)| {
                    scope.spawn(move || collectives(rank, &group, &Reference))
                };
                let threads: Vec<_> = shared(ranks, LONG).into_iter().enumerate().map(spawn).collect();
                threads.into_iter().map(|thread| thread.join().expect("a rank's thread")).collect()
            });
            for (rank, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let differs = found.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(differs, None, "rank {rank} of {ranks}");
                assert_eq!(found.len(), expected.len());
            }
        }
        assert!(counted("fake_nccl_calls") > 100);
        assert_eq!(counted("fake_nccl_alive"), 0, "communicators are given back");
    });
}

/// Whether an exchange is part of a graph must be the same on all ranks, and each knows its own list only.
#[test]
fn no_exchange_is_part_of_a_graph() {
    with_libraries("no_exchange_is_part_of_a_graph", &[], || {
        on_all(3, LONG, Reduction::Canonical, |rank, group, dev| {
            group.prepare(dev).expect("prepare");
            let plan = &plans(3)[0];
            let mut asked = Vec::new();
            for step in 0..20 {
                let nodes = plan.nodes_of_rank[rank];
                let mut x = dev.upload(&values(step, 64), 1, 64);
                for layer in 0..4 {
                    let partial = dev.upload(&values(10 * step + layer + rank, 64 * nodes), nodes, 64);
                    dev.add(&mut x, &group.all_reduce(dev, partial, 1, plan).expect("all_reduce"));
                }
                // As stages do; what is between two exchanges is enough for a graph.
                if rank > 0 {
                    let came = group.recv(dev, rank - 1, 1, 64, None).expect("recv");
                    dev.add(&mut x, &came);
                }
                (0..8).for_each(|_| dev.scale(&mut x, 1.0));
                if rank < 2 {
                    group.send(dev, &x, rank + 1).expect("send");
                }
                let found = dev.download(&x).expect("numbers");
                group.barrier().expect("barrier");
                asked.push(counted("fake_nccl_calls"));
                group.barrier().expect("barrier");
                let mut expected = values(step, 64);
                for layer in 0..4 {
                    let own = |r: usize| values(10 * step + layer + r, 64 * plan.nodes_of_rank[r]);
                    let nodes: Vec<f32> = (0..3).flat_map(own).collect();
                    for (i, x) in expected.iter_mut().enumerate() {
                        *x += plan.finish.run(|node| nodes[64 * node + i])[0];
                    }
                }
                let own = expected.clone();
                for _ in 0..rank {
                    expected.iter_mut().zip(&own).for_each(|(x, own)| *x += own);
                }
                assert_eq!(bits(&found), bits(&expected), "step {step}");
            }
            // 4 reductions of all, and 2 pairs.
            let of_step: Vec<u32> = asked.windows(2).map(|two| two[1] - two[0]).collect();
            assert!(of_step[0] > 0 && of_step.iter().all(|calls| *calls == of_step[0]), "{asked:?}");
        });
        // What lies between is, at least on the last one, which reads when the others are done.
        assert!(counted_by("libcuda.so.1", "fake_graph_launches") > 0);
    });
}

#[test]
fn fast_sums_are_the_librarys_and_near() {
    with_libraries("fast_sums_are_the_librarys_and_near", &[], || {
        on_all(3, LONG, Reduction::Fast, |rank, group, dev| {
            group.prepare(dev).expect("prepare");
            for plan in plans(3) {
                let sums = |r: usize| values(r, 600 * plan.nodes_of_rank[r]);
                let nodes: Vec<f32> = (0..3).flat_map(sums).collect();
                let exact = |i: usize| nodes.chunks(600).map(|node| f64::from(node[i])).sum::<f64>();
                let most = |i: usize| nodes.chunks(600).map(|node| f64::from(node[i].abs())).sum::<f64>();
                let is_near = |i: usize, x: f32| (f64::from(x) - exact(i)).abs() <= 1e-6 * most(i);
                let partial = || dev.upload(&sums(rank), 6 * plan.nodes_of_rank[rank], 100);
                let before = counted("fake_nccl_calls");
                let sum = group.all_reduce(dev, partial(), 6, &plan).expect("all_reduce");
                let sum = dev.download(&sum).expect("numbers");
                assert!(sum.iter().enumerate().all(|(i, x)| is_near(i, *x)));
                assert!(counted("fake_nccl_calls") > before);
                let own = group.reduce_scatter(dev, partial(), &[2; 3], &plan).expect("reduce_scatter");
                let own = dev.download(&own).expect("numbers");
                assert!(own.len() == 200 && own.iter().enumerate().all(|(i, x)| is_near(200 * rank + i, *x)));
            }
        });
    });
}

/// All-reduces until one fails, each read; what the failure says, and how long it took.
fn until_it_fails(rank: usize, group: &Ranks, dev: &CudaDevice) -> (String, Duration) {
    group.prepare(dev).expect("prepare");
    let plan = &plans(2)[0];
    let nodes = plan.nodes_of_rank[rank];
    for _ in 0..100 {
        let began = Instant::now();
        let sum = group.all_reduce(dev, dev.upload(&vec![1.0; 8 * nodes], nodes, 8), 1, plan);
        let failed = match sum {
            Ok(sum) => dev.download(&sum).map_err(|error| error.to_string()).err(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(failed) = failed {
            assert!(group.check().is_err(), "the group has failed");
            assert!(dev.download(&dev.upload(&[1.0], 1, 1)).is_err(), "what lies there is nothing any more");
            return (failed, began.elapsed());
        }
    }
    panic!("nothing fails");
}

#[test]
fn a_call_that_hangs_is_aborted_in_time_and_named() {
    with_libraries("a_call_that_hangs_is_aborted_in_time_and_named", &[("FAKE_NCCL_HANG", "1:7")], || {
        let deadline = SHORT;
        let ended = on_all(2, deadline, Reduction::Canonical, until_it_fails);
        for (rank, (told, took)) in ended.iter().enumerate() {
            assert!(*took < 4 * deadline, "rank {rank}: {took:?}");
            assert_eq!(told.lines().count(), 1, "{told}");
            assert!(told.contains("all_reduce number") && told.contains("over NCCL on rank"), "{told}");
        }
        let is_cause = |(told, took): &(String, Duration)| {
            told.contains("not done within 3 s") && *took >= deadline * 3 / 4
        };
        assert!(ended.iter().any(is_cause), "{ended:?}");
        assert_eq!(counted("fake_nccl_alive"), 0, "communicators are given back");
    });
}

#[test]
fn a_link_that_breaks_is_told_in_the_librarys_words() {
    with_libraries("a_link_that_breaks_is_told_in_the_librarys_words", &[("FAKE_NCCL_FAIL", "0:5")], || {
        let ended = on_all(2, LONG, Reduction::Canonical, until_it_fails);
        for (told, took) in &ended {
            assert!(*took < LONG / 2, "nobody waits for the deadline: {took:?}");
            let words = "NCCL 2.29.7: remote process exited or there was a network error (a link is down)";
            assert!(told.contains(words), "{told}");
        }
    });
}

#[test]
fn a_rank_that_never_comes_is_not_waited_for_longer() {
    with_libraries("a_rank_that_never_comes_is_not_waited_for_longer", &[("FAKE_NCCL_HANG", "1:7")], || {
        let deadline = SHORT;
        let began = Instant::now();
        let ended = on_all(2, deadline, Reduction::Canonical, |rank, group, dev| {
            group.prepare(dev).expect("prepare");
            match rank {
                0 => Some(
                    dev.download(
                        &group
                            .all_reduce(dev, dev.upload(&[1.0; 8], 1, 8), 1, &plans(2)[0])
                            .expect("it is enqueued"),
                    ),
                ),
                _ => {
                    while group.check().is_ok() {
                        std::thread::yield_now();
                    }
                    None
                }
            }
        });
        let told = ended[0].as_ref().expect("rank 0").as_ref().expect_err("rank 1 never came").to_string();
        assert!(told.contains("number") && told.contains("not done within 3 s"), "{told}");
        assert!(began.elapsed() < 5 * deadline);
    });
}

#[test]
fn a_matrix_that_is_never_sent_is_not_waited_for_longer() {
    with_libraries("a_matrix_that_is_never_sent_is_not_waited_for_longer", &[], || {
        let (deadline, began) = (SHORT, Instant::now());
        on_all(2, deadline, Reduction::Canonical, |rank, group, dev| {
            group.prepare(dev).expect("prepare");
            if rank == 1 {
                while group.check().is_ok() {
                    std::thread::yield_now();
                }
                return;
            }
            let came = group.recv(dev, 1, 2, 3, None).expect("it is enqueued");
            let told = dev.download(&came).expect_err("nothing was sent").to_string();
            assert!(told.contains("recv number 1") && told.contains("over NCCL on rank 0"), "{told}");
            assert!(told.contains("not done within 3 s"), "{told}");
        });
        assert!(began.elapsed() < 5 * deadline);
        assert_eq!(counted("fake_nccl_alive"), 0, "communicators are given back");
    });
}

#[test]
fn a_communicator_that_never_comes_about_is_given_up() {
    with_libraries("a_communicator_that_never_comes_about_is_given_up", &[("FAKE_NCCL_HANG", "1:0")], || {
        let deadline = SHORT;
        let ended = on_all(2, deadline, Reduction::Canonical, |_, group, dev| group.prepare(dev));
        for error in ended {
            let CollectiveError::Failed { message, .. } = error.expect_err("no communicator") else {
                panic!()
            };
            assert!(message.contains("no communicator of NCCL: not done within 2.25 s"), "{message}");
        }
    });
}

#[test]
fn a_library_that_is_too_old_says_what_it_is() {
    with_libraries("a_library_that_is_too_old_says_what_it_is", &[("FAKE_NCCL_VERSION", "21405")], || {
        let told = Nccl::find().err().expect("it is too old").0;
        assert_eq!(told, "libnccl.so.2 is NCCL 2.14.5; NCCL 2.18 or newer is needed");
        let ended = on_all(2, LONG, Reduction::Canonical, |_, group, dev| group.prepare(dev));
        let expected = Err(CollectiveError::Failed { rank: 0, message: told });
        assert!(ended.iter().all(|ended| *ended == expected), "{ended:?}");
    });
}

#[test]
fn two_ranks_on_one_gpu_are_refused() {
    with_libraries("two_ranks_on_one_gpu_are_refused", &[("FAKE_GPUS", "1")], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        let (gpu, group) = (&gpu, shared(2, LONG));
        std::thread::scope(|scope| {
            for host in group {
                scope.spawn(move || {
                    let dev = CudaDevice::new(Box::new(gpu.driver(false).expect("a stream")));
                    let group = CudaGroup::new(host, WireDType::Float32, LONG).by(Way::Nccl);
                    let error = group.prepare(&dev).expect_err("there is one GPU").to_string();
                    assert!(error.contains("invalid usage (two ranks have one GPU)"), "{error}");
                });
            }
        });
    });
}

#[test]
fn a_machine_without_the_library_says_what_was_looked_for() {
    if let Err(cuda::Fault(told)) = Nccl::find() {
        assert!(
            told.starts_with("no libnccl, by which GPUs exchange: looked for libnccl.so.2 and libnccl.so"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1);
    }
}

/// Ranks whose groups are two, the last exchange of each of which is still under way: what a rank's end takes.
fn two_groups(deadline: Duration) -> Vec<Duration> {
    std::thread::scope(|scope| {
        let groups = shared(2, deadline).into_iter().zip(shared(2, deadline)).enumerate();
        let rank = |(rank, (first, second)): (usize, (SharedRank, SharedRank))| {
            let gpu = Gpu::open(rank as u32, &CubinCache::none()).expect("a GPU");
            let dev = CudaDevice::new(Box::new(gpu.driver(false).expect("a stream")));
            let groups =
                [first, second].map(|host| CudaGroup::new(host, WireDType::Float32, deadline).by(Way::Nccl));
            groups.iter().for_each(|group| assert_eq!(group.prepare(&dev), Ok(None)));
            let plan = &plans(2)[0];
            let nodes = plan.nodes_of_rank[rank];
            for group in &groups {
                let x = dev.upload(&values(rank, 8 * nodes), nodes, 8);
                group.all_reduce(&dev, x, 1, plan).expect("all_reduce");
            }
            groups.iter().for_each(|group| group.barrier().expect("barrier"));
            let began = Instant::now();
            // What is under way is then the last that has them.
            drop(groups);
            drop(dev);
            began.elapsed()
        };
        let threads: Vec<_> = groups.map(|of| scope.spawn(move || rank(of))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank's thread")).collect()
    })
}

#[test]
fn communicators_stay_until_what_is_under_way_has_ended() {
    with_libraries("communicators_stay_until_what_is_under_way_has_ended", &[], || {
        (0..6).for_each(|_| drop(two_groups(LONG)));
        assert_eq!(counted("fake_nccl_alive"), 0);
    });
}

#[test]
fn a_library_that_would_wait_by_itself_is_refused() {
    let test = "a_library_that_would_wait_by_itself_is_refused";
    with_libraries(test, &[("NCCL_COMM_BLOCKING", "1")], || {
        let told = Nccl::find().err().expect("calls would not return").0;
        assert_eq!(told, "NCCL_COMM_BLOCKING is 1, by which nobody could give NCCL up: unset it");
    });
}

#[test]
fn a_library_that_does_not_return_at_the_end_is_left() {
    let test = "a_library_that_does_not_return_at_the_end_is_left";
    with_libraries(test, &[("FAKE_NCCL_STAYS", "1")], || {
        let deadline = SHORT;
        let ended = two_groups(deadline);
        assert!(ended.iter().all(|took| (deadline..5 * deadline).contains(took)), "{ended:?}");
        assert!(counted("fake_nccl_alive") > 0);
    });
}
