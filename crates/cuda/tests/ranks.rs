//! Ranks on GPUs that use each other's memory: what they sum has the bits of the processor's, and nobody waits for ever.

use std::time::{Duration, Instant};

use collective::{Collective, CollectiveError, Group, ReducePlan, SharedConfig, SharedGroup, SharedRank, WireDType, conformance};
use cuda::{CudaDevice, CudaGroup};
use tensor::{Device, ReductionTree, Reference};

mod emulated;
use emulated::Emulated;

const LONG: Duration = Duration::from_secs(60);

fn can_emulate() -> bool {
    Emulated::new(0).is_some()
}

/// A rank's device: two ranks share a GPU.
fn device(rank: usize) -> CudaDevice {
    let mut driver = Emulated::new(rank as u32).expect("there is a compiler");
    driver.ordinal = Some(rank as u32 / 2);
    CudaDevice::new(Box::new(driver))
}

fn groups(ranks: usize, deadline: Duration, wire: WireDType, slot_bytes: usize) -> Vec<CudaGroup<SharedRank>> {
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
    for (ranks, slot_bytes) in [(2, 1 << 20), (3, 4096)] {
        let make = |ranks, deadline| groups(ranks, deadline, WireDType::Float32, slot_bytes);
        conformance::run(ranks, make, device);
    }
}
