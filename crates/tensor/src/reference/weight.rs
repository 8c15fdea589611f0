use std::ops::Range;

use super::{ReferenceTensor, dot};
use crate::{ActivationGroup, Fp8Group, Int4Group, Int8Group, MatrixSource, WeightFormat, WeightSpec, fp8};

/// A weight `[n, k]`.
#[derive(Clone, Debug)]
pub struct ReferenceWeight {
    pub(super) spec: WeightSpec,
    /// As they are when widened.
    pub(super) values: ReferenceTensor,
    /// Where the weight is kept as whole numbers.
    whole: Option<Whole>,
}

/// Each weight is a whole number times its group's scale.
#[derive(Clone, Debug)]
struct Whole {
    /// Like the weights, row-major.
    numbers: Vec<i32>,
    /// Row-major, one per group.
    scales: Vec<f32>,
}

impl ReferenceWeight {
    pub(super) fn new(source: &dyn MatrixSource, spec: WeightSpec) -> Self {
        let (n, k) = (source.rows(), source.cols());
        let mut values = ReferenceTensor::from_fn(n, k, |_, _| f32::NAN);
        let is_scaled = spec.format.scales().is_some();
        for (row, values) in values.data.chunks_mut(k.max(1)).enumerate() {
            match is_scaled {
                true => scale_row(source, row, spec, values),
                false => source.read(row, 0..k, values),
            }
        }
        let mut whole = Whole { numbers: Vec::new(), scales: Vec::new() };
        let groups = spec.groups(k);
        for row in 0..n {
            for group in 0..groups.count() {
                let group = &mut values.data[row * k..][groups.inputs(group)];
                whole.quantize(group, spec.format);
            }
        }
        let whole = matches!(spec.format, WeightFormat::Int8 | WeightFormat::Int4).then_some(whole);
        ReferenceWeight { spec, values, whole }
    }

    /// What [`crate::Device::linear`] says of one output and some of the inputs.
    pub(super) fn sum_of_products(&self, x: &[f32], n: usize, inputs: Range<usize>) -> f32 {
        let Some(whole) = &self.whole else {
            return dot(&x[inputs.clone()], &self.values.row(n)[inputs]);
        };
        let (k, groups) = (self.values.cols, self.spec.groups(self.values.cols));
        groups.of(inputs).fold(0.0, |sum, group| {
            let x = &x[groups.inputs(group)];
            let of_x = ActivationGroup::of(x);
            let w = &whole.numbers[n * k..][groups.inputs(group)];
            let products: i32 = x.iter().zip(w).map(|(x, w)| i32::from(of_x.quantize(*x)) * w).sum();
            f32::mul_add(products as f32, whole.scales[n * groups.count() + group] * of_x.scale, sum)
        })
    }
}

/// Element · scale of a row, where the spec says that scales lie.
fn scale_row(source: &dyn MatrixSource, row: usize, spec: WeightSpec, out: &mut [f32]) {
    let mut elements = vec![0; out.len()];
    source.read_elements(row, 0..out.len(), &mut elements);
    for inputs in spec.scale_inputs(out.len()) {
        let scale = source.scale(row, inputs.start);
        for (out, element) in out[inputs.clone()].iter_mut().zip(&elements[inputs]) {
            *out = fp8::to_f32(*element) * scale;
        }
    }
}

impl Whole {
    /// Replaces weights of one group by what they become.
    fn quantize(&mut self, weights: &mut [f32], format: WeightFormat) {
        match format {
            WeightFormat::Float(dtype) => weights.iter_mut().for_each(|w| *w = dtype.round(*w)),
            // They are what they are.
            WeightFormat::Scaled(_) => {}
            WeightFormat::Fp8 => {
                let group = Fp8Group::of(weights);
                weights.iter_mut().for_each(|w| *w = group.value(group.quantize(*w)));
            }
            WeightFormat::Int8 => {
                let group = Int8Group::of(weights);
                self.scales.push(group.scale);
                for w in weights {
                    let q = group.quantize(*w);
                    self.numbers.push(i32::from(q));
                    *w = group.value(q);
                }
            }
            WeightFormat::Int4 => {
                let group = Int4Group::of(weights);
                self.scales.push(group.scale);
                for w in weights {
                    let q = group.quantize(*w);
                    self.numbers.push(16 * i32::from(q) - i32::from(group.zero));
                    *w = group.value(q);
                }
            }
        }
    }
}
