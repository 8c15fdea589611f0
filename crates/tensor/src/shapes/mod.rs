//! A device whose tensors have shapes and no elements. It checks what every operation is given, says what would
//! come out, and tells a [`Recorder`] what happened: the shape rules of [`Device`], once, for [`crate::Trace`] and
//! [`crate::Cost`].

mod attention;
mod checks;
mod experts;
mod recorder;
mod types;

pub use recorder::Recorder;
pub use types::{ShapeAssignment, ShapeRouting, ShapeTensor, ShapeWeight};

use std::fmt;
use std::ops::Range;

use self::checks::{
    cost, heads, heads_fit, nodes_of, norm_fits, norm_flops, optional, plus_bias, rotated_pairs, rows_exist,
    same, span_fits,
};
use self::types::short_kv_name;
use crate::{
    Activation, AttentionSpec, Device, DeviceError, Exchanged, HeadSpan, KV_BLOCK, KvShare, KvSpec,
    LogitEdit, MatrixSource, NormSpec, OpCost, Part, Program, RopeSpec, RouterSpec, RowNorm, StepMeta,
    WeightSpec,
};

/// FLOPs of a function of one element.
const FUNCTION: usize = 10;
/// Columns of a panel: outputs of a weight that lie side by side, or ids of the vocabulary.
const PANEL: usize = 16;

/// The device. Where numbers are asked for, it answers as if all elements were zero.
#[derive(Debug, Default)]
pub struct Shapes<R> {
    recorder: R,
}

impl<R: Recorder> Shapes<R> {
    /// What listens.
    pub fn recorder(&self) -> &R {
        &self.recorder
    }

    fn record(&self, op: &'static str, cost: OpCost, detail: fmt::Arguments<'_>) {
        self.recorder.record(op, cost, detail);
    }
}

impl<R: Recorder> Device for Shapes<R> {
    type Tensor = ShapeTensor;
    type Weight = ShapeWeight;
    type Kv = KvSpec;
    type Step = StepMeta;
    type Routing = ShapeRouting;
    type Assignment = ShapeAssignment;

    fn name(&self) -> String {
        R::NAME.into()
    }

    fn upload(&self, data: &[f32], rows: usize, cols: usize) -> ShapeTensor {
        same("upload", "elements", data.len(), rows * cols);
        ShapeTensor { rows, cols }
    }

    fn alloc(&self, rows: usize, cols: usize) -> ShapeTensor {
        ShapeTensor { rows, cols }
    }

    fn download(&self, x: &ShapeTensor) -> Result<Vec<f32>, DeviceError> {
        self.record("download", cost(0, x.len()), format_args!("{x}"));
        Ok(vec![0.0; x.len()])
    }

