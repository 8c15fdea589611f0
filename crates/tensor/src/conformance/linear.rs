//! Linear layers and embeddings.

use super::experts::experts_of;
use super::values::{Values, pack};
use super::{Case, Equal, Found, Judge, Near, check, rounded};
use crate::{
    Activation, DType, Device, Program, ReductionTree, ReferenceTensor, Scales, WeightFormat, WeightSpec,
};

pub(super) const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// One row, less than a register, tails of every kind, more than a tile.
pub(super) const ROWS: [usize; 9] = [0, 1, 2, 3, 5, 6, 7, 13, 33];

/// [`Device::linear`], [`Device::linear_tree`] and [`Device::embed`].
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn linear(dev: &impl Device) {
    linear_of(dev, &DTYPES.map(WeightFormat::Float));
}

/// [`Device::linear`], [`Device::linear_tree`], [`Device::embed`] and the layers of experts, of weights that are kept in groups.
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn quantized(dev: &impl Device) {
    let mut formats = vec![WeightFormat::Fp8, WeightFormat::Int8, WeightFormat::Int4];
    formats.extend(scaled());
    linear_of(dev, &formats);
    experts_of(dev, &formats);
    for format in formats {
        check(dev, &Poisoned { format });
        check(dev, &Extreme { format });
    }
}

/// Formats with float32 scales: one per output, per group, and per several, also of weights that begin within what shares one.
pub fn scaled() -> Vec<WeightFormat> {
    let every = |inputs| Scales::every(inputs, None).expect("whole groups");
    let all = [Scales::OUTPUT, every(32), every(128), every(128).from_group(3), every(96).from_group(1)];
    all.map(WeightFormat::Scaled).into()
}

/// [`linear`] of some formats.
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn linear_of(dev: &impl Device, formats: &[WeightFormat]) {
    linear_cases(formats, None, &Equal(dev));
}

/// [`linear`] of a format whose products are summed in an order of the device's own, of activations rounded to `inputs`: given
/// such, results are as near as sums in f32 are.
///
/// # Panics
/// If the device differs by more from [`crate::Reference`].
pub fn linear_near(dev: &impl Device, format: WeightFormat, inputs: DType) {
    linear_cases(&[format], Some(inputs), &Near(dev));
}

fn linear_cases(formats: &[WeightFormat], inputs: Option<DType>, by: &impl Judge) {
    for &format in formats {
        for n in [0, 1, 15, 16, 17, 48, 259] {
            for k in [0, 1, 8, 12, 64, 136, 300] {
                by.judge(&Linear { rows: &ROWS, n, k, format, inputs });
            }
        }
        by.judge(&Linear { rows: &[1, 4, 70], n: 33, k: 1030, format, inputs });
        by.judge(&Linear { rows: &[1, 2, 3, 8], n: 36, k: 2080, format, inputs });
        by.judge(&Linear { rows: &[8, 63, 64, 65, 200], n: 145, k: 140, format, inputs });
        by.judge(&Embed { n: 259, k: 17, format });
        by.judge(&Embed { n: 16, k: 136, format });
    }
    let trees = [
        ("6 heads of 8", ReductionTree::over_heads(6, 8), Some(8)),
        ("7 heads of 12", ReductionTree::over_heads(7, 12), Some(12)),
        ("3 heads of 80", ReductionTree::over_heads(3, 80), Some(80)),
        ("2 heads of 64", ReductionTree::over_heads(2, 64), Some(64)),
        ("136 inputs", ReductionTree::over_granules(136, 64), None),
        ("136 inputs, at most 2 leaves", ReductionTree::over_granules(136, 2), None),
        ("300 inputs", ReductionTree::over_granules(300, 6), None),
    ];
    let mut formats = formats.iter().copied().cycle();
    let mut next = || formats.next().expect("a cycle does not end");
    for (of, tree, period) in &trees {
        for start in 0..=tree.num_leaves() {
            for end in start..=tree.num_leaves() {
                let program = tree.program(start..end);
                let spec = WeightSpec { format: next(), period: *period };
                by.judge(&LinearTree {
                    of,
                    program,
                    rows: &[1, 3, 6, 13],
                    n: 1 + (end * 16) % 49,
                    spec,
                    inputs,
                });
            }
        }
    }
    let deep = ReductionTree::over_granules(3000, 64);
    for leaves in [0..64, 1..63, 21..43, 0..22, 63..64] {
        let program = deep.program(leaves);
        by.judge(&LinearTree {
            of: "3000 inputs",
            program,
            rows: &[1, 5],
            n: 35,
            spec: next().into(),
            inputs,
        });
    }
    let wide = ReductionTree::over_granules(2048, 8);
    for leaves in [0..8, 1..7, 3..8] {
        let program = wide.program(leaves);
        let spec = next().into();
        by.judge(&LinearTree { of: "2048 inputs", program, rows: &[1, 5], n: 35, spec, inputs });
    }
    let program = Program::sequential(77);
    by.judge(&LinearTree { of: "no tree", program, rows: &[1, 5], n: 35, spec: next().into(), inputs });
}

