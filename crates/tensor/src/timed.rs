use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::{
    Activation, AttentionSpec, Device, DeviceError, HeadSpan, HostDevice, KvSpec, LogitEdit, MatrixSource,
    NormSpec, Program, RopeSpec, RouterSpec, StepMeta, WeightSpec,
};

/// A device that does what another does and knows how long each kind of operation took.
///
/// Of use where operations are done when they return, as on a CPU.
pub struct Timed<D> {
    inner: D,
    times: RefCell<BTreeMap<&'static str, Duration>>,
}

impl<D> Timed<D> {
    /// Times `inner`.
    pub fn new(inner: D) -> Self {
        Timed { inner, times: RefCell::default() }
    }

    fn time<T>(&self, op: &'static str, run: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = run();
        *self.times.borrow_mut().entry(op).or_default() += started.elapsed();
        result
    }
}

impl<D: Device> Device for Timed<D> {
    type Tensor = D::Tensor;
    type Weight = D::Weight;
    type Kv = D::Kv;
    type Step = D::Step;
    type Routing = D::Routing;
    type Assignment = D::Assignment;

    fn name(&self) -> String {
        self.inner.name()
    }
    fn upload(&self, data: &[f32], rows: usize, cols: usize) -> Self::Tensor {
        self.inner.upload(data, rows, cols)
    }
    fn alloc(&self, rows: usize, cols: usize) -> Self::Tensor {
        self.inner.alloc(rows, cols)
    }
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>, DeviceError> {
        self.inner.download(x)
    }
    fn shape(&self, x: &Self::Tensor) -> [usize; 2] {
        self.inner.shape(x)
    }
    fn pack(&self, source: &dyn MatrixSource, spec: WeightSpec) -> Self::Weight {
        self.inner.pack(source, spec)
    }
    fn weight_shape(&self, w: &Self::Weight) -> [usize; 2] {
        self.inner.weight_shape(w)
    }
    fn packed_bytes(&self, w: &Self::Weight) -> usize {
        self.inner.packed_bytes(w)
    }
    fn alloc_kv(&self, spec: KvSpec) -> Self::Kv {
        self.inner.alloc_kv(spec)
    }
    fn begin(&self, meta: &StepMeta) -> Self::Step {
        self.time("begin", || self.inner.begin(meta))
    }
    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, bias: Option<&Self::Tensor>) -> Self::Tensor {
        self.time("linear", || self.inner.linear(x, w, bias))
    }
    fn linear_tree(&self, x: &Self::Tensor, w: &Self::Weight, program: &Program) -> Self::Tensor {
        self.time("linear_tree", || self.inner.linear_tree(x, w, program))
    }
    fn embed(&self, w: &Self::Weight, rows: &[u32]) -> Self::Tensor {
        self.time("embed", || self.inner.embed(w, rows))
    }
    fn gather_rows(&self, x: &Self::Tensor, rows: &[u32]) -> Self::Tensor {
        self.time("gather_rows", || self.inner.gather_rows(x, rows))
    }
    fn gather_cols(&self, x: &Self::Tensor, cols: Range<usize>) -> Self::Tensor {
        self.time("gather_cols", || self.inner.gather_cols(x, cols))
    }
    fn regroup(
        &self,
        x: &Self::Tensor,
        rows: usize,
        columns: &[(u32, u32)],
    ) -> Result<Self::Tensor, DeviceError> {
        self.time("regroup", || self.inner.regroup(x, rows, columns))
    }
    fn norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        spec: NormSpec,
    ) -> Self::Tensor {
        self.time("norm", || self.inner.norm(x, weight, bias, spec))
    }
    fn head_norm(&self, x: &mut Self::Tensor, span: HeadSpan, weight: &Self::Tensor, spec: NormSpec) {
        self.time("head_norm", || self.inner.head_norm(x, span, weight, spec))
    }
    fn rope_table(&self, step: &Self::Step, rope: &RopeSpec) -> Self::Tensor {
        self.time("rope_table", || self.inner.rope_table(step, rope))
    }
    fn rope(&self, x: &mut Self::Tensor, span: HeadSpan, table: &Self::Tensor) {
        self.time("rope", || self.inner.rope(x, span, table))
    }
    fn gated(&self, x: &Self::Tensor, activation: Activation) -> Self::Tensor {
        self.time("gated", || self.inner.gated(x, activation))
    }
    fn activate(&self, x: &mut Self::Tensor, activation: Activation) {
        self.time("activate", || self.inner.activate(x, activation))
    }
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) {
        self.time("add", || self.inner.add(x, y))
    }
    fn scale(&self, x: &mut Self::Tensor, by: f32) {
        self.time("scale", || self.inner.scale(x, by))
    }
    fn softcap(&self, x: &mut Self::Tensor, cap: f32) {
        self.time("softcap", || self.inner.softcap(x, cap))
    }
    fn store_kv(&self, kv: &mut Self::Kv, qkv: &Self::Tensor, step: &Self::Step, spec: &AttentionSpec) {
        self.time("store_kv", || self.inner.store_kv(kv, qkv, step, spec))
    }
    fn attention(
        &self,
        qkv: &Self::Tensor,
        kv: &Self::Kv,
        step: &Self::Step,
        spec: &AttentionSpec,
    ) -> Self::Tensor {
        self.time("attention", || self.inner.attention(qkv, kv, step, spec))
    }
    fn attention_segments(
        &self,
        q: &Self::Tensor,
        kv: &Self::Kv,
        step: &Self::Step,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> Self::Tensor {
        self.time("attention_segments", || self.inner.attention_segments(q, kv, step, spec, rows))
    }
    fn merge_segments(
        &self,
        parts: &Self::Tensor,
        owners: usize,
        step: &Self::Step,
        spec: &AttentionSpec,
        rows: Range<usize>,
        out: &mut Self::Tensor,
    ) {
        self.time("merge_segments", || self.inner.merge_segments(parts, owners, step, spec, rows, out));
    }
    fn route(&self, logits: &Self::Tensor, spec: RouterSpec) -> Self::Routing {
        self.time("route", || self.inner.route(logits, spec))
    }
    fn routing_to_host(&self, routing: &Self::Routing) -> Result<Vec<Vec<(u32, f32)>>, DeviceError> {
        self.time("routing_to_host", || self.inner.routing_to_host(routing))
    }
    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> Self::Routing {
        self.time("routing_from_host", || self.inner.routing_from_host(choices, experts))
    }
    fn assign(&self, routing: &Self::Routing, experts: Range<usize>) -> Self::Assignment {
        self.time("assign", || self.inner.assign(routing, experts))
    }
    fn grouped_linear(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
    ) -> Self::Tensor {
        self.time("grouped_linear", || self.inner.grouped_linear(x, assignment, weights))
    }
    fn grouped_linear_tree(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
        program: &Program,
    ) -> Self::Tensor {
        self.time("grouped_linear_tree", || self.inner.grouped_linear_tree(x, assignment, weights, program))
    }
    fn combine(&self, y: &Self::Tensor, assignment: &Self::Assignment, program: &Program) -> Self::Tensor {
        self.time("combine", || self.inner.combine(y, assignment, program))
    }
    fn edit_logits(&self, logits: &mut Self::Tensor, edits: &[LogitEdit]) {
        self.time("edit_logits", || self.inner.edit_logits(logits, edits))
    }
    fn row_max(&self, logits: &Self::Tensor) -> Result<Vec<f32>, DeviceError> {
        self.time("row_max", || self.inner.row_max(logits))
    }
    fn exp_sums(
        &self,
        logits: &Self::Tensor,
        max: &[f32],
        program: &Program,
    ) -> Result<Vec<f32>, DeviceError> {
        self.time("exp_sums", || self.inner.exp_sums(logits, max, program))
    }
    fn top_k(
        &self,
        logits: &Self::Tensor,
        skip: usize,
        k: usize,
    ) -> Result<Vec<Vec<(f32, u32)>>, DeviceError> {
        self.time("top_k", || self.inner.top_k(logits, skip, k))
    }
    fn pick(&self, logits: &Self::Tensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError> {
        self.time("pick", || self.inner.pick(logits, at))
    }

    fn take_op_times(&self) -> Vec<(&'static str, Duration)> {
        std::mem::take(&mut *self.times.borrow_mut()).into_iter().collect()
    }
}

impl<D: HostDevice> HostDevice for Timed<D> {
    fn as_slice<'a>(&self, x: &'a Self::Tensor) -> &'a [f32] {
        self.inner.as_slice(x)
    }
    fn as_mut_slice<'a>(&self, x: &'a mut Self::Tensor) -> &'a mut [f32] {
        self.inner.as_mut_slice(x)
    }
    fn parallel(&self, items: usize, grain: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        self.inner.parallel(items, grain, work);
    }
}
