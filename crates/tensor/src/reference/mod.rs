//! The slow and obvious device: every operation written down as the docs of [`Device`] state it, one scalar
//! after the other. It is what [`crate::conformance`] compares the fast devices with.

mod attention;
mod experts;
mod logits;
mod rows;
#[cfg(test)]
mod tests;
mod types;
mod weight;

pub use types::{ReferenceAssignment, ReferenceKv, ReferenceRouting, ReferenceTensor};
pub use weight::ReferenceWeight;

use std::ops::Range;

use crate::{
    Activation, AttentionSpec, Device, DeviceError, HeadSpan, HostDevice, KV_BLOCK, KvSpec, LogitEdit,
    MatrixSource, NormSpec, Program, RopeSpec, RouterSpec, StepMeta, WeightSpec,
};

/// The device whose results are right by definition.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Products summed in ascending order by FMA, from +0.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "a sum of products of vectors of different lengths");
    a.iter().zip(b).fold(0.0, |sum, (a, b)| f32::mul_add(*a, *b, sum))
}

/// `if a > b { a } else { b }`.
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The sum of 16 lanes by halves.
fn sum_of_lanes(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

/// One program per element of a `[rows, cols]` result: `item(row, col, i)` is the value of item `i`.
/// → `[nodes · rows, cols]`
fn run_tree(
    program: &Program,
    rows: usize,
    cols: usize,
    item: impl Fn(usize, usize, usize) -> f32,
) -> ReferenceTensor {
    let mut out = ReferenceTensor::from_fn(program.num_nodes() * rows, cols, |_, _| f32::NAN);
    for row in 0..rows {
        for col in 0..cols {
            for (node, sum) in program.run(|i| item(row, col, i)).into_iter().enumerate() {
                out.data[(node * rows + row) * cols + col] = sum;
            }
        }
    }
    out
}

impl Device for Reference {
    type Tensor = ReferenceTensor;
    type Weight = ReferenceWeight;
    type Kv = ReferenceKv;
    type Step = StepMeta;
    type Routing = ReferenceRouting;
    type Assignment = ReferenceAssignment;

    fn name(&self) -> String {
        "reference".into()
    }

    fn upload(&self, data: &[f32], rows: usize, cols: usize) -> ReferenceTensor {
        assert_eq!(data.len(), rows * cols, "upload of [{rows}, {cols}]");
        ReferenceTensor { rows, cols, data: data.to_vec() }
    }

    /// NaN, so that nobody relies on the content.
    fn alloc(&self, rows: usize, cols: usize) -> ReferenceTensor {
        ReferenceTensor::from_fn(rows, cols, |_, _| f32::NAN)
    }

    fn download(&self, x: &ReferenceTensor) -> Result<Vec<f32>, DeviceError> {
        Ok(x.data.clone())
    }

    fn shape(&self, x: &ReferenceTensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn pack(&self, source: &dyn MatrixSource, spec: WeightSpec) -> ReferenceWeight {
        ReferenceWeight::new(source, spec)
    }

    fn weight_shape(&self, w: &ReferenceWeight) -> [usize; 2] {
        [w.values.rows, w.values.cols]
    }

    /// As if it were stored in its type, without padding.
    fn packed_bytes(&self, w: &ReferenceWeight) -> usize {
        w.spec.bytes(w.values.rows, w.values.cols)
    }

    fn alloc_kv(&self, spec: KvSpec) -> ReferenceKv {
        ReferenceKv { spec, written: vec![None; spec.blocks * KV_BLOCK] }
    }

    fn begin(&self, meta: &StepMeta) -> StepMeta {
        let mut next_row = 0;
        for sequence in &meta.sequences {
            assert_eq!(
                sequence.rows.start, next_row,
                "the sequences of a step follow each other without gaps"
            );
            next_row = sequence.rows.end;
        }
        assert_eq!(next_row, meta.num_rows(), "the sequences of a step hold all of its rows");
        meta.clone()
    }

    fn linear(
        &self,
        x: &ReferenceTensor,
        w: &ReferenceWeight,
        bias: Option<&ReferenceTensor>,
    ) -> ReferenceTensor {
        assert_eq!(x.cols, w.values.cols, "linear: inputs of x and of the weight");
        ReferenceTensor::from_fn(x.rows, w.values.rows, |t, n| {
            let sum = w.sum_of_products(x.row(t), n, 0..x.cols);
            bias.map_or(sum, |bias| sum + bias.at(0, n))
        })
    }

    fn linear_tree(&self, x: &ReferenceTensor, w: &ReferenceWeight, program: &Program) -> ReferenceTensor {
        assert_eq!(x.cols, program.num_inputs(), "linear_tree: inputs of x and of the program");
        assert_eq!(x.cols, w.values.cols, "linear_tree: inputs of x and of the weight");
        run_tree(program, x.rows, w.values.rows, |t, n, item| {
            w.sum_of_products(x.row(t), n, program.inputs[item].clone())
        })
    }

    fn embed(&self, w: &ReferenceWeight, rows: &[u32]) -> ReferenceTensor {
        self.gather_rows(&w.values, rows)
    }

    fn gather_rows(&self, x: &ReferenceTensor, rows: &[u32]) -> ReferenceTensor {
        ReferenceTensor::from_fn(rows.len(), x.cols, |row, col| x.at(rows[row] as usize, col))
    }

    fn gather_cols(&self, x: &ReferenceTensor, cols: Range<usize>) -> ReferenceTensor {
        ReferenceTensor::from_fn(x.rows, cols.len(), |row, col| x.at(row, cols.start + col))
    }

    fn norm(
        &self,
        x: &ReferenceTensor,
        weight: &ReferenceTensor,
        bias: Option<&ReferenceTensor>,
        spec: NormSpec,
    ) -> ReferenceTensor {
        assert_eq!(x.cols, weight.cols, "norm: columns of x and of the weight");
        let mut y = x.clone();
        for row in 0..x.rows {
            let row = &mut y.data[row * x.cols..(row + 1) * x.cols];
            rows::norm(row, weight.row(0), bias.map(|b| b.row(0)), spec);
        }
        y
    }

    fn head_norm(&self, x: &mut ReferenceTensor, span: HeadSpan, weight: &ReferenceTensor, spec: NormSpec) {
        for row in 0..x.rows {
            for head in 0..span.heads {
                rows::norm(x.head_mut(row, span, head), weight.row(0), None, spec);
            }
        }
    }

    fn rope_table(&self, step: &StepMeta, rope: &RopeSpec) -> ReferenceTensor {
        rows::rope_table(&step.positions(), &rope.inv_freq)
    }

    fn rope(&self, x: &mut ReferenceTensor, span: HeadSpan, table: &ReferenceTensor) {
        assert_eq!(x.rows, table.rows, "rope: rows of x and of the table");
        for row in 0..x.rows {
            for head in 0..span.heads {
                rows::rotate(x.head_mut(row, span, head), table.row(row));
            }
        }
    }

    fn gated(&self, x: &ReferenceTensor, activation: Activation) -> ReferenceTensor {
        assert_eq!(x.cols % 2, 0, "gated: an even number of columns");
        let f = x.cols / 2;
        ReferenceTensor::from_fn(x.rows, f, |t, i| rows::activation(activation, x.at(t, i)) * x.at(t, f + i))
    }

    fn activate(&self, x: &mut ReferenceTensor, activation: Activation) {
        x.map(|x| rows::activation(activation, x));
    }

    fn add(&self, x: &mut ReferenceTensor, y: &ReferenceTensor) {
        assert!(x.cols == y.cols && (y.rows == x.rows || y.rows == 1), "add: shapes of x and y");
        let every_row = y.rows != x.rows;
        *x = ReferenceTensor::from_fn(x.rows, x.cols, |t, c| {
            x.at(t, c) + y.at(if every_row { 0 } else { t }, c)
        });
    }

    fn scale(&self, x: &mut ReferenceTensor, by: f32) {
        x.map(|x| x * by);
    }

    fn softcap(&self, x: &mut ReferenceTensor, cap: f32) {
        x.map(|x| rows::softcap(x, cap));
    }

    fn store_kv(&self, kv: &mut ReferenceKv, qkv: &ReferenceTensor, step: &StepMeta, spec: &AttentionSpec) {
        attention::store(kv, qkv, step, spec);
    }

    fn copy_kv(&self, kv: &mut ReferenceKv, pairs: &[(u32, u32)]) {
        attention::copy(kv, pairs);
    }

    fn attention(
        &self,
        qkv: &ReferenceTensor,
        kv: &ReferenceKv,
        step: &StepMeta,
        spec: &AttentionSpec,
    ) -> ReferenceTensor {
        attention::attention(qkv, kv, step, spec)
    }

    fn attention_segments(
        &self,
        q: &ReferenceTensor,
        kv: &ReferenceKv,
        step: &StepMeta,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> ReferenceTensor {
        attention::segments(q, kv, step, spec, rows)
    }

    fn merge_segments(
        &self,
        parts: &ReferenceTensor,
        owners: usize,
        step: &StepMeta,
        spec: &AttentionSpec,
        rows: Range<usize>,
        out: &mut ReferenceTensor,
    ) {
        attention::merge(parts, owners, step, spec, rows, out);
    }

    fn route(&self, logits: &ReferenceTensor, spec: RouterSpec) -> ReferenceRouting {
        let chosen = (0..logits.rows).map(|t| experts::choose(logits.row(t), spec)).collect();
        ReferenceRouting { experts: logits.cols, chosen }
    }

    fn routing_to_host(&self, routing: &ReferenceRouting) -> Result<Vec<Vec<(u32, f32)>>, DeviceError> {
        let to_host = |chosen: &Vec<(usize, f32)>| chosen.iter().map(|&(e, w)| (e as u32, w)).collect();
        Ok(routing.chosen.iter().map(to_host).collect())
    }

    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> ReferenceRouting {
        experts::routing_from_host(choices, experts)
    }

    fn assign(&self, routing: &ReferenceRouting, experts: Range<usize>) -> ReferenceAssignment {
        experts::assign(routing, experts)
    }

    fn grouped_linear(
        &self,
        x: &ReferenceTensor,
        assignment: &ReferenceAssignment,
        weights: &[ReferenceWeight],
    ) -> ReferenceTensor {
        experts::grouped_linear(x, assignment, weights)
    }

    fn grouped_linear_tree(
        &self,
        x: &ReferenceTensor,
        assignment: &ReferenceAssignment,
        weights: &[ReferenceWeight],
        program: &Program,
    ) -> ReferenceTensor {
        experts::grouped_linear_tree(x, assignment, weights, program)
    }

    fn combine(
        &self,
        y: &ReferenceTensor,
        assignment: &ReferenceAssignment,
        program: &Program,
    ) -> ReferenceTensor {
        experts::combine(y, assignment, program)
    }

    fn edit_logits(&self, logits: &mut ReferenceTensor, edits: &[LogitEdit]) {
        logits::edit(logits, edits);
    }

    fn row_max(&self, logits: &ReferenceTensor) -> Result<Vec<f32>, DeviceError> {
        Ok((0..logits.rows).map(|t| logits.row(t).iter().copied().fold(f32::NEG_INFINITY, max)).collect())
    }

    fn exp_sums(
        &self,
        logits: &ReferenceTensor,
        max: &[f32],
        program: &Program,
    ) -> Result<Vec<f32>, DeviceError> {
        assert_eq!(logits.rows, max.len(), "exp_sums: one maximum per row");
        Ok((0..logits.rows).flat_map(|t| logits::exp_sums(logits.row(t), max[t], program)).collect())
    }

    fn top_k(
        &self,
        logits: &ReferenceTensor,
        skip: usize,
        k: usize,
    ) -> Result<Vec<Vec<(f32, u32)>>, DeviceError> {
        Ok((0..logits.rows).map(|t| logits::top_k(logits.row(t), skip, k)).collect())
    }

    fn pick(&self, logits: &ReferenceTensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError> {
        Ok(at.iter().map(|&(row, col)| logits.at(row, col)).collect())
    }

    fn count_before(
        &self,
        logits: &ReferenceTensor,
        places: &[(f32, usize)],
    ) -> Result<Vec<u32>, DeviceError> {
        assert_eq!(logits.rows, places.len(), "count_before: one place per row");
        Ok((0..).zip(places).map(|(t, &place)| logits::count_before(logits.row(t), place)).collect())
    }
}

impl HostDevice for Reference {
    fn as_slice<'a>(&self, x: &'a ReferenceTensor) -> &'a [f32] {
        &x.data
    }
    fn as_mut_slice<'a>(&self, x: &'a mut ReferenceTensor) -> &'a mut [f32] {
        &mut x.data
    }
    fn parallel(&self, items: usize, _grain: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        work(0..items);
    }
}