#[derive(Debug)]
struct Linear {
    rows: &'static [usize],
    n: usize,
    k: usize,
    format: WeightFormat,
    /// What activations are rounded to before they are given to the device.
    inputs: Option<DType>,
}

impl Case for Linear {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let mut values = Values::new(self.n * 1000 + self.k);
        let weight = values.matrix(self.n, self.k);
        let packed = pack(dev, &weight, self.format);
        assert_eq!(dev.weight_shape(&packed), [self.n, self.k], "weight_shape");
        let least = WeightSpec::from(self.format).bytes(self.n, self.k);
        assert!(dev.packed_bytes(&packed) >= least, "packed_bytes is less than {least}, in {self:?}");
        let bias = dev.upload(&values.vec(self.n), 1, self.n);
        let mut found = Vec::new();
        for (i, &t) in self.rows.iter().enumerate() {
            let x = dev.upload(&rounded(values.vec(t * self.k), self.inputs), t, self.k);
            found.push(match (i + self.k) % 2 {
                0 => Found::tensor(dev, "linear", &dev.linear(&x, &packed, None)),
                _ => Found::tensor(dev, "linear with bias", &dev.linear(&x, &packed, Some(&bias))),
            });
            // Its halves are multiplied, which no tolerance of sums is for.
            if self.inputs.is_none() && self.n.is_multiple_of(2) {
                let bias = (i % 2 > 0).then_some(&bias);
                let y = dev.linear_gated(&x, &packed, bias, Activation::Silu);
                found.push(Found::tensor(dev, "linear_gated", &y));
            }
        }
        found
    }
}

#[derive(Debug)]
struct LinearTree {
    #[expect(dead_code, reason = "for the message")]
    of: &'static str,
    program: Program,
    rows: &'static [usize],
    n: usize,
    spec: WeightSpec,
    inputs: Option<DType>,
}

impl Case for LinearTree {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let k = self.program.num_inputs();
        let mut values = Values::new(k);
        let packed = pack(dev, &values.matrix(self.n, k), self.spec);
        let run = |&t: &usize| {
            let x = dev.upload(&rounded(values.vec(t * k), self.inputs), t, k);
            Found::tensor(dev, "linear_tree", &dev.linear_tree(&x, &packed, &self.program))
        };
        self.rows.iter().map(run).collect()
    }
}

#[derive(Debug)]
struct Embed {
    n: usize,
    k: usize,
    format: WeightFormat,
}

impl Case for Embed {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let mut values = Values::new(self.n + self.k);
        let packed = pack(dev, &values.matrix(self.n, self.k), self.format);
        let run = |t: usize| {
            let mut rows: Vec<u32> = (0..t).map(|_| values.below(self.n) as u32).collect();
            // The last row, and one row twice.
            rows.iter_mut().step_by(3).for_each(|row| *row = self.n as u32 - 1);
            Found::tensor(dev, "embed", &dev.embed(&packed, &rows))
        };
        ROWS.into_iter().map(run).collect()
    }
}

/// Activations that are not finite, in one group of one row.
#[derive(Debug)]
struct Poisoned {
    format: WeightFormat,
}

impl Case for Poisoned {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (n, k) = (20, 100);
        let mut values = Values::new(n);
        let packed = pack(dev, &values.matrix(n, k), self.format);
        let run = |bad: f32| {
            let mut x = values.vec(3 * k);
            x[k + 70] = bad;
            Found::tensor(dev, "linear", &dev.linear(&dev.upload(&x, 3, k), &packed, None))
        };
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-39, 3e38].into_iter().map(run).collect()
    }
}

/// The largest products that there are, all of one sign or of both: what sums them in too few bits is found out.
#[derive(Debug)]
struct Extreme {
    format: WeightFormat,
}

impl Case for Extreme {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (n, k, rows) = (35, 96, 8);
        let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        let weight = ReferenceTensor::from_fn(n, k, |row, col| match row % 5 {
            // As int4 the largest number with a zero point of 0, and the smallest with the largest zero point.
            0 => 1.0,
            1 => -1.0,
            2 => sign(col),
            3 => sign(col / 2),
            _ => {
                if col.is_multiple_of(32) {
                    0.0
                } else {
                    1.0
                }
            }
        });
        let packed = pack(dev, &weight, self.format);
        let run = |height: usize| {
            let value = |at: usize| match at / k % 4 {
                0 => 1.0,
                1 => -1.0,
                2 => sign(at),
                _ => sign(at / 2),
            };
            let x: Vec<f32> = (0..height * k).map(value).collect();
            Found::tensor(dev, "linear", &dev.linear(&dev.upload(&x, height, k), &packed, None))
        };
        (1..=rows).map(run).collect()
    }
}
