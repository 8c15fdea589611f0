//! Mixtures of experts.

use std::ops::Range;

use super::linear::DTYPES;
use super::values::{Values, pack};
use super::{Case, Equal, Found, Judge, Near, check, rounded};
use crate::{DType, Device, Program, ReductionTree, RouterSpec, WeightFormat};

/// Routing, and the experts' linear layers up to their sum.
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn experts(dev: &impl Device) {
    let all = [(4, 1), (4, 2), (4, 4), (7, 3), (8, 2), (60, 4), (128, 8)];
    for (experts, top_k) in all {
        for normalize in [false, true] {
            for tokens in [0, 1, 2, 3, 13, 40] {
                check(dev, &Route { tokens, experts, spec: RouterSpec { top_k, normalize } });
            }
        }
    }
    for tokens in [0, 1, 2, 3, 13, 40] {
        for (experts, range) in [(1, 0..1), (5, 0..5), (5, 1..4), (33, 0..33), (64, 7..40), (4, 2..2)] {
            check(dev, &FromHost { tokens, experts, range });
        }
    }
    let formats = DTYPES.map(WeightFormat::Float);
    experts_of(dev, &formats);
}

/// The layers of experts whose weights are kept in these formats in turn.
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn experts_of(dev: &impl Device, formats: &[WeightFormat]) {
    experts_cases(formats, None, &Equal(dev));
}

/// [`experts_of`] of a format as [`super::linear_near`] has it.
///
/// # Panics
/// If the device differs by more from [`crate::Reference`].
pub fn experts_near(dev: &impl Device, format: WeightFormat, inputs: DType) {
    experts_cases(&[format], Some(inputs), &Near(dev));
}

fn experts_cases(formats: &[WeightFormat], inputs: Option<DType>, by: &impl Judge) {
    let mut formats = formats.iter().copied().cycle();
    for tokens in [0, 1, 2, 5, 13, 40] {
        for (experts, ranges) in [
            (4, vec![0..4, 0..1, 1..4, 1..3, 2..2]),
            (7, vec![0..7, 0..3, 3..5, 5..7, 1..6]),
            (33, vec![0..33, 5..20]),
        ] {
            for range in ranges {
                let format = formats.next().expect("a cycle does not end");
                let spec = RouterSpec { top_k: 2, normalize: true };
                by.judge(&Experts { tokens, experts, range, spec, format, inputs });
            }
        }
    }
}

/// Logits with ties and with experts that nobody chooses.
fn router_logits(tokens: usize, experts: usize) -> Vec<f32> {
    let mut values = Values::new(tokens * 1000 + experts);
    let mut logits = values.vec(tokens * experts);
    for (i, logit) in logits.iter_mut().enumerate() {
        match i % experts {
            2 => *logit = -20.0 - *logit,
            e if e % 3 == 0 => *logit = (*logit * 0.5).round(),
            _ => {}
        }
    }
    logits
}

/// The weights of every expert, one by one, which is what a routing is.
#[derive(Debug)]
struct Route {
    tokens: usize,
    experts: usize,
    spec: RouterSpec,
}

impl Case for Route {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let logits = dev.upload(&router_logits(self.tokens, self.experts), self.tokens, self.experts);
        let routing = dev.route(&logits, self.spec);
        let one = dev.pack(&Values::new(0).matrix(1, 0), DType::F32.into());
        let no_inputs = dev.upload(&[], self.tokens, 0);
        let mut found = Vec::from(host_choices(dev, &routing));
        let mut counts = dev.upload(&vec![3.0; self.experts], 1, self.experts);
        for _ in 0..2 {
            dev.count_choices(&routing, &mut counts).expect("count_choices");
        }
        found.push(Found::tensor(dev, "count_choices", &counts));
        for expert in 0..self.experts {
            let assignment = dev.assign(&routing, expert..expert + 1);
            let zeros = dev.grouped_linear(&no_inputs, &assignment, std::slice::from_ref(&one));
            let pairs = dev.shape(&zeros)[0];
            let ones = dev.upload(&vec![1.0; pairs], pairs, 1);
            let weights = dev.combine(&ones, &assignment, &Program::sequential(1));
            found.push(Found::tensor(dev, "route", &weights));
        }
        found
    }
}

/// What a routing is on the host: choices per token, ids, weights.
fn host_choices<D: Device>(dev: &D, routing: &D::Routing) -> [Found; 3] {
    let choices = dev.routing_to_host(routing).expect("routing_to_host");
    let counts = choices.iter().map(|chosen| chosen.len() as f32).collect();
    let (ids, weights) = choices.into_iter().flatten().map(|(e, w)| (e as f32, w)).unzip();
    [
        Found::host("routing_to_host: choices per token", counts),
        Found::host("routing_to_host: ids", ids),
        Found::host("routing_to_host: weights", weights),
    ]
}

/// Choices that another rank made: of some tokens none, of others all experts.
#[derive(Debug)]
struct FromHost {
    tokens: usize,
    experts: usize,
    range: Range<usize>,
}

