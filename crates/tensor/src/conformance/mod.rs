//! What every device must pass: each operation compared with [`Reference`], bit by bit.
//!
//! A case is some shapes and a `run` that is generic over devices. It returns the results of all the
//! operations that it went through; the first difference from the reference's results ends the suite with
//! a panic that names operation, case and element.

mod agreement;
mod attention;
mod context;
mod copies;
mod experts;
mod linear;
mod logits;
mod rows;
mod values;

pub use agreement::{Agreement, Agreements};
pub use attention::{attention, attention_agreeing};
pub use context::{context, context_agreeing};
pub use copies::{copies, copies_agreeing};
pub use experts::experts;
pub use linear::{linear, quantized};
pub use logits::logits;
pub use rows::rows;

use std::fmt::Debug;

use crate::{Device, Reference};

/// Everything: [`linear`], [`rows`], [`attention`], [`context`], [`copies`], [`experts`] and [`logits`].
///
/// # Panics
/// With the operation, the shapes and the first differing element, if the device differs from [`Reference`].
pub fn run(dev: &impl Device) {
    linear(dev);
    rows(dev);
    attention(dev);
    context(dev);
    copies(dev);
    experts(dev);
    logits(dev);
}

/// A result of one operation.
struct Found {
    op: &'static str,
    shape: [usize; 2],
    data: Vec<f32>,
}

impl Found {
    fn tensor<D: Device>(dev: &D, op: &'static str, x: &D::Tensor) -> Found {
        let data = dev.download(x).unwrap_or_else(|error| panic!("{op}: {error}"));
        Found { op, shape: dev.shape(x), data }
    }

    /// Numbers that the host has already.
    fn host(op: &'static str, data: Vec<f32>) -> Found {
        Found { op, shape: [1, data.len()], data }
    }
}

/// Some operations on some shapes.
trait Case: Debug {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found>;
}

fn check(dev: &impl Device, case: &impl Case) {
    compare(&dev.name(), case, &case.run(dev), &case.run(&Reference));
}

fn compare(device: &str, case: &dyn Debug, found: &[Found], expected: &[Found]) {
    assert_eq!(found.len(), expected.len(), "{device}: {case:?}: number of results");
    for (found, expected) in found.iter().zip(expected) {
        let op = found.op;
        assert_eq!(found.shape, expected.shape, "{device}: {op}: shape of the result of {case:?}");
        assert_eq!(
            found.data.len(),
            expected.data.len(),
            "{device}: {op}: elements of the result of {case:?}"
        );
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
        if let Some(at) = found.data.iter().zip(&expected.data).position(differs) {
            let [row, col] = [at / found.shape[1], at % found.shape[1]];
            let [a, b] = [found.data[at], expected.data[at]];
            panic!(
                "{device}: {op}: element [{row}, {col}] of {:?} is {a:e} ({:#010x}), should be {b:e} ({:#010x}), in {case:?}",
                found.shape,
                a.to_bits(),
                b.to_bits()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_passes_its_own_suite() {
        run(&Reference);
        quantized(&Reference);
    }

    #[test]
    #[should_panic(
        expected = "cpu: add: element [1, 0] of [2, 2] is -0e0 (0x80000000), should be 0e0 (0x00000000), in \"case\""
    )]
    fn a_zero_of_the_wrong_sign_is_a_difference() {
        let found = |x| [Found { op: "add", shape: [2, 2], data: vec![1.0, f32::NAN, x, 3.0] }];
        compare("cpu", &"case", &found(-0.0), &found(0.0));
    }
}
