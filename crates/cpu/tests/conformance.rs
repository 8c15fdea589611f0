//! The CPU passes what every device must pass, on every instruction set and with any number of threads.

use cpu::{CpuConfig, CpuDevice, Isa};
use tensor::conformance;

fn passes(threads: usize) {
    for isa in Isa::available() {
        let dev = CpuDevice::new(CpuConfig { threads, isa: Some(isa), ..CpuConfig::default() });
        conformance::run(&dev);
        conformance::quantized(&dev);
    }
}

#[test]
fn one_thread_has_the_bits_of_the_reference() {
    passes(1);
}

#[test]
fn two_threads_have_the_bits_of_the_reference() {
    passes(2);
}

#[test]
fn three_threads_have_the_bits_of_the_reference() {
    passes(3);
}
