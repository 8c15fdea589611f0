//! Ranks on NVIDIA GPUs.

use collective::{Collective, Solo, Staged};
use cuda::CudaDevice;
use tensor::Reference;

use crate::groups::RankDevice;

impl RankDevice for CudaDevice {
    type Host = Reference;

    /// What ranks exchange goes through the host; what is alone exchanges nothing.
    fn over(group: Box<dyn Collective<Reference> + Send>) -> Box<dyn Collective<Self> + Send> {
        match group.size() {
            1 => Box::new(Solo::default()),
            _ => Box::new(Staged(group)),
        }
    }
}

#[cfg(test)]
mod tests;
