//! Kernels on this machine's GPU, where there is one: the bits are those of every other device, launched one by one and as graphs.

use cuda::{CubinCache, CudaDevice, Fault, Gpu};
use tensor::conformance;

#[test]
fn this_machines_gpu_has_the_bits_of_the_reference() {
    let gpu = match Gpu::open(0, &CubinCache::of_user()) {
        Ok(gpu) => gpu,
        Err(Fault(why)) => return eprintln!("skipped: {why}"),
    };
    for enforce_eager in [true, false] {
        let driver = gpu.driver(enforce_eager).expect("a stream");
        let dev = CudaDevice::new(Box::new(driver));
        // Of the same work the second time is captured, the third replayed.
        (0..3).for_each(|_| conformance::rows(&dev));
    }
}
