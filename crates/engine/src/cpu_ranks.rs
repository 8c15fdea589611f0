//! Ranks on the processor.

use std::time::Duration;

use checkpoint::PackedCheckpoint;
use collective::{Collective, Compressed, WireDType};
use cpu::{CpuConfig, CpuDevice};
use tensor::{DeviceError, HostDevice, Timed, WeightSpec};

use crate::groups::RankDevice;
use crate::launch::MakeDevice;
use crate::places::Place;
use crate::prepared::{Local, Machine};
use crate::{EngineError, EngineOptions, cpus};

impl RankDevice for CpuDevice {
    type Host = Self;
    fn over(
        group: Box<dyn Collective<Self> + Send>,
        _: &[usize],
        wire: WireDType,
        _: Duration,
    ) -> Box<dyn Collective<Self> + Send> {
        compressed(group, wire)
    }
}

impl RankDevice for Timed<CpuDevice> {
    type Host = Self;
    fn over(
        group: Box<dyn Collective<Self> + Send>,
        _: &[usize],
        wire: WireDType,
        _: Duration,
    ) -> Box<dyn Collective<Self> + Send> {
        compressed(group, wire)
    }
}

/// A group whose sums travel as `wire`.
fn compressed<D: HostDevice + 'static>(
    group: Box<dyn Collective<D> + Send>,
    wire: WireDType,
) -> Box<dyn Collective<D> + Send> {
    match wire {
        WireDType::Float32 => group,
        wire => Box::new(Compressed::new(group, wire)),
    }
}

/// Makes a rank's device of the processor.
pub(crate) struct MakeCpu {
    local: Local,
    isa: Option<cpu::Isa>,
}

impl MakeDevice for MakeCpu {
    type Device = Timed<CpuDevice>;
    fn make(&self, rank: usize) -> Result<Timed<CpuDevice>, DeviceError> {
        let Local { threads, tp, spin, .. } = self.local;
        let cores = cpus::of_rank(self.local.index(rank), self.local.sharing, threads, tp);
        let is_pinned = cores.is_some();
        let config = CpuConfig { threads, cores, isa: self.isa, spin };
        let cpu = match is_pinned {
            true => CpuDevice::new(config),
            false => cpus::on_all(|| CpuDevice::new(config)),
        };
        let threads = cpu.thread_log();
        Ok(Timed::new(cpu, threads))
    }
}

impl Machine for MakeCpu {
    fn new(local: Local, options: &EngineOptions) -> Result<Self, EngineError> {
        Ok(MakeCpu { local, isa: options.isa })
    }

    fn places(&self) -> Vec<Place> {
        vec![Place::host(self.local.ranks)]
    }

    fn check_packed(packed: &PackedCheckpoint) -> Result<(), EngineError> {
        let info = packed.info();
        if info.layout != cpu::PACKED_LAYOUT {
            return Err(EngineError::Request(format!(
                "the checkpoint is packed for another processor ({}, here it is {}); pack the original again with \
                 `anysplit quantize`",
                info.layout,
                cpu::PACKED_LAYOUT
            )));
        }
        let fits = |(_, shape, spec, bytes): &(&str, [usize; 2], WeightSpec, usize)| {
            *bytes == CpuDevice::packed_len(*shape, *spec).next_multiple_of(64)
        };
        match packed.weights().find(|weight| !fits(weight)) {
            Some((name, [n, k], ..)) => Err(EngineError::Request(format!(
                "{name} of the packed checkpoint has not as many bytes as [{n}, {k}] takes; pack the original again with \
                 `anysplit quantize`"
            ))),
            None => Ok(()),
        }
    }
}