    fn shape(&self, x: &ShapeTensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn pack(&self, source: &dyn MatrixSource, spec: WeightSpec) -> ShapeWeight {
        ShapeWeight { n: source.rows(), k: source.cols(), spec }
    }

    fn weight_shape(&self, w: &ShapeWeight) -> [usize; 2] {
        [w.n, w.k]
    }

    /// In panels of 16 outputs.
    fn packed_bytes(&self, w: &ShapeWeight) -> usize {
        w.packed_bytes()
    }

    fn alloc_kv(&self, spec: KvSpec) -> KvSpec {
        spec
    }

    fn begin(&self, meta: &StepMeta) -> StepMeta {
        let mut rows = 0;
        for sequence in &meta.sequences {
            same("begin", "first row of a sequence", sequence.rows.start, rows);
            rows = sequence.rows.end;
            let (end, blocks) = (sequence.start + sequence.rows.len(), sequence.block_table.len());
            assert!(end <= blocks * KV_BLOCK, "begin: {end} positions in {blocks} blocks");
        }
        same("begin", "rows of all sequences", rows, meta.num_rows());
        rows_exist("begin: logit_rows", &meta.logit_rows, rows);
        meta.clone()
    }

    fn linear(&self, x: &ShapeTensor, w: &ShapeWeight, bias: Option<&ShapeTensor>) -> ShapeTensor {
        same("linear", "inputs of x and of the weight", x.cols, w.k);
        bias.inspect(|bias| same("linear", "bias", **bias, ShapeTensor { rows: 1, cols: w.n }));
        let y = ShapeTensor { rows: x.rows, cols: w.n };
        let bias_elements = bias.map_or(0, ShapeTensor::len);
        let mut cost = cost(2 * y.len() * w.k, x.len() + bias_elements + y.len());
        cost.weight_bytes = w.bytes_read(x.rows);
        self.record("linear", cost, format_args!("{x} x {w}{} -> {y}", plus_bias(bias)));
        y
    }

    fn linear_tree(&self, x: &ShapeTensor, w: &ShapeWeight, program: &Program) -> ShapeTensor {
        same("linear_tree", "inputs of x and of the weight", x.cols, w.k);
        same("linear_tree", "inputs of x and of the program", x.cols, program.num_inputs());
        let nodes = program.num_nodes();
        let y = ShapeTensor { rows: nodes * x.rows, cols: w.n };
        let mut cost = cost(2 * x.len() * w.n, x.len() + y.len());
        cost.weight_bytes = w.bytes_read(x.rows);
        self.record("linear_tree", cost, format_args!("{x} x {w}, {} -> {y}", nodes_of(program)));
        y
    }

    fn embed(&self, w: &ShapeWeight, rows: &[u32]) -> ShapeTensor {
        rows_exist("embed", rows, w.n);
        let y = ShapeTensor { rows: rows.len(), cols: w.k };
        let weight_bytes = w.spec.bytes(rows.len(), w.k) as u64;
        self.record("embed", OpCost { weight_bytes, ..cost(0, y.len()) }, format_args!("{w} -> {y}"));
        y
    }

    fn gather_rows(&self, x: &ShapeTensor, rows: &[u32]) -> ShapeTensor {
        rows_exist("gather_rows", rows, x.rows);
        let y = ShapeTensor { rows: rows.len(), cols: x.cols };
        self.record("gather_rows", cost(0, 2 * y.len()), format_args!("{x} -> {y}"));
        y
    }

    fn gather_cols(&self, x: &ShapeTensor, cols: Range<usize>) -> ShapeTensor {
        assert!(cols.start <= cols.end && cols.end <= x.cols, "gather_cols: columns {cols:?} of {x}");
        let y = ShapeTensor { rows: x.rows, cols: cols.len() };
        self.record("gather_cols", cost(0, 2 * y.len()), format_args!("{x}, columns {cols:?} -> {y}"));
        y
    }

    fn norm(
        &self,
        x: &ShapeTensor,
        weight: &ShapeTensor,
        bias: Option<&ShapeTensor>,
        spec: NormSpec,
    ) -> ShapeTensor {
        let norm = RowNorm { weight, bias, spec };
        let weights = norm_fits("norm", norm, x);
        let cost = cost(norm_flops(spec.kind) * x.len(), 2 * x.len() + weights);
        self.record("norm", cost, format_args!("{} {x}{}", spec.kind, plus_bias(bias)));
        *x
    }

    /// What lies between sum and norms stays in registers and caches.
    fn add_norm(
        &self,
        x: &mut ShapeTensor,
        y: &ShapeTensor,
        post: Option<RowNorm<'_, ShapeTensor>>,
        norm: RowNorm<'_, ShapeTensor>,
    ) -> ShapeTensor {
        same("add_norm", "x and y", *x, *y);
        let norms = || post.iter().chain([&norm]);
        let flops = 1 + norms().map(|norm| norm_flops(norm.spec.kind)).sum::<usize>();
        let weights: usize = norms().map(|norm| norm_fits("add_norm", *norm, x)).sum();
        let cost = cost(flops * x.len(), 4 * x.len() + weights);
        let of = |norm: RowNorm<'_, ShapeTensor>| format!("{}{}", norm.spec.kind, plus_bias(norm.bias));
        let post = post.map_or(String::new(), |post| of(post) + " ");
        self.record("add_norm", cost, format_args!("{x} + {post}{y}, {}", of(norm)));
        *x
    }

    fn head_norm(&self, x: &mut ShapeTensor, span: HeadSpan, weight: &ShapeTensor, spec: NormSpec) {
        let elements = heads_fit("head_norm", span, weight, x);
        let cost = cost(norm_flops(spec.kind) * elements, 2 * elements + span.head_dim);
        self.record("head_norm", cost, format_args!("{} {span} of {x}", spec.kind));
    }

    fn rope_table(&self, step: &StepMeta, rope: &RopeSpec) -> ShapeTensor {
        let pairs = rope.inv_freq.len();
        let y = ShapeTensor { rows: step.num_rows(), cols: 2 * pairs };
        self.record("rope_table", cost(FUNCTION * y.len(), y.len()), format_args!("{pairs} pairs -> {y}"));
        y
    }

    fn rope(&self, x: &mut ShapeTensor, span: HeadSpan, table: &ShapeTensor) {
        span_fits("rope", span, x);
        let pairs = rotated_pairs("rope", span, x, table);
        let cost = cost(6 * x.rows * span.heads * pairs, 4 * x.rows * span.heads * pairs + table.len());
        self.record("rope", cost, format_args!("{span} of {x}, {pairs} pairs"));
    }

    /// Each head is read and written once.
    fn head_norm_rope(
        &self,
        x: &mut ShapeTensor,
        heads: [(HeadSpan, &ShapeTensor); 2],
        spec: NormSpec,
        table: &ShapeTensor,
    ) {
        let (mut flops, mut elements) = (0, table.len());
        for (span, weight) in heads {
            let of_heads = heads_fit("head_norm_rope", span, weight, x);
            let pairs = rotated_pairs("head_norm_rope", span, x, table);
            flops += norm_flops(spec.kind) * of_heads + 6 * x.rows * span.heads * pairs;
            elements += 2 * of_heads + weight.len();
        }
        let [(q, _), (k, _)] = heads;
        let detail = format_args!("{} {q}, {k} of {x}, {} pairs", spec.kind, table.cols / 2);
        self.record("head_norm_rope", cost(flops, elements), detail);
    }

    fn gated(&self, x: &ShapeTensor, activation: Activation) -> ShapeTensor {
        same("gated", "columns modulo 2", x.cols % 2, 0);
        let y = ShapeTensor { rows: x.rows, cols: x.cols / 2 };
        let cost = cost((FUNCTION + 1) * y.len(), x.len() + y.len());
        self.record("gated", cost, format_args!("{activation} {x} -> {y}"));
        y
    }

    fn activate(&self, x: &mut ShapeTensor, activation: Activation) {
        self.record("activate", cost(FUNCTION * x.len(), 2 * x.len()), format_args!("{activation} {x}"));
    }

    fn add(&self, x: &mut ShapeTensor, y: &ShapeTensor) {
        let fits = y.cols == x.cols && (y.rows == x.rows || y.rows == 1);
        assert!(fits, "add: {y} to {x}");
        self.record("add", cost(x.len(), 2 * x.len() + y.len()), format_args!("{x} + {y}"));
    }

    fn scale(&self, x: &mut ShapeTensor, by: f32) {
        self.record("scale", cost(x.len(), 2 * x.len()), format_args!("{x} by {by}"));
    }

    fn softcap(&self, x: &mut ShapeTensor, cap: f32) {
        self.record("softcap", cost((FUNCTION + 2) * x.len(), 2 * x.len()), format_args!("{x} at {cap}"));
    }

    fn store_kv(&self, kv: &mut KvSpec, qkv: &ShapeTensor, step: &StepMeta, spec: &AttentionSpec) {
        let cost = attention::store(kv, qkv, step, spec);
        let (t, dtype) = (qkv.rows, short_kv_name(kv.dtype));
        self.record(
            "store_kv",
            cost,
            format_args!("{t} rows, {} heads of {}, {dtype}", kv.num_kv_heads, kv.head_dim),
        );
    }

    fn copy_kv(&self, kv: &mut KvSpec, pairs: &[(u32, u32)]) {
        let cost = attention::copy(kv, pairs);
        let (n, dtype) = (pairs.len(), short_kv_name(kv.dtype));
        let detail = format_args!("{n} blocks, {} heads of {}, {dtype}", kv.num_kv_heads, kv.head_dim);
        self.record("copy_kv", cost, detail);
    }

    fn attention(
        &self,
        qkv: &ShapeTensor,
        kv: &KvSpec,
        step: &StepMeta,
        spec: &AttentionSpec,
    ) -> ShapeTensor {
        let (y, cost) = attention::attention(qkv, kv, step, spec);
        self.record("attention", cost, format_args!("{} -> {y}", heads(spec)));
        y
    }

    fn attention_segments(
        &self,
        q: &ShapeTensor,
        kv: &KvSpec,
        step: &StepMeta,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> ShapeTensor {
        let (y, cost) = attention::segments(q, kv, step, spec, rows.clone());
        let KvShare { owners, owner } = kv.share;
        let detail = format_args!("{}, owner {owner} of {owners}, rows {rows:?} -> {y}", heads(spec));
        self.record("attention_segments", cost, detail);
        y
    }

    fn merge_segments(
        &self,
        parts: &ShapeTensor,
        owners: usize,
        step: &StepMeta,
        spec: &AttentionSpec,
        rows: Range<usize>,
        out: &mut ShapeTensor,
    ) {
        let cost = attention::merge(parts, step, spec, rows.clone(), out);
        let detail = format_args!("{parts} of {owners} owners -> rows {rows:?} of {out}");
        self.record("merge_segments", cost, detail);
    }

    fn route(&self, logits: &ShapeTensor, RouterSpec { top_k, normalize }: RouterSpec) -> ShapeRouting {
        let ShapeTensor { rows: tokens, cols: experts } = *logits;
        assert!(top_k <= experts, "route: {top_k} of {experts} experts");
        let cost = cost((FUNCTION + 3) * logits.len(), logits.len() + 2 * tokens * top_k);
        let normalized = if normalize { ", normalized" } else { "" };
        self.record("route", cost, format_args!("{logits}, top {top_k}{normalized}"));
        experts::route(tokens, experts, top_k)
    }

    fn routing_to_host(&self, routing: &ShapeRouting) -> Result<Vec<Vec<(u32, f32)>>, DeviceError> {
        let (tokens, pairs) = (routing.tokens, routing.pairs());
        self.record("routing_to_host", cost(0, 2 * pairs), format_args!("{tokens} tokens, {pairs} pairs"));
        Ok(experts::to_host(routing))
    }

    fn count_choices(&self, routing: &ShapeRouting, counts: &mut ShapeTensor) -> Result<(), DeviceError> {
        same("count_choices", "counts and experts", counts.cols, routing.experts());
        let (tokens, pairs) = (routing.tokens, routing.pairs());
        self.record("count_choices", cost(0, pairs), format_args!("{tokens} tokens, {pairs} pairs"));
        Ok(())
    }

    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> ShapeRouting {
        let routing = experts::from_host(choices, experts);
        let (tokens, pairs) = (routing.tokens, routing.pairs());
        let detail = format_args!("{tokens} tokens, {pairs} pairs, {experts} experts");
        self.record("routing_from_host", cost(0, 2 * pairs), detail);
        routing
    }

    fn assign(&self, routing: &ShapeRouting, experts: Range<usize>) -> ShapeAssignment {
        let assignment = experts::assign(routing, experts);
        let (experts, pairs) = (&assignment.experts, assignment.pairs);
        self.record(
            "assign",
            cost(0, 2 * pairs),
            format_args!("experts {experts:?} of {} -> {pairs} pairs", routing.experts()),
        );
        assignment
    }

    fn grouped_linear(
        &self,
        x: &ShapeTensor,
        assignment: &ShapeAssignment,
        weights: &[ShapeWeight],
    ) -> ShapeTensor {
        same("grouped_linear", "rows and tokens", x.rows, assignment.tokens);
        let w = experts::common("grouped_linear", x, assignment, weights);
        let y = ShapeTensor { rows: assignment.pairs, cols: w.n };
        let cost = experts::linear_cost(assignment, w, y);
        self.record("grouped_linear", cost, format_args!("{x} x {} experts {w} -> {y}", weights.len()));
        y
    }

    fn grouped_linear_tree(
        &self,
        x: &ShapeTensor,
        assignment: &ShapeAssignment,
        weights: &[ShapeWeight],
        program: &Program,
    ) -> ShapeTensor {
        same("grouped_linear_tree", "rows and pairs", x.rows, assignment.pairs);
        same("grouped_linear_tree", "inputs of x and of the program", x.cols, program.num_inputs());
        let w = experts::common("grouped_linear_tree", x, assignment, weights);
        let nodes = program.num_nodes();
        let y = ShapeTensor { rows: nodes * x.rows, cols: w.n };
        let cost = experts::linear_cost(assignment, w, y);
        let detail = format_args!("{x} x {} experts {w}, {} -> {y}", weights.len(), nodes_of(program));
        self.record("grouped_linear_tree", cost, detail);
        y
    }

    fn combine(&self, y: &ShapeTensor, assignment: &ShapeAssignment, program: &Program) -> ShapeTensor {
        same("combine", "rows and pairs", y.rows, assignment.pairs);
        same("combine", "items of the program and experts", program.inputs.len(), assignment.experts.len());
        let nodes = program.num_nodes();
        let sums = ShapeTensor { rows: nodes * assignment.tokens, cols: y.cols };
        self.record(
            "combine",
            cost(2 * y.len(), y.len() + sums.len()),
            format_args!("{y}, {} -> {sums}", nodes_of(program)),
        );
        sums
    }

    fn edit_logits(&self, logits: &mut ShapeTensor, edits: &[LogitEdit]) {
        let mut elements = 0;
        for edit in edits {
            let (row, end, edited) = match *edit {
                LogitEdit::Add { row, col, .. } => (row, col + 1, 1),
                LogitEdit::Repetition { row, ref cols, .. } => {
                    (row, cols.iter().max().map_or(0, |&col| col as usize + 1), cols.len())
                }
                LogitEdit::Allow { row, .. } | LogitEdit::Divide { row, .. } => {
                    (row, logits.cols, logits.cols)
                }
            };
            assert!(row < logits.rows && end <= logits.cols, "edit_logits: {edit:?} of {logits}");
            elements += edited;
        }
        self.record(
            "edit_logits",
            cost(elements, 2 * elements),
            format_args!("{logits}, edits {}", edits.len()),
        );
    }

    fn row_max(&self, logits: &ShapeTensor) -> Result<Vec<f32>, DeviceError> {
        self.record("row_max", cost(logits.len(), logits.len()), format_args!("{logits}"));
        Ok(vec![0.0; logits.rows])
    }

    fn exp_sums(
        &self,
        logits: &ShapeTensor,
        max: &[f32],
        program: &Program,
    ) -> Result<Vec<f32>, DeviceError> {
        same("exp_sums", "maxima and rows", max.len(), logits.rows);
        same(
            "exp_sums",
            "items of the program and panels",
            program.inputs.len(),
            logits.cols.div_ceil(PANEL),
        );
        let cost = cost((FUNCTION + 2) * logits.len(), logits.len());
        self.record("exp_sums", cost, format_args!("{logits}, {}", nodes_of(program)));
        let row = program.run(|panel| PANEL.min(logits.cols - panel * PANEL) as f32);
        Ok(row.repeat(logits.rows))
    }

    fn top_k(
        &self,
        logits: &ShapeTensor,
        skip: usize,
        k: usize,
    ) -> Result<Vec<Vec<(f32, u32)>>, DeviceError> {
        let behind = optional(", behind ", (skip > 0).then_some(skip));
        self.record("top_k", cost(logits.len(), logits.len()), format_args!("{k} of {logits}{behind}"));
        let row = (0..logits.cols as u32).skip(skip).take(k).map(|col| (0.0, col)).collect();
        Ok(vec![row; logits.rows])
    }

    fn pick(&self, logits: &ShapeTensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError> {
        for &(row, col) in at {
            assert!(row < logits.rows && col < logits.cols, "pick: element [{row}, {col}] of {logits}");
        }
        self.record("pick", cost(0, at.len()), format_args!("{} of {logits}", at.len()));
        Ok(vec![0.0; at.len()])
    }

    fn count_before(&self, logits: &ShapeTensor, places: &[(f32, usize)]) -> Result<Vec<u32>, DeviceError> {
        same("count_before", "places and rows", places.len(), logits.rows);
        self.record("count_before", cost(logits.len(), logits.len()), format_args!("{logits}"));
        Ok(vec![0; logits.rows])
    }

    fn enter(&self, part: Part) {
        self.recorder.enter(part);
    }

    fn leave(&self) {
        self.recorder.leave();
    }

    fn exchanged(&self, exchanged: Exchanged) {
        self.recorder.exchanged(exchanged.bytes);
    }
}

/// A step of sequences that have `[positions in the cache, rows]`, in blocks of ascending ids.
#[cfg(test)]
pub(crate) fn step(sequences: &[[usize; 2]]) -> StepMeta {
    let mut meta = StepMeta::default();
    let mut blocks = 0..;
    for &[start, rows] in sequences {
        let first = meta.tokens.len();
        meta.tokens.resize(first + rows, 0);
        let block_table = blocks.by_ref().take((start + rows).div_ceil(KV_BLOCK)).collect();
        meta.sequences.push(crate::SequenceSpan { rows: first..first + rows, start, block_table });
    }
    meta
}
