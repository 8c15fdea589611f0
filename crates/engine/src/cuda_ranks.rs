//! Ranks on NVIDIA GPUs.

use std::time::Duration;

use collective::{Collective, Solo, WireDType};
use cuda::{CudaDevice, CudaGroup};
use tensor::Reference;

use crate::groups::RankDevice;

impl RankDevice for CudaDevice {
    type Host = Reference;

    /// What is alone exchanges nothing.
    fn over(
        group: Box<dyn Collective<Reference> + Send>,
        wire: WireDType,
        deadline: Duration,
    ) -> Box<dyn Collective<Self> + Send> {
        match group.size() {
            1 => Box::new(Solo::default()),
            _ => Box::new(CudaGroup::new(group, wire, deadline)),
        }
    }
}

#[cfg(test)]
mod tests;
