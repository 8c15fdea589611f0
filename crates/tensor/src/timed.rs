use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::clock::Clock;
use crate::{
    Activation, AttentionSpec, Device, DeviceError, DeviceMemory, Exchanged, HeadSpan, Heads, HostDevice,
    KvSpec, LogitEdit, MatrixSource, NormSpec, Part, PartTimes, Program, RopeSpec, RouterSpec, RowNorm,
    StepMeta, Survey, ThreadLog, Timeline, WeightSpec,
};

/// A device that does what another does and knows how long the parts of a step took; and, while it is recorded, every
/// operation.
///
/// Of use where operations are done when they return, as on a CPU.
pub struct Timed<D> {
    inner: D,
    clock: RefCell<Clock>,
    threads: Arc<ThreadLog>,
    /// Whether operations are recorded now.
    records: Cell<bool>,
}

impl<D: Device> Timed<D> {
    /// Times `inner`, whose threads write to `threads`.
    pub fn new(inner: D, threads: Arc<ThreadLog>) -> Self {
        Timed { inner, clock: RefCell::new(Clock::new()), threads, records: Cell::new(false) }
    }

    fn op<T>(&self, name: &'static str, run: impl FnOnce() -> T) -> T {
        self.op_with(name, run, |_| None)
    }

    /// An operation that makes a matrix.
    fn makes(&self, name: &'static str, run: impl FnOnce() -> D::Tensor) -> D::Tensor {
        self.op_with(name, run, |made| Some(self.inner.shape(made)))
    }

    fn op_with<T>(
        &self,
        name: &'static str,
        run: impl FnOnce() -> T,
        made: impl FnOnce(&T) -> Option<[usize; 2]>,
    ) -> T {
        if !self.records.get() {
            return run();
        }
        let began = Instant::now();
        let result = run();
        self.clock.borrow_mut().op(name, made(&result), began, Instant::now());
        result
    }

