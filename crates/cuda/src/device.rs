//! The operations of [`tensor::Device`] on a GPU. They enqueue; what goes wrong surfaces where results are read.

use std::cell::RefCell;
use std::ops::Range;

use ::tensor::{
    Activation, AttentionSpec, Device, DeviceError, DeviceMemory, Exchanged, HeadSpan, Heads, KvSpec,
    LogitEdit, MatrixSource, NormSpec, Part, PartTimes, Program, RopeSpec, RouterSpec, RowNorm, StepMeta,
    Survey, Timeline, WeightFormat, WeightSpec,
};

use crate::attention::Arrived;
use crate::driver::{Driver, Fault};
use crate::kv::CudaKv;
use crate::linear::{self, CudaWeight, Fast, Grouped};
use crate::logits::{self, PanelTree};
use crate::memory::Memory;
use crate::moe::{self, CudaAssignment, CudaRouting, Heights};
use crate::of_program::OfProgram;
use crate::ranks::Trees;
use crate::reduction::Reduction;
use crate::rows::Frequencies;
use crate::step::{CudaStep, KnownLists};
use crate::tensor::{CudaTensor, Queue};
use crate::watch::Watch;
use crate::{attention, kv, rows};

/// One rank's GPU, or its part of one.
pub struct CudaDevice {
    pub(crate) queue: Queue,
    pub(crate) trees: Trees,
    fast: Option<Fast>,
    panel_tree: OfProgram<PanelTree>,
    heights: OfProgram<Heights>,
    frequencies: Frequencies,
    arrived: Arrived,
    lists: RefCell<KnownLists>,
}

impl CudaDevice {
    /// A device of what a driver drives, whose sums are [canonical](Reduction::Canonical).
    pub fn new(driver: Box<dyn Driver>) -> Self {
        CudaDevice::with(driver, Reduction::default())
    }

    /// A device of what a driver drives. What it says of the time of parts is the host's: when they were asked for and waited for.
    pub fn with(driver: Box<dyn Driver>, reduction: Reduction) -> Self {
        let queue = Queue(Memory::new(driver, reduction));
        CudaDevice {
            fast: (reduction == Reduction::Fast).then(|| Fast::new(&queue)),
            queue,
            trees: Trees::default(),
            panel_tree: OfProgram::default(),
            heights: OfProgram::default(),
            frequencies: Frequencies::default(),
            arrived: Arrived::default(),
            lists: RefCell::default(),
        }
    }

    /// The same, which says how long the GPU was at each part of a step. That costs some microseconds per part, and a step waits for the
    /// GPU at its end.
    pub fn watched(self) -> Self {
        self.queue.0.watch.always();
        self
    }

    /// What it promises about the order of its sums.
    pub fn reduction(&self) -> Reduction {
        self.queue.0.reduction
    }

    /// Why layers of many rows do not go to NVIDIA's library of matrix products, if they could: sums are [fast](Reduction::Fast), and
    /// weights of this format.
    pub fn missing_library(&self, format: WeightFormat) -> Option<String> {
        self.fast.as_ref()?.missing_library(format).map(|Fault(why)| why.clone())
    }

    /// An operation of this name in [`Device`].
    fn op<T>(&self, name: &'static str, run: impl FnOnce(&Queue) -> T) -> T {
        let Memory { driver, watch, .. } = &*self.queue.0;
        self.queue.0.for_op(name);
        watch.op(&**driver, name, || run(&self.queue), |_| None)
    }

    /// One that makes a matrix.
    fn makes(&self, name: &'static str, run: impl FnOnce(&Queue) -> CudaTensor) -> CudaTensor {
        let Memory { driver, watch, .. } = &*self.queue.0;
        self.queue.0.for_op(name);
        watch.op(&**driver, name, || run(&self.queue), |made| Some([made.rows, made.cols]))
    }

    fn watch<T>(&self, ask: impl FnOnce(&Watch, &dyn Driver) -> Result<T, Fault>) -> Option<T> {
        let Memory { driver, watch, .. } = &*self.queue.0;
        self.queue.0.note(ask(watch, &**driver))
    }

    fn error(&self, fault: Fault) -> DeviceError {
        DeviceError { device: self.name(), message: fault.0 }
    }
}

