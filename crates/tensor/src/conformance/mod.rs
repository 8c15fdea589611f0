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
mod rotated;
mod rows;
mod values;

pub use agreement::{Agreement, Agreements};
pub use attention::{attention, attention_agreeing};
pub use context::{context, context_agreeing};
pub use copies::{copies, copies_agreeing};
pub use experts::{experts, experts_near, experts_of};
pub use linear::{linear, linear_near, linear_of, quantized, scaled};
pub use logits::logits;
pub use rotated::rotated;
pub use rows::rows;

use std::fmt::Debug;

use crate::{DType, Device, Reference};

/// Everything: [`linear`], [`rows`], [`attention`], [`rotated`], [`context`], [`copies`], [`experts`] and [`logits`].
///
/// # Panics
/// With the operation, the shapes and the first differing element, if the device differs from [`Reference`].
pub fn run(dev: &impl Device) {
    linear(dev);
    rows(dev);
    attention(dev);
    rotated(dev);
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

/// Like [`check`], for operations whose sums have an order of the device's own: results differ by at most `tolerance`, relative to
/// the largest of them, or to 1, which is how large what is summed may be.
fn check_near(dev: &impl Device, case: &impl Case, tolerance: f32) {
    let (found, expected) = (case.run(dev), case.run(&Reference));
    assert_eq!(found.len(), expected.len(), "{}: {case:?}: number of results", dev.name());
    for (found, expected) in found.iter().zip(&expected) {
        let op = found.op;
        assert_eq!(found.shape, expected.shape, "{}: {op}: shape of the result of {case:?}", dev.name());
        let largest = expected.data.iter().fold(1f32, |most, x| most.max(x.abs()));
        for (at, (a, b)) in found.data.iter().zip(&expected.data).enumerate() {
            let is_near = (a - b).abs() <= tolerance * largest || (a.is_nan() && b.is_nan());
            assert!(is_near, "{}: {op}: element {at} is {a:e}, should be {b:e}, in {case:?}", dev.name());
        }
    }
}

/// What is done with a case.
trait Judge {
    fn judge(&self, case: &impl Case);
}

struct Equal<'a, D>(&'a D);

impl<D: Device> Judge for Equal<'_, D> {
    fn judge(&self, case: &impl Case) {
        check(self.0, case);
    }
}

/// Some thousand additions that are rounded once each, of products that are exact.
const NEAR: f32 = 1e-5;

struct Near<'a, D>(&'a D);

impl<D: Device> Judge for Near<'_, D> {
    fn judge(&self, case: &impl Case) {
        check_near(self.0, case, NEAR);
    }
}

/// Numbers, rounded to a type, if there is one.
fn rounded(mut values: Vec<f32>, to: Option<DType>) -> Vec<f32> {
    if let Some(to) = to {
        values.iter_mut().for_each(|x| *x = to.round(*x));
    }
    values
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
