//! Kernels on this machine's GPU, where there is one: what all devices owe the reference, launched one by one and as graphs.

use cuda::{CubinCache, CudaDevice, Fault, Gpu};

mod suite;

#[test]
fn this_machines_gpu_agrees_with_the_reference() {
    let gpu = match Gpu::open(0, &CubinCache::of_user()) {
        Ok(gpu) => gpu,
        Err(Fault(why)) => return eprintln!("skipped: {why}"),
    };
    for enforce_eager in [true, false] {
        let driver = gpu.driver(enforce_eager).expect("a stream");
        let dev = CudaDevice::new(Box::new(driver));
        // Of the same work the second time is captured, the third replayed.
        for _ in 0..if enforce_eager { 1 } else { 3 } {
            suite::ALL.iter().for_each(|(_, part)| part(&dev));
        }
    }
}
