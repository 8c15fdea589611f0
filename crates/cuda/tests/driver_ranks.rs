//! Ranks over NVIDIA's driver, tried with libraries that stand for NVIDIA's. A process loads a library once, so each test runs in a
//! process of its own.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use collective::{
    Collective, Group, ReducePlan, SharedConfig, SharedGroup, SharedRank, SharedSegment, WireDType,
};
use cuda::{CubinCache, CudaDevice, CudaGroup, Gpu, Way};
use tensor::{Device, ReductionTree};

mod process;
use process::{counted, with_libraries};

const DEADLINE: Duration = Duration::from_secs(60);

fn shared_config() -> SharedConfig {
    SharedConfig { deadline: DEADLINE, spin: Duration::ZERO, ..SharedConfig::default() }
}

/// Ranks as threads, each with its GPU.
fn ranks_sum(gpus: &[u32], expected_path: &str) {
    ranks_sum_beside(1, gpus, expected_path);
}

/// The same where each GPU is that of so many processes.
fn ranks_sum_beside(processes: usize, gpus: &[u32], expected_path: &str) {
    ranks_sum_within(DEADLINE, processes, gpus, expected_path);
}

fn ranks_sum_within(deadline: Duration, processes: usize, gpus: &[u32], expected_path: &str) {
    let opened: HashMap<u32, Arc<Gpu>> = gpus
        .iter()
        .map(|&ordinal| (ordinal, Gpu::open(ordinal, &CubinCache::none()).expect("a GPU")))
        .collect();
    for (ordinal, gpu) in &opened {
        let ranks = gpus.iter().filter(|other| *other == ordinal).count();
        gpu.shared_by(ranks.max(processes), processes).expect("it is bound");
    }
    std::thread::scope(|scope| {
        for (rank, group) in
            SharedGroup::new(gpus.len(), SharedConfig { deadline, ..shared_config() }).into_iter().enumerate()
        {
            let gpu = opened[&gpus[rank]].clone();
            scope.spawn(move || rank_sums(group, deadline, &gpu, expected_path));
        }
    });
}

/// One rank's part: what it does is replayed as graphs, from the third time on or as soon as the others let it make some. Only the last
/// rank reads.
fn rank_sums(group: SharedRank, deadline: Duration, gpu: &Arc<Gpu>, expected_path: &str) {
    let (rank, ranks) = (group.rank(), group.size());
    let leaves: Vec<_> = (0..ranks).map(|rank| rank..rank + 1).collect();
    let finish = ReductionTree::over_ids(ranks).finish(&leaves);
    let plan = ReducePlan { nodes_of_rank: vec![1; ranks], finish };
    let group = CudaGroup::new(group, WireDType::Float32, deadline);
    let dev = CudaDevice::new(Box::new(gpu.driver(false).expect("a stream")));
    group.prepare(&dev).expect("prepare");
    assert_eq!(group.path(), expected_path);
    let replayed = || counted("libcuda.so.1", "fake_own_graph_launches");
    // A loaded machine may need some more until all have found the others without work.
    for step in 0..300 {
        let of = |rank: usize, i: usize| (step * 100 + rank * 10 + i) as f32;
        let mut x = dev.upload(&(0..8).map(|i| of(rank, i)).collect::<Vec<_>>(), 1, 8);
        // Enough of them to be worth a graph.
        for _ in 0..8 {
            x = group.all_reduce(&dev, x, 1, &plan).expect("all_reduce");
            dev.scale(&mut x, 1.0 / ranks as f32);
        }
        // Each gives each a row, and then what it has to the next, who adds its own.
        let all: Vec<f32> =
            (0..ranks).flat_map(|to| (0..3).map(move |i| (step * 50 + to * 7 + i) as f32)).collect();
        let ones = vec![1; ranks];
        let rows = group.all_to_all(&dev, &dev.upload(&all, ranks, 3), &ones, &ones).expect("all_to_all");
        if rank > 0 {
            dev.add(&mut x, &group.recv(&dev, rank - 1, 1, 8, None).expect("recv"));
        }
        if rank + 1 < ranks {
            group.send(&dev, &x, rank + 1).expect("send");
        }
        if rank + 1 == ranks {
            dev.scale(&mut x, 1.0 / ranks as f32);
            let own: Vec<f32> = (0..3).map(|i| (step * 50 + rank * 7 + i) as f32).collect();
            assert_eq!(dev.download(&rows).expect("numbers"), own.repeat(ranks), "step {step}");
            let mean = |i: usize| (0..ranks).map(|rank| of(rank, i)).sum::<f32>() / ranks as f32;
            let found = dev.download(&x).expect("numbers");
            assert_eq!(found, (0..8).map(mean).collect::<Vec<_>>(), "step {step}");
        } else {
            dev.flush();
        }
        // As the next step is told. Over the library what lies between two exchanges is too little for a graph.
        let all = group.all_gather_host(&[replayed() as f32]).expect("numbers");
        let is_enough = expected_path != "peer memory" || all.iter().all(|replayed| replayed[0] > 0.0);
        if step >= 5 && is_enough {
            return;
        }
    }
    panic!("what comes again is replayed: {} times on rank {rank}", replayed());
}