impl Device for CudaDevice {
    type Tensor = CudaTensor;
    type Weight = CudaWeight;
    type Kv = CudaKv;
    type Step = CudaStep;
    type Routing = CudaRouting;
    type Assignment = CudaAssignment;

    fn name(&self) -> String {
        self.queue.0.driver.name()
    }

    fn upload(&self, data: &[f32], rows: usize, cols: usize) -> CudaTensor {
        assert_eq!(data.len(), rows * cols, "upload of [{rows}, {cols}]");
        self.queue.matrix(data, rows, cols)
    }

    fn alloc(&self, rows: usize, cols: usize) -> CudaTensor {
        self.queue.tensor(rows, cols)
    }

    fn flush(&self) {
        self.queue.rest();
    }

    fn download(&self, x: &CudaTensor) -> Result<Vec<f32>, DeviceError> {
        self.queue.read_matrix(x).map_err(|fault| self.error(fault))
    }

    fn shape(&self, x: &CudaTensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn pack(&self, source: &dyn MatrixSource, spec: WeightSpec) -> CudaWeight {
        self.queue.0.for_op("weights");
        linear::pack(&self.queue, self.fast.as_ref(), source, spec)
    }

    fn weight_shape(&self, w: &CudaWeight) -> [usize; 2] {
        [w.n, w.k]
    }

    fn packed_bytes(&self, w: &CudaWeight) -> usize {
        w.bytes()
    }

    fn alloc_kv(&self, spec: KvSpec) -> CudaKv {
        self.queue.0.for_op("keys and values");
        CudaKv::new(&self.queue, spec)
    }

    fn begin(&self, meta: &StepMeta) -> CudaStep {
        self.op("begin", |queue| CudaStep::new(queue, meta, &mut self.lists.borrow_mut()))
    }

    fn linear(&self, x: &CudaTensor, w: &CudaWeight, bias: Option<&CudaTensor>) -> CudaTensor {
        self.makes("linear", |queue| linear::linear(queue, self.fast.as_ref(), x, w, None, bias))
    }

    fn linear_tree(&self, x: &CudaTensor, w: &CudaWeight, program: &Program) -> CudaTensor {
        self.makes("linear_tree", |queue| {
            linear::linear(queue, self.fast.as_ref(), x, w, Some(program), None)
        })
    }

    fn linear_gated(
        &self,
        x: &CudaTensor,
        w: &CudaWeight,
        bias: Option<&CudaTensor>,
        activation: Activation,
    ) -> CudaTensor {
        self.makes("linear_gated", |queue| linear::gated(queue, self.fast.as_ref(), x, w, bias, activation))
    }

    fn embed(&self, w: &CudaWeight, rows: &[u32]) -> CudaTensor {
        self.makes("embed", |queue| linear::embed(queue, w, rows, self.lists.borrow().list(queue, rows).at))
    }

    fn gather_rows(&self, x: &CudaTensor, rows: &[u32]) -> CudaTensor {
        self.makes("gather_rows", |queue| rows::gather_rows(queue, x, rows, &self.lists.borrow()))
    }

    fn gather_cols(&self, x: &CudaTensor, cols: Range<usize>) -> CudaTensor {
        self.makes("gather_cols", |queue| rows::gather_cols(queue, x, cols))
    }

    fn regroup(
        &self,
        x: &CudaTensor,
        rows: usize,
        columns: &[(u32, u32)],
    ) -> Result<CudaTensor, DeviceError> {
        Ok(self.makes("regroup", |queue| rows::regroup(queue, x, rows, columns)))
    }

    fn norm(
        &self,
        x: &CudaTensor,
        weight: &CudaTensor,
        bias: Option<&CudaTensor>,
        spec: NormSpec,
    ) -> CudaTensor {
        self.makes("norm", |queue| rows::add_norm(queue, x, None, None, RowNorm { weight, bias, spec }))
    }

    fn add_norm(
        &self,
        x: &mut CudaTensor,
        y: &CudaTensor,
        post: Option<RowNorm<'_, CudaTensor>>,
        norm: RowNorm<'_, CudaTensor>,
    ) -> CudaTensor {
        self.makes("add_norm", |queue| rows::add_norm(queue, x, Some(y), post, norm))
    }

    fn head_norm(&self, x: &mut CudaTensor, span: HeadSpan, weight: &CudaTensor, spec: NormSpec) {
        self.op("head_norm", |queue| rows::head_norm(queue, x, span, weight, spec));
    }

    fn rope_table(&self, step: &CudaStep, rope: &RopeSpec) -> CudaTensor {
        self.makes("rope_table", |queue| rows::rope_table(queue, &self.frequencies, step, rope))
    }

    fn rope(&self, x: &mut CudaTensor, span: HeadSpan, table: &CudaTensor) {
        self.op("rope", |queue| rows::rope(queue, x, span, table));
    }

    fn gated(&self, x: &CudaTensor, activation: Activation) -> CudaTensor {
        self.makes("gated", |queue| rows::gated(queue, x, activation))
    }

    fn activate(&self, x: &mut CudaTensor, activation: Activation) {
        self.op("activate", |queue| rows::activate(queue, x, activation));
    }

    fn add(&self, x: &mut CudaTensor, y: &CudaTensor) {
        self.op("add", |queue| rows::add(queue, x, y));
    }

    fn scale(&self, x: &mut CudaTensor, by: f32) {
        self.op("scale", |queue| rows::scale(queue, x, by));
    }

    fn softcap(&self, x: &mut CudaTensor, cap: f32) {
        self.op("softcap", |queue| rows::softcap(queue, x, cap));
    }

    fn store_kv(&self, kv: &mut CudaKv, qkv: &CudaTensor, step: &CudaStep, spec: &AttentionSpec) {
        self.op("store_kv", |queue| kv::store(queue, kv, qkv, step, spec));
    }

    fn rotate_store(
        &self,
        kv: &mut CudaKv,
        qkv: &mut CudaTensor,
        heads: Heads<'_, CudaTensor>,
        step: &CudaStep,
        spec: &AttentionSpec,
    ) {
        self.op("rotate_store", |queue| kv::rotate_store(queue, kv, qkv, heads, step, spec));
    }

    fn copy_kv(&self, kv: &mut CudaKv, pairs: &[(u32, u32)]) {
        self.op("copy_kv", |queue| kv::copy(queue, kv, pairs));
    }

    fn attention(&self, qkv: &CudaTensor, kv: &CudaKv, step: &CudaStep, spec: &AttentionSpec) -> CudaTensor {
        self.makes("attention", |queue| attention::attention(queue, &self.arrived, qkv, kv, step, spec))
    }

    fn attention_segments(
        &self,
        q: &CudaTensor,
        kv: &CudaKv,
        step: &CudaStep,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> CudaTensor {
        self.makes("attention_segments", |queue| attention::segments(queue, q, kv, step, spec, rows))
    }

    fn merge_segments(
        &self,
        parts: &CudaTensor,
        owners: usize,
        step: &CudaStep,
        spec: &AttentionSpec,
        rows: Range<usize>,
        out: &mut CudaTensor,
    ) {
        self.op("merge_segments", |queue| attention::merge(queue, parts, owners, step, spec, rows, out));
    }

    fn route(&self, logits: &CudaTensor, spec: RouterSpec) -> CudaRouting {
        self.op("route", |queue| moe::route(queue, logits, spec, &self.lists.borrow()))
    }

    fn routing_to_host(&self, routing: &CudaRouting) -> Result<Vec<Vec<(u32, f32)>>, DeviceError> {
        self.op("routing_to_host", |queue| moe::routing_to_host(queue, routing))
            .map_err(|fault| self.error(fault))
    }

    fn count_choices(&self, routing: &CudaRouting, counts: &mut CudaTensor) -> Result<(), DeviceError> {
        self.op("count_choices", |queue| moe::count_choices(queue, routing, counts));
        Ok(())
    }

    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> CudaRouting {
        self.op("routing_from_host", |queue| moe::routing_from_host(queue, choices, experts))
    }

    fn assign(&self, routing: &CudaRouting, experts: Range<usize>) -> CudaAssignment {
        self.op("assign", |queue| moe::assign(queue, routing, experts))
    }

    fn grouped_linear(
        &self,
        x: &CudaTensor,
        assignment: &CudaAssignment,
        weights: &[CudaWeight],
    ) -> CudaTensor {
        let layers = Grouped { x, of_tokens: true, assignment, weights, program: None, gate: None };
        self.makes("grouped_linear", |queue| linear::grouped(queue, layers))
    }

    fn grouped_linear_tree(
        &self,
        x: &CudaTensor,
        assignment: &CudaAssignment,
        weights: &[CudaWeight],
        program: &Program,
    ) -> CudaTensor {
        let program = Some(program);
        let layers = Grouped { x, of_tokens: false, assignment, weights, program, gate: None };
        self.makes("grouped_linear_tree", |queue| linear::grouped(queue, layers))
    }

    fn grouped_linear_gated(
        &self,
        x: &CudaTensor,
        assignment: &CudaAssignment,
        weights: &[CudaWeight],
        activation: Activation,
    ) -> CudaTensor {
        let gate = Some(activation);
        let layers = Grouped { x, of_tokens: true, assignment, weights, program: None, gate };
        self.makes("grouped_linear_gated", |queue| linear::grouped(queue, layers))
    }

    fn combine(&self, y: &CudaTensor, assignment: &CudaAssignment, program: &Program) -> CudaTensor {
        self.makes("combine", |queue| moe::combine(queue, &self.heights, y, assignment, program))
    }

    fn edit_logits(&self, logits: &mut CudaTensor, edits: &[LogitEdit]) {
        self.op("edit_logits", |queue| logits::edit(queue, logits, edits));
    }

    fn row_max(&self, logits: &CudaTensor) -> Result<Vec<f32>, DeviceError> {
        self.op("row_max", |queue| logits::row_max(queue, logits)).map_err(|fault| self.error(fault))
    }

    fn exp_sums(&self, logits: &CudaTensor, max: &[f32], program: &Program) -> Result<Vec<f32>, DeviceError> {
        self.op("exp_sums", |queue| logits::exp_sums(queue, &self.panel_tree, logits, max, program))
            .map_err(|fault| self.error(fault))
    }

    fn top_k(&self, logits: &CudaTensor, skip: usize, k: usize) -> Result<Vec<Vec<(f32, u32)>>, DeviceError> {
        self.op("top_k", |queue| logits::top_k(queue, logits, skip, k)).map_err(|fault| self.error(fault))
    }

    fn survey(&self, logits: &CudaTensor, program: &Program, k: usize) -> Result<Survey, DeviceError> {
        self.op("survey", |queue| logits::survey(queue, &self.panel_tree, logits, program, k))
            .map_err(|fault| self.error(fault))
    }

    fn pick(&self, logits: &CudaTensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError> {
        self.op("pick", |queue| logits::pick(queue, logits, at)).map_err(|fault| self.error(fault))
    }

    fn count_before(&self, logits: &CudaTensor, places: &[(f32, usize)]) -> Result<Vec<u32>, DeviceError> {
        self.op("count_before", |queue| logits::count_before(queue, logits, places))
            .map_err(|fault| self.error(fault))
    }

    fn enter(&self, part: Part) {
        self.watch(|watch, driver| watch.enter(driver, part));
    }

    fn leave(&self) {
        self.watch(|watch, driver| watch.leave(driver));
    }

    fn exchanged(&self, exchanged: Exchanged) {
        self.watch(|watch, driver| watch.exchanged(driver, exchanged));
    }

    fn take_part_times(&self) -> PartTimes {
        self.watch(|watch, driver| watch.take_times(driver)).unwrap_or_default()
    }

    fn record(&self) {
        self.queue.0.watch.record();
    }

    fn is_recording(&self) -> bool {
        self.queue.0.watch.is_recording()
    }

    fn take_timeline(&self) -> Timeline {
        let Memory { driver, watch, .. } = &*self.queue.0;
        watch.take_timeline(&**driver)
    }

    fn memory(&self) -> DeviceMemory {
        let driver = &self.queue.0.driver;
        DeviceMemory {
            activations: self.queue.0.most() as u64,
            scratch: driver.graph_bytes(),
            free: driver.free_bytes(),
            total: driver.total_bytes(),
            ranks: driver.ranks_on_gpu(),
        }
    }
}
