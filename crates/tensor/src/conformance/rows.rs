//! What works on rows one by one.

use super::values::Values;
use super::{Case, Found, check};
use crate::{
    Activation, Device, HeadSpan, NormKind, NormSpec, RopeSpec, RowNorm, SequenceSpan, StepMeta, math,
};

const LAYER: NormKind = NormKind::Layer;
const RMS: NormKind = NormKind::Rms { weight_offset: 0.0 };
const RMS_FROM_ONE: NormKind = NormKind::Rms { weight_offset: 1.0 };

/// Copies, norms, rotary positions, activations and sums.
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn rows(dev: &impl Device) {
    for cols in [0, 1, 15, 16, 17, 48, 136, 259] {
        for rows in [0, 1, 3, 7] {
            check(dev, &Elements { rows, cols });
            check(dev, &Copies { rows, cols });
        }
    }
    for cols in (1..=40).chain([64, 136, 259, 1000]) {
        for kind in [RMS, RMS_FROM_ONE, LAYER] {
            check(dev, &Norm { rows: 1 + cols % 7, cols, spec: NormSpec { kind, eps: 1e-5 } });
        }
    }
    check(dev, &Norm { rows: 0, cols: 16, spec: NormSpec { kind: RMS, eps: 1e-6 } });
    for (rows, cols) in [(1, 1), (5, 0), (0, 16), (3, 16), (2, 17), (7, 136), (1, 259), (4, 1000)] {
        for kind in [RMS, RMS_FROM_ONE, LAYER] {
            for post in [None, Some(kind), Some(LAYER)] {
                check(dev, &AddNorm { rows, cols, post, kind });
            }
        }
    }
    for head_dim in [1, 8, 12, 16, 40, 64, 80] {
        for heads in [0, 1, 2, 5] {
            for kind in [RMS, RMS_FROM_ONE, LAYER] {
                let span = HeadSpan { first_col: 5 + heads, heads, head_dim };
                check(dev, &HeadNorm { rows: 6, span, spec: NormSpec { kind, eps: 1e-6 } });
            }
        }
    }
    for (head_dim, pairs) in
        [(2, 1), (8, 4), (12, 6), (12, 4), (16, 0), (64, 32), (64, 8), (80, 40), (80, 16), (80, 10)]
    {
        for heads in [0, 1, 3] {
            check(dev, &Rope { span: HeadSpan { first_col: 7, heads, head_dim }, pairs });
            for kind in [RMS, RMS_FROM_ONE, LAYER] {
                check(dev, &HeadNormRope { heads: [heads, 2], head_dim, pairs, kind });
            }
        }
    }
}

/// Operations that give a number for a number.
#[derive(Debug)]
struct Elements {
    rows: usize,
    cols: usize,
}

impl Case for Elements {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (t, c) = (self.rows, self.cols);
        let mut values = Values::new(t * 1000 + c);
        let mut found = Vec::new();
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
            // By 8, so that exponentials overflow and vanish.
            let mut x = dev.upload(&values.scaled(t * c, 8.0), t, c);
            dev.activate(&mut x, activation);
            found.push(Found::tensor(dev, "activate", &x));
            let x = dev.upload(&values.scaled(t * 2 * c, 8.0), t, 2 * c);
            found.push(Found::tensor(dev, "gated", &dev.gated(&x, activation)));
        }
        let mut x = dev.upload(&values.vec(t * c), t, c);
        dev.add(&mut x, &dev.upload(&values.vec(t * c), t, c));
        found.push(Found::tensor(dev, "add", &x));
        dev.add(&mut x, &dev.upload(&values.vec(c), 1, c));
        found.push(Found::tensor(dev, "add of one row", &x));
        dev.scale(&mut x, 0.3);
        found.push(Found::tensor(dev, "scale", &x));
        dev.softcap(&mut x, 1.5);
        found.push(Found::tensor(dev, "softcap", &x));
        found
    }
}

/// Operations that move numbers.
#[derive(Debug)]
struct Copies {
    rows: usize,
    cols: usize,
}

impl Case for Copies {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (t, c) = (self.rows, self.cols);
        let x = dev.upload(&Values::new(c).vec(t * c), t, c);
        let mut found = vec![Found::tensor(dev, "upload", &x)];
        assert_eq!(dev.shape(&dev.alloc(t, c)), [t, c], "shape of alloc");
        let last_to_first: Vec<u32> = (0..t as u32).rev().chain(0..t.min(2) as u32).collect();
        for rows in [&last_to_first[..], &[]] {
            found.push(Found::tensor(dev, "gather_rows", &dev.gather_rows(&x, rows)));
        }
        for cols in [0..c, 0..0, c..c, c / 3..c, c / 5..c / 2] {
            found.push(Found::tensor(dev, "gather_cols", &dev.gather_cols(&x, cols)));
        }
        // Every row of the matrix is a part, then the whole is one; columns come in any order, also twice.
        for (parts, rows) in [(t, 1), (1, t)].into_iter().filter(|_| t > 0 && c > 0) {
            let place = |i: u32| (i * 5 % parts as u32, (i * 3 + 1) % c as u32);
            for columns in [0, 1, 2 * c as u32 + 1] {
                let columns: Vec<(u32, u32)> = (0..columns).map(place).collect();
                let y = dev.regroup(&x, rows, &columns).unwrap_or_else(|error| panic!("regroup: {error}"));
                found.push(Found::tensor(dev, "regroup", &y));
            }
        }
        found
    }
}