/// Set in the processes of ranks.
const RANK: &str = "ANYSPLIT_TEST_RANK";
const SEGMENT: &str = "ANYSPLIT_TEST_SEGMENT";

#[test]
fn ranks_of_several_processes_open_each_others_memory() {
    let test = "ranks_of_several_processes_open_each_others_memory";
    with_libraries(test, &[("FAKE_GPUS", "2")], || {
        let (ranks, config) = (2, shared_config());
        if let Ok(rank) = std::env::var(RANK) {
            let path = std::env::var(SEGMENT).expect("a segment");
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the segment");
            let segment = SharedSegment::open(file.into(), ranks, &config).expect("the segment");
            let rank: usize = rank.parse().expect("a rank");
            let number = |variable: &str| std::env::var(variable).ok()?.parse::<u32>().ok();
            let gpus = number("FAKE_GPUS").expect("a number of GPUs");
            let gpu = Gpu::open(rank as u32 % gpus, &CubinCache::none()).expect("a GPU");
            let group = segment.rank(rank, &config).expect("a rank that is free");
            let together = gpus > 1 || number("FAKE_MPS") == Some(1);
            return rank_sums(
                group,
                DEADLINE,
                &gpu,
                if together { "peer memory" } else { "through the host" },
            );
        }
        // Two processes of one GPU use its memory only if their kernels run at the same time.
        for (gpus, mps) in [("2", "0"), ("1", "0"), ("1", "1")] {
            let segment = SharedSegment::create(ranks, &config).expect("a segment");
            let path = format!("/proc/{}/fd/{}", std::process::id(), segment.as_fd().as_raw_fd());
            let start = |rank: usize| {
                Command::new(std::env::current_exe().expect("this program"))
                    .args(["--exact", "ranks_of_several_processes_open_each_others_memory", "--nocapture"])
                    .envs([
                        ("FAKE_GPUS", gpus),
                        ("FAKE_MPS", mps),
                        (RANK, &rank.to_string()),
                        (SEGMENT, &path),
                    ])
                    .spawn()
                    .expect("a process")
            };
            let processes: Vec<_> = (0..ranks).map(start).collect();
            for mut process in processes {
                assert!(process.wait().expect("it ends").success(), "{gpus} GPUs; its words are above");
            }
        }
    });
}

#[test]
fn ranks_of_one_gpu_and_of_several_use_each_others_memory() {
    let test = "ranks_of_one_gpu_and_of_several_use_each_others_memory";
    with_libraries(test, &[("FAKE_GPUS", "2")], || {
        ranks_sum(&[0, 0], "peer memory");
        ranks_sum(&[0, 1], "peer memory");
        ranks_sum(&[1, 0, 1, 0], "peer memory");
    });
}

/// Who asks for memory while another rank's kernel waits for him would wait for that one.
#[test]
fn ranks_of_one_gpu_ask_for_nothing_while_others_wait_for_them() {
    let test = "ranks_of_one_gpu_ask_for_nothing_while_others_wait_for_them";
    with_libraries(test, &[("FAKE_WAITS", "1")], || ranks_sum(&[0, 0, 0], "peer memory"));
}

/// Where all that is not said to be asynchronous waits for all that runs: a rank that makes a graph while another's kernel waits for it
/// would wait for that one.
#[test]
fn ranks_of_one_gpu_make_graphs_while_nobody_waits_for_them() {
    let test = "ranks_of_one_gpu_make_graphs_while_nobody_waits_for_them";
    with_libraries(test, &[("FAKE_WAITS", "2")], || {
        ranks_sum(&[0, 0], "peer memory");
        ranks_sum(&[0, 0, 0], "peer memory");
    });
}

