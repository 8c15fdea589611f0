//! GPUs on which kernels can't wait for other ranks.

use crate::driver::{Driver, Fault};

/// Refuses a GPU on which kernels of several processes, of this group or others, run by turns. One that waits for another GPU would
/// keep the GPU from another process's kernel until its turn is over, for which a third may wait there. One that several ranks have and
/// that has no pool of memory: who asks for some would wait for a kernel that waits for him. And one that drives a display:
/// a kernel that waits for a long prompt's part, as those of later stages do, would be ended.
pub(crate) fn lets_kernels_wait(driver: &dyn Driver) -> Result<(), Fault> {
    match driver.processes_on_gpu() {
        processes if processes > 1 && !driver.runs_processes_together() => Err(Fault(format!(
            "{processes} processes have its GPU, on which their kernels run by turns: NVIDIA's MPS would let them run together"
        ))),
        _ if driver.ranks_on_gpu() > 1 && !driver.has_pool() => Err(Fault(
            "several ranks have its GPU, on which asking for memory waits for all that runs".into(),
        )),
        _ if driver.ends_long_kernels() => {
            Err(Fault("its GPU drives a display, for which kernels that wait for seconds are ended".into()))
        }
        _ => Ok(()),
    }
}
