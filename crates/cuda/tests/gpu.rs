//! Kernels on this machine's GPU, where there is one: what all devices owe the reference, launched one by one and as graphs.

use cuda::{CubinCache, CudaDevice, Fault, Gpu, kernels};
use tensor::conformance;

mod suite;

/// A device of this machine's GPU; none, and a word about it, without.
fn device(enforce_eager: bool) -> Option<CudaDevice> {
    match Gpu::open(0, &CubinCache::of_user()) {
        Ok(gpu) => {
            // By all processors, not one when it is first needed.
            let files: Vec<&str> = kernels::FILES.iter().map(|(file, _)| *file).collect();
            gpu.load(&files).expect("kernels");
            Some(CudaDevice::new(Box::new(gpu.driver(enforce_eager).expect("a stream"))))
        }
        Err(Fault(why)) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

#[test]
fn this_machines_gpu_agrees_with_the_reference() {
    let Some(dev) = device(true) else { return };
    for (name, part) in suite::ALL {
        eprintln!("{name}");
        part(&dev);
    }
}

#[test]
fn work_that_comes_again_is_the_same_as_graphs() {
    let Some(dev) = device(false) else { return };
    // Of the same work the second time is remembered and made a graph, the third is that.
    (0..3).for_each(|_| conformance::rows(&dev));
}