impl Case for FromHost {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (hidden, n) = (24, 33);
        let mut values = Values::new(self.tokens + self.experts);
        let mut next = values.vec(self.tokens * self.experts).into_iter();
        let of_token = |token: usize| -> Vec<(u32, f32)> {
            let ids = 0..self.experts as u32;
            let all = ids.zip(next.by_ref()).filter(|(id, w)| match token % 4 {
                0 => false,
                1 => true,
                _ => *w > 0.0 || *id as usize == token % self.experts,
            });
            all.collect()
        };
        let choices: Vec<_> = (0..self.tokens).map(of_token).collect();
        let routing = dev.routing_from_host(&choices, self.experts);
        let mut found = Vec::from(host_choices(dev, &routing));
        let mut counts = dev.upload(&vec![0.0; self.experts], 1, self.experts);
        dev.count_choices(&routing, &mut counts).expect("count_choices");
        found.push(Found::tensor(dev, "count_choices", &counts));
        let assignment = dev.assign(&routing, self.range.clone());
        let x = dev.upload(&values.vec(self.tokens * hidden), self.tokens, hidden);
        let weights: Vec<_> =
            self.range.clone().map(|_| dev.pack(&values.matrix(n, hidden), DType::F32.into())).collect();
        let y = dev.grouped_linear(&x, &assignment, &weights);
        found.push(Found::tensor(dev, "grouped_linear", &y));
        let of_ids = ReductionTree::over_ids(self.experts).program(self.range.clone());
        found.push(Found::tensor(dev, "combine", &dev.combine(&y, &assignment, &of_ids)));
        found
    }
}

/// What one rank does that holds a range of the experts.
#[derive(Debug)]
struct Experts {
    tokens: usize,
    experts: usize,
    range: Range<usize>,
    spec: RouterSpec,
    format: WeightFormat,
    /// What activations are rounded to before they are given to the device.
    inputs: Option<DType>,
}

impl Case for Experts {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (hidden, intermediate) = (24, 72);
        let mut values = Values::new(self.experts);
        let logits = dev.upload(&router_logits(self.tokens, self.experts), self.tokens, self.experts);
        let routing = dev.route(&logits, self.spec);
        let choices = dev.routing_to_host(&routing).expect("routing_to_host");
        let is_here = |(expert, _): &&(u32, f32)| self.range.contains(&(*expert as usize));
        let pairs = choices.iter().flatten().filter(is_here).count();
        let assignment = dev.assign(&routing, self.range.clone());
        let x = dev.upload(&rounded(values.vec(self.tokens * hidden), self.inputs), self.tokens, hidden);
        let weights = |values: &mut Values, n, k| -> Vec<D::Weight> {
            self.range.clone().map(|_| pack(dev, &values.matrix(n, k), self.format)).collect()
        };
        let up = weights(&mut values, intermediate, hidden);
        let y = dev.grouped_linear(&x, &assignment, &up);
        let mut found = vec![of_pairs(dev, "grouped_linear", &y, 1, pairs)];

        let granules = ReductionTree::over_granules(intermediate, 8);
        for leaves in [0..3, 1..3, 0..1] {
            let inputs = granules.inputs_of(leaves.clone());
            let down = weights(&mut values, hidden + 1, inputs.len());
            let (rows, cols) = (dev.shape(&y)[0], inputs.len());
            let part = match self.inputs {
                // Not of sums that may differ in their last place: once they are rounded, they may differ by far more.
                Some(_) => {
                    let mut part = rounded(values.vec(pairs * cols), self.inputs);
                    part.resize(rows * cols, 0.0);
                    dev.upload(&part, rows, cols)
                }
                None if self.range.is_empty() => dev.alloc(rows, cols),
                None => dev.gather_cols(&y, inputs),
            };
            let program = granules.program(leaves);
            let sums = dev.grouped_linear_tree(&part, &assignment, &down, &program);
            found.push(of_pairs(dev, "grouped_linear_tree", &sums, program.num_nodes(), pairs));
        }
        let of_ids = ReductionTree::over_ids(self.experts).program(self.range.clone());
        found.push(Found::tensor(dev, "combine", &dev.combine(&y, &assignment, &of_ids)));
        found
    }
}

/// The rows of pairs, of as many nodes: a device may have more behind them.
fn of_pairs<D: Device>(dev: &D, op: &'static str, x: &D::Tensor, nodes: usize, pairs: usize) -> Found {
    let Found { shape: [rows, cols], data, .. } = Found::tensor(dev, op, x);
    assert!(
        rows % nodes == 0 && rows / nodes >= pairs,
        "{op}: {rows} rows for {nodes} nodes of {pairs} pairs"
    );
    let of_node = |node: usize| data[node * (rows / nodes) * cols..][..pairs * cols].iter().copied();
    Found { op, shape: [nodes * pairs, cols], data: (0..nodes).flat_map(of_node).collect() }
}