    fn set_records(&self, records: bool) {
        self.records.set(records);
        self.threads.set(records);
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
    fn flush(&self) {
        self.inner.flush();
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
        self.op("begin", || self.inner.begin(meta))
    }
    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, bias: Option<&Self::Tensor>) -> Self::Tensor {
        self.makes("linear", || self.inner.linear(x, w, bias))
    }
    fn linear_tree(&self, x: &Self::Tensor, w: &Self::Weight, program: &Program) -> Self::Tensor {
        self.makes("linear_tree", || self.inner.linear_tree(x, w, program))
    }
    fn linear_gated(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        bias: Option<&Self::Tensor>,
        activation: Activation,
    ) -> Self::Tensor {
        self.makes("linear_gated", || self.inner.linear_gated(x, w, bias, activation))
    }
    fn embed(&self, w: &Self::Weight, rows: &[u32]) -> Self::Tensor {
        self.makes("embed", || self.inner.embed(w, rows))
    }
    fn gather_rows(&self, x: &Self::Tensor, rows: &[u32]) -> Self::Tensor {
        self.makes("gather_rows", || self.inner.gather_rows(x, rows))
    }
    fn gather_cols(&self, x: &Self::Tensor, cols: Range<usize>) -> Self::Tensor {
        self.makes("gather_cols", || self.inner.gather_cols(x, cols))
    }
    fn regroup(
        &self,
        x: &Self::Tensor,
        rows: usize,
        columns: &[(u32, u32)],
    ) -> Result<Self::Tensor, DeviceError> {
        self.op("regroup", || self.inner.regroup(x, rows, columns))
    }
    fn norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        spec: NormSpec,
    ) -> Self::Tensor {
        self.makes("norm", || self.inner.norm(x, weight, bias, spec))
    }
    fn add_norm(
        &self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        post: Option<RowNorm<'_, Self::Tensor>>,
        norm: RowNorm<'_, Self::Tensor>,
    ) -> Self::Tensor {
        self.makes("add_norm", || self.inner.add_norm(x, y, post, norm))
    }
    fn head_norm(&self, x: &mut Self::Tensor, span: HeadSpan, weight: &Self::Tensor, spec: NormSpec) {
        self.op("head_norm", || self.inner.head_norm(x, span, weight, spec))
    }
    fn rope_table(&self, step: &Self::Step, rope: &RopeSpec) -> Self::Tensor {
        self.makes("rope_table", || self.inner.rope_table(step, rope))
    }
    fn rope(&self, x: &mut Self::Tensor, span: HeadSpan, table: &Self::Tensor) {
        self.op("rope", || self.inner.rope(x, span, table))
    }
    fn head_norm_rope(
        &self,
        x: &mut Self::Tensor,
        heads: [(HeadSpan, &Self::Tensor); 2],
        spec: NormSpec,
        table: &Self::Tensor,
    ) {
        self.op("head_norm_rope", || self.inner.head_norm_rope(x, heads, spec, table))
    }
    fn gated(&self, x: &Self::Tensor, activation: Activation) -> Self::Tensor {
        self.makes("gated", || self.inner.gated(x, activation))
    }
    fn activate(&self, x: &mut Self::Tensor, activation: Activation) {
        self.op("activate", || self.inner.activate(x, activation))
    }
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) {
        self.op("add", || self.inner.add(x, y))
    }
    fn scale(&self, x: &mut Self::Tensor, by: f32) {
        self.op("scale", || self.inner.scale(x, by))
    }
    fn softcap(&self, x: &mut Self::Tensor, cap: f32) {
        self.op("softcap", || self.inner.softcap(x, cap))
    }
    fn store_kv(&self, kv: &mut Self::Kv, qkv: &Self::Tensor, step: &Self::Step, spec: &AttentionSpec) {
        self.op("store_kv", || self.inner.store_kv(kv, qkv, step, spec))
    }
    fn rotate_store(
        &self,
        kv: &mut Self::Kv,
        qkv: &mut Self::Tensor,
        heads: Heads<'_, Self::Tensor>,
        step: &Self::Step,
        spec: &AttentionSpec,
    ) {
        self.op("rotate_store", || self.inner.rotate_store(kv, qkv, heads, step, spec))
    }
    fn copy_kv(&self, kv: &mut Self::Kv, pairs: &[(u32, u32)]) {
        self.op("copy_kv", || self.inner.copy_kv(kv, pairs));
    }
    fn attention(
        &self,
        qkv: &Self::Tensor,
        kv: &Self::Kv,
        step: &Self::Step,
        spec: &AttentionSpec,
    ) -> Self::Tensor {
        self.makes("attention", || self.inner.attention(qkv, kv, step, spec))
    }
    fn attention_segments(
        &self,
        q: &Self::Tensor,
        kv: &Self::Kv,
        step: &Self::Step,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> Self::Tensor {
        self.makes("attention_segments", || self.inner.attention_segments(q, kv, step, spec, rows))
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
        self.op("merge_segments", || self.inner.merge_segments(parts, owners, step, spec, rows, out));
    }
    fn route(&self, logits: &Self::Tensor, spec: RouterSpec) -> Self::Routing {
        self.op("route", || self.inner.route(logits, spec))
    }
    fn routing_to_host(&self, routing: &Self::Routing) -> Result<Vec<Vec<(u32, f32)>>, DeviceError> {
        self.op("routing_to_host", || self.inner.routing_to_host(routing))
    }
    fn count_choices(&self, routing: &Self::Routing, counts: &mut Self::Tensor) -> Result<(), DeviceError> {
        self.op("count_choices", || self.inner.count_choices(routing, counts))
    }
    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> Self::Routing {
        self.op("routing_from_host", || self.inner.routing_from_host(choices, experts))
    }
    fn assign(&self, routing: &Self::Routing, experts: Range<usize>) -> Self::Assignment {
        self.op("assign", || self.inner.assign(routing, experts))
    }
    fn grouped_linear(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
    ) -> Self::Tensor {
        self.makes("grouped_linear", || self.inner.grouped_linear(x, assignment, weights))
    }
    fn grouped_linear_gated(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
        activation: Activation,
    ) -> Self::Tensor {
        self.makes("grouped_linear_gated", || {
            self.inner.grouped_linear_gated(x, assignment, weights, activation)
        })
    }
    fn grouped_linear_tree(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
        program: &Program,
    ) -> Self::Tensor {
        self.makes("grouped_linear_tree", || self.inner.grouped_linear_tree(x, assignment, weights, program))
    }
    fn combine(&self, y: &Self::Tensor, assignment: &Self::Assignment, program: &Program) -> Self::Tensor {
        self.makes("combine", || self.inner.combine(y, assignment, program))
    }
    fn edit_logits(&self, logits: &mut Self::Tensor, edits: &[LogitEdit]) {
        self.op("edit_logits", || self.inner.edit_logits(logits, edits))
    }
    fn row_max(&self, logits: &Self::Tensor) -> Result<Vec<f32>, DeviceError> {
        self.op("row_max", || self.inner.row_max(logits))
    }
    fn exp_sums(
        &self,
        logits: &Self::Tensor,
        max: &[f32],
        program: &Program,
    ) -> Result<Vec<f32>, DeviceError> {
        self.op("exp_sums", || self.inner.exp_sums(logits, max, program))
    }
    fn top_k(
        &self,
        logits: &Self::Tensor,
        skip: usize,
        k: usize,
    ) -> Result<Vec<Vec<(f32, u32)>>, DeviceError> {
        self.op("top_k", || self.inner.top_k(logits, skip, k))
    }
    fn survey(&self, logits: &Self::Tensor, program: &Program, k: usize) -> Result<Survey, DeviceError> {
        self.op("survey", || self.inner.survey(logits, program, k))
    }
    fn pick(&self, logits: &Self::Tensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError> {
        self.op("pick", || self.inner.pick(logits, at))
    }
    fn count_before(&self, logits: &Self::Tensor, places: &[(f32, usize)]) -> Result<Vec<u32>, DeviceError> {
        self.op("count_before", || self.inner.count_before(logits, places))
    }

    fn enter(&self, part: Part) {
        let records = self.clock.borrow_mut().enter(part, Instant::now());
        if records != self.records.get() {
            self.set_records(records);
        }
    }
    fn leave(&self) {
        self.clock.borrow_mut().leave(Instant::now());
    }
    fn exchanged(&self, exchanged: Exchanged) {
        self.clock.borrow_mut().exchanged(exchanged, Instant::now());
    }
    fn take_part_times(&self) -> PartTimes {
        self.clock.borrow_mut().take_times()
    }
    fn record(&self) {
        self.clock.borrow_mut().record();
    }
    fn is_recording(&self) -> bool {
        self.records.get()
    }
    fn take_timeline(&self) -> Timeline {
        self.set_records(false);
        let (events, dropped) = self.clock.borrow_mut().take_events();
        Timeline { events, threads: self.threads.take(), dropped }
    }
    fn memory(&self) -> DeviceMemory {
        self.inner.memory()
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
