//! Kernels on this machine's GPU, where there is one: what all devices owe the reference, launched one by one and as graphs.

use cuda::{CubinCache, CudaDevice, Fault, Gpu, kernels};
use tensor::{DType, conformance};

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

/// Tests of their own, so that `compute-sanitizer` can have as many as there is time for.
fn agrees(part: fn(&CudaDevice)) {
    if let Some(dev) = device(true) {
        part(&dev);
    }
}

#[test]
fn rows_are_those_of_the_reference() {
    agrees(conformance::rows);
}

#[test]
fn linear_layers_of_f32_and_of_whole_numbers_are_those_of_the_reference() {
    agrees(|dev| conformance::linear_of(dev, &suite::EXACT));
}

#[test]
fn tensor_cores_sum_what_the_reference_sums() {
    agrees(|dev| {
        suite::NEAR.iter().for_each(|&(format, inputs)| conformance::linear_near(dev, format, inputs));
    });
}

#[test]
fn scales_of_checkpoints_are_those_of_the_reference() {
    agrees(|dev| suite::scaled().for_each(|(format, inputs)| conformance::linear_near(dev, format, inputs)));
}

#[test]
fn experts_are_those_of_the_reference() {
    agrees(|dev| {
        conformance::experts_of(dev, &suite::EXACT);
        conformance::experts_near(dev, DType::BF16.into(), DType::BF16);
        suite::scaled().for_each(|(format, inputs)| conformance::experts_near(dev, format, inputs));
    });
}

#[test]
fn attention_is_that_of_the_reference() {
    agrees(|dev| conformance::attention_agreeing(dev, &suite::agreement));
}

#[test]
fn values_that_rows_do_not_see_change_no_bits() {
    agrees(suite::unseen::unseen_values);
}

#[test]
fn segments_of_attention_are_those_of_the_reference() {
    agrees(|dev| conformance::context_agreeing(dev, &suite::agreement));
}

#[test]
fn copies_are_those_of_the_reference() {
    agrees(|dev| conformance::copies_agreeing(dev, &suite::agreement));
}

#[test]
fn logits_are_those_of_the_reference() {
    agrees(conformance::logits);
}

#[test]
fn work_that_comes_again_is_the_same_as_graphs() {
    let Some(dev) = device(false) else { return };
    // Of the same work the second time is remembered and made a graph, the third is that.
    (0..3).for_each(|_| conformance::rows(&dev));
}