/// While one's kernel waits for the other, that makes no graph, and goes on at once; later it does.
#[test]
fn no_graph_is_made_while_another_rank_has_work_under_way() {
    let test = "no_graph_is_made_while_another_rank_has_work_under_way";
    with_libraries(test, &[("FAKE_WAITS", "2")], || {
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        gpu.load(&["elements"]).and_then(|()| gpu.shared_by(2, 1)).expect("kernels");
        std::thread::scope(|scope| {
            for group in SharedGroup::new(2, shared_config()) {
                let gpu = &gpu;
                scope.spawn(move || {
                    let dev = CudaDevice::new(Box::new(gpu.driver(false).expect("a stream")));
                    let group = CudaGroup::new(group, WireDType::Float32, DEADLINE).by(Way::Peers);
                    group.prepare(&dev).expect("prepare");
                    group.barrier().expect("barrier");
                    let made = || counted("libcuda.so.1", "fake_graphs_made");
                    let before = made();
                    group.barrier().expect("barrier");
                    if group.rank() == 1 {
                        let came = group.recv(&dev, 0, 1, 4, None).expect("recv");
                        dev.flush();
                        group.barrier().expect("barrier");
                        assert_eq!(dev.download(&came).expect("numbers"), [7.0; 4]);
                        return group.barrier().expect("barrier");
                    }
                    group.barrier().expect("barrier");
                    let x = dev.upload(&[7.0; 4], 1, 4);
                    let times = |times: usize| {
                        for _ in 0..times {
                            let mut x = dev.gather_rows(&x, &[0]);
                            (0..8).for_each(|_| dev.scale(&mut x, 1.0));
                            assert_eq!(dev.download(&x).expect("numbers"), [7.0; 4]);
                        }
                        made() - before
                    };
                    assert_eq!(times(5), 0, "the other one's kernel waits");
                    group.send(&dev, &x, 1).expect("send");
                    group.barrier().expect("barrier");
                    assert_eq!(times(5), 1, "nobody waits");
                });
            }
        });
    });
}

/// Of ranks whose GPUs have ranks of other groups too, in processes of their own, kernels that wait would keep each other off them.
#[test]
fn gpus_of_other_processes_too_are_not_waited_on() {
    for (peers, mps) in [("1", "0"), ("0", "0"), ("1", "1")] {
        let test = "gpus_of_other_processes_too_are_not_waited_on";
        with_libraries(test, &[("FAKE_GPUS", "2"), ("FAKE_PEERS", peers), ("FAKE_MPS", mps)], || {
            let together = std::env::var("FAKE_MPS").is_ok_and(|mps| mps == "1");
            ranks_sum_beside(2, &[0, 1], if together { "peer memory" } else { "through the host" });
        });
    }
}

#[test]
fn gpus_that_do_not_reach_each_other_use_the_library() {
    let test = "gpus_that_do_not_reach_each_other_use_the_library";
    with_libraries(test, &[("FAKE_GPUS", "2"), ("FAKE_PEERS", "0"), ("FAKE_POOL", "0")], || {
        ranks_sum(&[0, 1], "nccl");
        // Without a pool, asking for memory may wait for the other's kernel, which waits.
        ranks_sum(&[1, 1], "through the host");
    });
}

/// As where the hardware has one queue for all: a kernel that waits would keep the one it waits for from running, step after step.
#[test]
fn kernels_that_do_not_run_together_are_found_out_at_the_start() {
    let test = "kernels_that_do_not_run_together_are_found_out_at_the_start";
    let variables = [("FAKE_SERIAL", "1"), ("FAKE_GPUS", "2"), ("CUDA_DEVICE_MAX_CONNECTIONS", "1")];
    with_libraries(test, &variables, || {
        ranks_sum(&[0, 1], "peer memory");
        ranks_sum_within(Duration::from_secs(4), 1, &[1, 1], "through the host");
        let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
        let deadline = Duration::from_secs(4);
        std::thread::scope(|scope| {
            for group in SharedGroup::new(2, SharedConfig { deadline, ..shared_config() }) {
                let gpu = &gpu;
                scope.spawn(move || {
                    let group = CudaGroup::new(group, WireDType::Float32, deadline).by(Way::Peers);
                    let dev = CudaDevice::new(Box::new(gpu.driver(false).expect("a stream")));
                    let told = group.prepare(&dev).expect_err("there is no other way").to_string();
                    // Whoever of the two waited in vain says so of the other.
                    let wanted = "did not run at the same time within 3 s: \
                                  CUDA_DEVICE_MAX_CONNECTIONS is 1, and ranks need 32";
                    let is_of = |[waits, missing]: [usize; 2]| {
                        told.starts_with(&format!("rank {waits}: "))
                            && told
                                .ends_with(&format!(": its kernels and those of rank [{missing}] {wanted}"))
                    };
                    assert!(is_of([0, 1]) || is_of([1, 0]), "{told}");
                });
            }
        });
    });
}

/// A display's GPU ends what runs for seconds, as kernels that wait for a stage before may.
#[test]
fn gpus_of_displays_are_not_waited_on() {
    let variables = [("FAKE_GPUS", "2"), ("FAKE_WATCHDOG", "1")];
    with_libraries("gpus_of_displays_are_not_waited_on", &variables, || {
        ranks_sum(&[0, 1], "through the host")
    });
}
