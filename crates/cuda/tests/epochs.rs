//! Ranks meet whatever number their calls have: kernels count them in 32 bits, which go round within days.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use collective::{Collective, ReducePlan, SharedConfig, SharedGroup, WireDType};
use cuda::{CudaDevice, CudaGroup, SharedMemory};
use tensor::{Device, NormKind, NormSpec, ReductionTree, RowNorm};

mod emulated;
use emulated::Emulated;

/// Where a rank's region has the number of its last call: behind the flags of two phases, 16 ranks and 64 blocks, and four words.
const EPOCH_AT: u64 = 4 * (2 * 16 * 64 + 4);
const RANKS: usize = 2;
/// What a rank does one after the other.
const CALLS: usize = 15;

/// The first that a group makes to share is a rank's region.
fn epoch(region: &dyn SharedMemory) -> &AtomicU32 {
    // SAFETY: a region is longer, is there as long as this borrow, and its words are read and written each at once.
    unsafe { &*((region.at() + EPOCH_AT) as *const AtomicU32) }
}

/// Numbers whose sums depend on the order, others in each call.
fn value(rank: usize, call: usize, at: usize) -> f32 {
    let h = ((rank * 31 + call) * 1009 + at) as u32;
    let h = (h ^ h >> 7).wrapping_mul(0x85EB_CA6B);
    ((h ^ h >> 13) as f32 / u32::MAX as f32 - 0.5) * [1e-3, 1.0, 1e3][h as usize % 3]
}

/// What each rank gets of all kinds of calls, one of which is late at every one, in a group in which so many were made before.
fn results(wire: WireDType, before: u32) -> Vec<Vec<Vec<u32>>> {
    let tree = ReductionTree::over_ids(RANKS);
    let leaves: Vec<_> = (0..RANKS).map(|rank| rank..rank + 1).collect();
    let plan = ReducePlan { nodes_of_rank: vec![1; RANKS], finish: tree.finish(&leaves) };
    let deadline = Duration::from_secs(60);
    let config = SharedConfig { deadline, spin: Duration::ZERO, ..SharedConfig::default() };
    let all_are_done = Barrier::new(RANKS);
    let begun: [AtomicU32; RANKS] = Default::default();
    let of_rank = |rank: usize, shared| {
        let group = CudaGroup::new(shared, wire, deadline).with_slots(1 << 16);
        let mut inner = Emulated::new(0).expect("there is a compiler");
        inner.ordinal = Some(rank as u32);
        let shared = inner.shared.clone();
        let dev = CudaDevice::new(Box::new(inner));
        group.prepare(&dev).expect("prepare");
        assert_eq!(group.path(), "peer memory");
        // Behind the call by which ranks find out that they meet: flags stay at what that one left.
        let region = shared.borrow()[0].clone();
        epoch(&*region).store(before, Ordering::SeqCst);
        let (rows, cols) = (1, 192);
        let weight = dev.upload(&vec![1.5; cols], 1, cols);
        let norm = NormSpec { kind: NormKind::Rms { weight_offset: 0.0 }, eps: 1e-5 };
        let one = |call: usize| {
            // Whoever did not wait for it would read what it left two calls before.
            if call % RANKS == rank {
                while (begun[1 - rank].load(Ordering::SeqCst) as usize) <= call {
                    std::thread::yield_now();
                }
                // However long: it only makes it likelier that one who does not wait is found.
                let until = Instant::now() + Duration::from_millis(3);
                while Instant::now() < until {
                    std::thread::yield_now();
                }
            }
            begun[rank].store(call as u32 + 1, Ordering::SeqCst);
            let numbers: Vec<f32> = (0..rows * cols).map(|at| value(rank, call, at)).collect();
            let own = dev.upload(&numbers, rows, cols);
            group.set_one_shot_bytes(if call % 3 == 1 { 0 } else { usize::MAX });
            match call % 5 {
                3 => group.all_gather(&dev, &own, &[rows; RANKS]).expect("all_gather"),
                4 => {
                    let mut x = dev.upload(&vec![0.25; rows * cols], rows, cols);
                    let norm = RowNorm { spec: norm, weight: &weight, bias: None };
                    group.all_reduce_add_norm(&dev, own, &plan, &mut x, None, norm).expect("a norm")
                }
                _ => group.all_reduce(&dev, own, rows, &plan).expect("all_reduce"),
            }
        };
        let bits = |x| dev.download(&x).expect("numbers").into_iter().map(f32::to_bits).collect();
        let results = (0..CALLS).map(|call| bits(one(call))).collect();
        // Who ends tells others after how many calls; that is counted from 0.
        all_are_done.wait();
        assert_eq!(epoch(&*region).load(Ordering::SeqCst), before.wrapping_add(CALLS as u32), "calls");
        results
    };
    std::thread::scope(|scope| {
        let groups = SharedGroup::new(RANKS, config).into_iter().enumerate();
        let of_rank = &of_rank;
        let threads: Vec<_> =
            groups.map(|(rank, shared)| scope.spawn(move || of_rank(rank, shared))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

/// Flags that nobody has written for so long that they are as far behind as numbers can be, and further; calls whose number is
/// the last one, and 0.
#[test]
fn ranks_wait_for_each_other_whatever_number_their_calls_have() {
    if Emulated::new(0).is_none() {
        return;
    }
    for wire in [WireDType::Float32, WireDType::Bfloat16] {
        // As many as there really were.
        let first = results(wire, 1);
        assert!(first[0].windows(2).all(|two| two[0] != two[1]), "calls give different numbers");
        let half = 1 << 31;
        for before in [half - 4, half - 1, half, half + 1, u32::MAX - 6] {
            assert!(results(wire, before) == first, "{wire:?}, {before} calls before");
        }
    }
}