#[derive(Debug)]
struct Norm {
    rows: usize,
    cols: usize,
    spec: NormSpec,
}

impl Case for Norm {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (t, c) = (self.rows, self.cols);
        let mut values = Values::new(c);
        let mut x = values.vec(t * c);
        // One row of zeros.
        x.iter_mut().skip((t / 2) * c).take(c).for_each(|x| *x = 0.0);
        let x = dev.upload(&x, t, c);
        let weight = dev.upload(&values.vec(c), 1, c);
        let bias = dev.upload(&values.vec(c), 1, c);
        let mut found = vec![Found::tensor(dev, "norm", &dev.norm(&x, &weight, None, self.spec))];
        if self.spec.kind == LAYER {
            found.push(Found::tensor(dev, "norm with bias", &dev.norm(&x, &weight, Some(&bias), self.spec)));
        }
        found
    }
}

/// Without a norm of the right side, the sum of the first half of the rows is zero.
#[derive(Debug)]
struct AddNorm {
    rows: usize,
    cols: usize,
    post: Option<NormKind>,
    kind: NormKind,
}

impl Case for AddNorm {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (t, c) = (self.rows, self.cols);
        let mut values = Values::new(t * 1000 + c);
        let (data, zeros) = (values.vec(t * c), (t / 2) * c);
        let mut x = dev.upload(&data, t, c);
        let mut y: Vec<f32> = data[..zeros].iter().map(|x| -x).collect();
        y.extend(values.vec(t * c - zeros));
        let y = dev.upload(&y, t, c);
        let vectors: Vec<D::Tensor> = (0..4).map(|_| dev.upload(&values.vec(c), 1, c)).collect();
        let norm = |kind: NormKind, at: usize| RowNorm {
            weight: &vectors[at],
            bias: kind.has_bias().then_some(&vectors[at + 1]),
            spec: NormSpec { kind, eps: 1e-5 },
        };
        let normed = dev.add_norm(&mut x, &y, self.post.map(|kind| norm(kind, 0)), norm(self.kind, 2));
        vec![Found::tensor(dev, "sum of add_norm", &x), Found::tensor(dev, "add_norm", &normed)]
    }
}

#[derive(Debug)]
struct HeadNorm {
    rows: usize,
    span: HeadSpan,
    spec: NormSpec,
}

impl Case for HeadNorm {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let HeadSpan { first_col, heads, head_dim } = self.span;
        let cols = first_col + heads * head_dim + 3;
        let mut values = Values::new(cols);
        let mut x = dev.upload(&values.vec(self.rows * cols), self.rows, cols);
        let weight = dev.upload(&values.vec(head_dim), 1, head_dim);
        dev.head_norm(&mut x, self.span, &weight, self.spec);
        vec![Found::tensor(dev, "head_norm", &x)]
    }
}

#[derive(Debug)]
struct Rope {
    span: HeadSpan,
    pairs: usize,
}

impl Case for Rope {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (t, table) = rope_table(dev, self.pairs);
        let mut found = vec![Found::tensor(dev, "rope_table", &table)];

        let HeadSpan { first_col, heads, head_dim } = self.span;
        let cols = first_col + heads * head_dim + 9;
        let mut x = dev.upload(&Values::new(cols).vec(t * cols), t, cols);
        dev.rope(&mut x, self.span, &table);
        found.push(Found::tensor(dev, "rope", &x));
        found
    }
}

/// Heads of queries, a gap, heads of keys, and columns behind them.
#[derive(Debug)]
struct HeadNormRope {
    heads: [usize; 2],
    head_dim: usize,
    pairs: usize,
    kind: NormKind,
}

impl Case for HeadNormRope {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (t, table) = rope_table(dev, self.pairs);
        let ([heads, more], head_dim) = (self.heads, self.head_dim);
        let q = HeadSpan { first_col: 3, heads, head_dim };
        let k = HeadSpan { first_col: 3 + heads * head_dim + 2, heads: more, head_dim };
        let cols = k.first_col + more * head_dim + 5;
        let mut values = Values::new(cols);
        let mut x = dev.upload(&values.vec(t * cols), t, cols);
        let weights: [D::Tensor; 2] = std::array::from_fn(|_| dev.upload(&values.vec(head_dim), 1, head_dim));
        let spec = NormSpec { kind: self.kind, eps: 1e-6 };
        dev.head_norm_rope(&mut x, [(q, &weights[0]), (k, &weights[1])], spec, &table);
        vec![Found::tensor(dev, "head_norm_rope", &x)]
    }
}

/// Rows of three sequences, and their cosines and sines.
fn rope_table<D: Device>(dev: &D, pairs: usize) -> (usize, D::Tensor) {
    let mut step = StepMeta::default();
    for (start, rows) in [(0, 3), (17, 1), (131_000, 5)] {
        let first = step.tokens.len();
        step.tokens.extend(0..rows);
        // Rotary positions need no cache.
        let block_table = vec![0; (start + rows as usize).div_ceil(crate::KV_BLOCK)];
        step.sequences.push(SequenceSpan { rows: first..step.tokens.len(), start, block_table });
    }
    let inv_freq = (0..pairs).map(|i| math::pow_f64(10_000.0, -(i as f64) / pairs as f64) as f32);
    let table = dev.rope_table(&dev.begin(&step), &RopeSpec { inv_freq: inv_freq.collect() });
    (step.num_rows(), table)
}
