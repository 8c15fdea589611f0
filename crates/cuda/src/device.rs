//! The operations of [`tensor::Device`] on a GPU. They enqueue; what goes wrong surfaces where results are read.

use std::cell::RefCell;
use std::ops::Range;

use ::tensor::{
    Activation, AttentionSpec, Device, DeviceError, DeviceMemory, HeadSpan, Heads, KvSpec, LogitEdit,
    MatrixSource, NormSpec, Program, RopeSpec, RouterSpec, RowNorm, StepMeta, Survey, WeightSpec,
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
use crate::{attention, kv, rows};

/// One rank's GPU, or its part of one.
pub struct CudaDevice {
    pub(crate) queue: Queue,
    pub(crate) trees: Trees,
    reduction: Reduction,
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

    /// A device of what a driver drives.
    pub fn with(driver: Box<dyn Driver>, reduction: Reduction) -> Self {
        let queue = Queue(Memory::new(driver));
        CudaDevice {
            fast: (reduction == Reduction::Fast).then(|| Fast::new(&queue)),
            queue,
            reduction,
            trees: Trees::default(),
            panel_tree: OfProgram::default(),
            heights: OfProgram::default(),
            frequencies: Frequencies::default(),
            arrived: Arrived::default(),
            lists: RefCell::default(),
        }
    }

    /// What it promises about the order of its sums.
    pub fn reduction(&self) -> Reduction {
        self.reduction
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
        let x = self.queue.tensor(rows, cols);
        self.queue.write(x.at(), &data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
        x
    }

    fn alloc(&self, rows: usize, cols: usize) -> CudaTensor {
        self.queue.tensor(rows, cols)
    }

    fn flush(&self) {
        self.queue.flush();
    }

    fn download(&self, x: &CudaTensor) -> Result<Vec<f32>, DeviceError> {
        self.queue.read(x.at(), x.len()).map_err(|fault| self.error(fault))
    }

    fn shape(&self, x: &CudaTensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn pack(&self, source: &dyn MatrixSource, spec: WeightSpec) -> CudaWeight {
        linear::pack(&self.queue, self.fast.as_ref(), source, spec)
    }

    fn weight_shape(&self, w: &CudaWeight) -> [usize; 2] {
        [w.n, w.k]
    }

    fn packed_bytes(&self, w: &CudaWeight) -> usize {
        w.bytes()
    }

    fn alloc_kv(&self, spec: KvSpec) -> CudaKv {
        CudaKv::new(&self.queue, spec)
    }

    fn begin(&self, meta: &StepMeta) -> CudaStep {
        CudaStep::new(&self.queue, meta, &mut self.lists.borrow_mut())
    }

    fn linear(&self, x: &CudaTensor, w: &CudaWeight, bias: Option<&CudaTensor>) -> CudaTensor {
        linear::linear(&self.queue, self.fast.as_ref(), x, w, None, bias)
    }

    fn linear_tree(&self, x: &CudaTensor, w: &CudaWeight, program: &Program) -> CudaTensor {
        linear::linear(&self.queue, self.fast.as_ref(), x, w, Some(program), None)
    }

    fn linear_gated(
        &self,
        x: &CudaTensor,
        w: &CudaWeight,
        bias: Option<&CudaTensor>,
        activation: Activation,
    ) -> CudaTensor {
        linear::gated(&self.queue, self.fast.as_ref(), x, w, bias, activation)
    }

    fn embed(&self, w: &CudaWeight, rows: &[u32]) -> CudaTensor {
        linear::embed(&self.queue, w, rows, self.lists.borrow().list(&self.queue, rows).at)
    }

    fn gather_rows(&self, x: &CudaTensor, rows: &[u32]) -> CudaTensor {
        rows::gather_rows(&self.queue, x, rows, self.lists.borrow().list(&self.queue, rows).at)
    }

    fn gather_cols(&self, x: &CudaTensor, cols: Range<usize>) -> CudaTensor {
        rows::gather_cols(&self.queue, x, cols)
    }

    fn regroup(
        &self,
        x: &CudaTensor,
        rows: usize,
        columns: &[(u32, u32)],
    ) -> Result<CudaTensor, DeviceError> {
        Ok(rows::regroup(&self.queue, x, rows, columns))
    }

    fn norm(
        &self,
        x: &CudaTensor,
        weight: &CudaTensor,
        bias: Option<&CudaTensor>,
        spec: NormSpec,
    ) -> CudaTensor {
        rows::add_norm(&self.queue, x, None, None, RowNorm { weight, bias, spec })
    }

    fn add_norm(
        &self,
        x: &mut CudaTensor,
        y: &CudaTensor,
        post: Option<RowNorm<'_, CudaTensor>>,
        norm: RowNorm<'_, CudaTensor>,
    ) -> CudaTensor {
        rows::add_norm(&self.queue, x, Some(y), post, norm)
    }

    fn head_norm(&self, x: &mut CudaTensor, span: HeadSpan, weight: &CudaTensor, spec: NormSpec) {
        rows::head_norm(&self.queue, x, span, weight, spec);
    }

    fn rope_table(&self, step: &CudaStep, rope: &RopeSpec) -> CudaTensor {
        rows::rope_table(&self.queue, &self.frequencies, step, rope)
    }

    fn rope(&self, x: &mut CudaTensor, span: HeadSpan, table: &CudaTensor) {
        rows::rope(&self.queue, x, span, table);
    }

    fn gated(&self, x: &CudaTensor, activation: Activation) -> CudaTensor {
        rows::gated(&self.queue, x, activation)
    }

    fn activate(&self, x: &mut CudaTensor, activation: Activation) {
        rows::activate(&self.queue, x, activation);
    }

    fn add(&self, x: &mut CudaTensor, y: &CudaTensor) {
        rows::add(&self.queue, x, y);
    }

    fn scale(&self, x: &mut CudaTensor, by: f32) {
        rows::scale(&self.queue, x, by);
    }

    fn softcap(&self, x: &mut CudaTensor, cap: f32) {
        rows::softcap(&self.queue, x, cap);
    }

    fn store_kv(&self, kv: &mut CudaKv, qkv: &CudaTensor, step: &CudaStep, spec: &AttentionSpec) {
        kv::store(&self.queue, kv, qkv, step, spec);
    }

    fn rotate_store(
        &self,
        kv: &mut CudaKv,
        qkv: &mut CudaTensor,
        heads: Heads<'_, CudaTensor>,
        step: &CudaStep,
        spec: &AttentionSpec,
    ) {
        kv::rotate_store(&self.queue, kv, qkv, heads, step, spec);
    }

    fn copy_kv(&self, kv: &mut CudaKv, pairs: &[(u32, u32)]) {
        kv::copy(&self.queue, kv, pairs);
    }

    fn attention(&self, qkv: &CudaTensor, kv: &CudaKv, step: &CudaStep, spec: &AttentionSpec) -> CudaTensor {
        attention::attention(&self.queue, &self.arrived, qkv, kv, step, spec)
    }

    fn attention_segments(
        &self,
        q: &CudaTensor,
        kv: &CudaKv,
        step: &CudaStep,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> CudaTensor {
        attention::segments(&self.queue, q, kv, step, spec, rows)
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
        attention::merge(&self.queue, parts, owners, step, spec, rows, out);
    }

    fn route(&self, logits: &CudaTensor, spec: RouterSpec) -> CudaRouting {
        moe::route(&self.queue, logits, spec)
    }

    fn routing_to_host(&self, routing: &CudaRouting) -> Result<Vec<Vec<(u32, f32)>>, DeviceError> {
        moe::routing_to_host(&self.queue, routing).map_err(|fault| self.error(fault))
    }

    fn count_choices(&self, routing: &CudaRouting, counts: &mut CudaTensor) -> Result<(), DeviceError> {
        moe::count_choices(&self.queue, routing, counts);
        Ok(())
    }

    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> CudaRouting {
        moe::routing_from_host(&self.queue, choices, experts)
    }

    fn assign(&self, routing: &CudaRouting, experts: Range<usize>) -> CudaAssignment {
        moe::assign(&self.queue, routing, experts)
    }

    fn grouped_linear(
        &self,
        x: &CudaTensor,
        assignment: &CudaAssignment,
        weights: &[CudaWeight],
    ) -> CudaTensor {
        let layers = Grouped { x, of_tokens: true, assignment, weights, program: None, gate: None };
        linear::grouped(&self.queue, layers)
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
        linear::grouped(&self.queue, layers)
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
        linear::grouped(&self.queue, layers)
    }

    fn combine(&self, y: &CudaTensor, assignment: &CudaAssignment, program: &Program) -> CudaTensor {
        moe::combine(&self.queue, &self.heights, y, assignment, program)
    }

    fn edit_logits(&self, logits: &mut CudaTensor, edits: &[LogitEdit]) {
        logits::edit(&self.queue, logits, edits);
    }

    fn row_max(&self, logits: &CudaTensor) -> Result<Vec<f32>, DeviceError> {
        logits::row_max(&self.queue, logits).map_err(|fault| self.error(fault))
    }

    fn exp_sums(&self, logits: &CudaTensor, max: &[f32], program: &Program) -> Result<Vec<f32>, DeviceError> {
        logits::exp_sums(&self.queue, &self.panel_tree, logits, max, program)
            .map_err(|fault| self.error(fault))
    }

    fn top_k(&self, logits: &CudaTensor, skip: usize, k: usize) -> Result<Vec<Vec<(f32, u32)>>, DeviceError> {
        logits::top_k(&self.queue, logits, skip, k).map_err(|fault| self.error(fault))
    }

    fn survey(&self, logits: &CudaTensor, program: &Program, k: usize) -> Result<Survey, DeviceError> {
        logits::survey(&self.queue, &self.panel_tree, logits, program, k).map_err(|fault| self.error(fault))
    }

    fn pick(&self, logits: &CudaTensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError> {
        logits::pick(&self.queue, logits, at).map_err(|fault| self.error(fault))
    }

    fn count_before(&self, logits: &CudaTensor, places: &[(f32, usize)]) -> Result<Vec<u32>, DeviceError> {
        logits::count_before(&self.queue, logits, places).map_err(|fault| self.error(fault))
    }

    fn memory(&self) -> DeviceMemory {
        DeviceMemory { activations: self.queue.0.most() as u64, scratch: 0 }
    }
}
