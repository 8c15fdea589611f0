//! GPUs that processes have by turns.

use crate::driver::{Driver, Fault};

/// Refuses a GPU on which kernels of several processes, of this group or others, run by turns. One that waits for another GPU would
/// keep the GPU from another process's kernel until its turn is over, for which a third may wait there.
pub(crate) fn without_turns(driver: &dyn Driver) -> Result<(), Fault> {
    match driver.processes_on_gpu() {
        processes if processes > 1 && !driver.runs_processes_together() => Err(Fault(format!(
            "{processes} processes have its GPU, on which their kernels run by turns: NVIDIA's MPS would let them run together"
        ))),
        _ => Ok(()),
    }
}
