//! The operations of [`tensor::Device`] on the CPU. They run at once, so no error is ever pending.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use tensor::{
    Activation, AttentionSpec, Device, DeviceError, DeviceMemory, HeadSpan, HostDevice, KvSpec, LogitEdit,
    MatrixSource, NormSpec, Program, RopeSpec, RouterSpec, RowNorm, SequenceSpan, StepMeta, ThreadLog,
    WeightSpec,
};

use crate::buffer::{Buffer, Purpose, Recycler};
use crate::kernels::cache::{self, CpuKv};
use crate::kernels::head_norm_rope::{self, NormedHeads};
use crate::kernels::moe::{self, CpuAssignment, CpuRouting};
use crate::kernels::norm::{self, Norm};
use crate::kernels::{Exec, add_norm, attention, elementwise, grouped, linear, logits, rope};
use crate::pack::{CpuWeight, PanelLayout};
use crate::pool::Pool;
use crate::simd::Isa;

/// How a [`CpuDevice`] runs.
#[derive(Clone, Debug)]
pub struct CpuConfig {
    /// Threads, the calling one included.
    pub threads: usize,
    /// The core of each thread, the calling one first. Without, the system places them.
    pub cores: Option<Vec<usize>>,
    /// The instruction set. Without, the fastest.
    pub isa: Option<Isa>,
    /// Whether threads wait actively for a short time before they sleep. Right where they have cores of their own;
    /// ignored where there are fewer cores than threads.
    pub spin: bool,
}

impl Default for CpuConfig {
    fn default() -> Self {
        CpuConfig { threads: 1, cores: None, isa: None, spin: true }
    }
}

/// The cores of one rank.
pub struct CpuDevice {
    exec: Exec,
    /// How many layers' caches were made.
    kvs: Cell<usize>,
}

/// A row-major matrix of f32.
pub struct CpuTensor {
    data: Buffer<f32>,
    rows: usize,
    cols: usize,
}

/// A step's positions and block tables.
pub struct CpuStep {
    positions: Vec<u32>,
    sequences: Vec<SequenceSpan>,
}

impl CpuDevice {
    /// Starts the threads. The calling thread is one of them and must be the one that uses the device; if cores
    /// are given it is pinned as long as the device lives.
    ///
    /// # Panics
    /// If there are no threads, not one core for each, or if this machine has not the instruction set.
    pub fn new(config: CpuConfig) -> Self {
        let isa = config.isa.unwrap_or_else(Isa::detect);
        assert!(isa.is_available(), "this machine has no {isa}");
        let pool = Pool::new(config.threads, config.cores.as_deref(), config.spin);
        let exec = Exec { pool, isa, recycler: Rc::new(Recycler::default()) };
        CpuDevice { exec, kvs: Cell::new(0) }
    }

    /// The instruction set that kernels use.
    pub fn isa(&self) -> Isa {
        self.exec.isa
    }

    /// Number of threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.exec.pool.threads()
    }

    /// Cores to which the system refused to pin a thread. Such a thread runs where the system likes.
    pub fn unpinned_cores(&self) -> &[usize] {
        self.exec.pool.unpinned()
    }

    /// Bytes of a packed weight of `[n, k]`.
    pub fn packed_len([n, k]: [usize; 2], spec: WeightSpec) -> usize {
        PanelLayout::bytes(spec, [n, k])
    }

    /// Where its threads write when they work, while someone wants to know.
    pub fn thread_log(&self) -> Arc<ThreadLog> {
        self.exec.pool.log().clone()
    }

    /// How often memory for a tensor had to come from the system. Does not grow once all shapes were seen.
    pub fn fresh_allocations(&self) -> usize {
        self.exec.recycler.fresh_allocations()
    }
}

impl CpuTensor {
    fn data(&self) -> &[f32] {
        self.data.as_slice()
    }

    fn data_mut(&mut self) -> &mut [f32] {
        self.data.as_mut_slice()
    }

    /// The elements of a matrix of one row.
    fn vector(&self) -> &[f32] {
        assert_eq!(self.rows, 1, "a vector is a matrix of one row");
        self.data()
    }
}

/// A norm of rows of so many columns.
fn row_norm<'a>(norm: RowNorm<'a, CpuTensor>, cols: usize) -> Norm<'a> {
    let weight = norm.weight.vector();
    assert_eq!(weight.len(), cols, "a norm has a weight per column");
    Norm { weight, bias: norm.bias.map(CpuTensor::vector), spec: norm.spec }
}

impl Device for CpuDevice {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;
    type Kv = CpuKv;
    type Step = CpuStep;
    type Routing = CpuRouting;
    type Assignment = CpuAssignment;

    fn name(&self) -> String {
        "cpu".into()
    }

    fn upload(&self, data: &[f32], rows: usize, cols: usize) -> CpuTensor {
        let mut x = self.alloc(rows, cols);
        x.data_mut().copy_from_slice(data);
        x
    }

    fn alloc(&self, rows: usize, cols: usize) -> CpuTensor {
        CpuTensor { data: self.exec.recycler.take(rows * cols, Purpose::Activations), rows, cols }
    }

    fn download(&self, x: &CpuTensor) -> Result<Vec<f32>, DeviceError> {
        Ok(x.data().to_vec())
    }

    fn shape(&self, x: &CpuTensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn pack(&self, source: &dyn MatrixSource, spec: WeightSpec) -> CpuWeight {
        CpuWeight::pack(source, spec, &self.exec.pool, self.exec.isa)
    }

    fn weight_shape(&self, w: &CpuWeight) -> [usize; 2] {
        [w.n, w.k]
    }

    fn packed_bytes(&self, w: &CpuWeight) -> usize {
        w.bytes()
    }

    fn alloc_kv(&self, spec: KvSpec) -> CpuKv {
        self.kvs.set(self.kvs.get() + 1);
        CpuKv::new(spec, self.kvs.get())
    }

    fn begin(&self, meta: &StepMeta) -> CpuStep {
        CpuStep { positions: meta.positions(), sequences: meta.sequences.clone() }
    }

    fn linear(&self, x: &CpuTensor, w: &CpuWeight, bias: Option<&CpuTensor>) -> CpuTensor {
        assert_eq!(x.cols, w.k, "a linear layer of {} inputs", w.k);
        let mut out = self.alloc(x.rows, w.n);
        let bias = bias.map(CpuTensor::vector);
        linear::linear(&self.exec, x.data(), x.rows, w, &Program::sequential(w.k), bias, out.data_mut());
        out
    }

    fn linear_tree(&self, x: &CpuTensor, w: &CpuWeight, program: &Program) -> CpuTensor {
        assert_eq!(x.cols, w.k, "a linear layer of {} inputs", w.k);
        let mut out = self.alloc(program.num_nodes() * x.rows, w.n);
        linear::linear(&self.exec, x.data(), x.rows, w, program, None, out.data_mut());
        out
    }

    fn embed(&self, w: &CpuWeight, rows: &[u32]) -> CpuTensor {
        let mut out = self.alloc(rows.len(), w.k);
        elementwise::embed(&self.exec, w, rows, out.data_mut());
        out
    }

    fn gather_rows(&self, x: &CpuTensor, rows: &[u32]) -> CpuTensor {
        let mut out = self.alloc(rows.len(), x.cols);
        elementwise::gather_rows(&self.exec, x.data(), x.cols, rows, out.data_mut());
        out
    }

    fn gather_cols(&self, x: &CpuTensor, cols: Range<usize>) -> CpuTensor {
        assert!(cols.start <= cols.end && cols.end <= x.cols, "columns {cols:?} of {}", x.cols);
        let mut out = self.alloc(x.rows, cols.len());
        elementwise::gather_cols(&self.exec, x.data(), x.cols, cols.start, cols.len(), out.data_mut());
        out
    }

    fn regroup(&self, x: &CpuTensor, rows: usize, columns: &[(u32, u32)]) -> Result<CpuTensor, DeviceError> {
        let mut out = self.alloc(rows, columns.len());
        elementwise::regroup(&self.exec, x.data(), [rows, x.cols], columns, out.data_mut());
        Ok(out)
    }

    fn norm(&self, x: &CpuTensor, weight: &CpuTensor, bias: Option<&CpuTensor>, spec: NormSpec) -> CpuTensor {
        let by = row_norm(RowNorm { weight, bias, spec }, x.cols);
        let mut out = self.alloc(x.rows, x.cols);
        norm::norm(&self.exec, x.data(), by, out.data_mut());
        out
    }

    fn add_norm(
        &self,
        x: &mut CpuTensor,
        y: &CpuTensor,
        post: Option<RowNorm<'_, CpuTensor>>,
        norm: RowNorm<'_, CpuTensor>,
    ) -> CpuTensor {
        assert_eq!((y.rows, y.cols), (x.rows, x.cols), "matrices of the same shape");
        let post = post.map(|post| row_norm(post, x.cols));
        let by = row_norm(norm, x.cols);
        let mut out = self.alloc(x.rows, x.cols);
        add_norm::add_norm(&self.exec, x.data_mut(), y.data(), post, by, out.data_mut());
        out
    }

    fn head_norm(&self, x: &mut CpuTensor, span: HeadSpan, weight: &CpuTensor, spec: NormSpec) {
        let cols = x.cols;
        let by = Norm { weight: weight.vector(), bias: None, spec };
        norm::head_norm(&self.exec, x.data_mut(), cols, span, by);
    }

    fn rope_table(&self, step: &CpuStep, rope: &RopeSpec) -> CpuTensor {
        let mut out = self.alloc(step.positions.len(), 2 * rope.inv_freq.len());
        rope::table(&self.exec, &step.positions, &rope.inv_freq, out.data_mut());
        out
    }

    fn rope(&self, x: &mut CpuTensor, span: HeadSpan, table: &CpuTensor) {
        assert_eq!(table.rows, x.rows, "a row of the table for every row");
        let cols = x.cols;
        rope::rotate(&self.exec, x.data_mut(), cols, span, table.data(), table.cols / 2);
    }

    fn head_norm_rope(
        &self,
        x: &mut CpuTensor,
        heads: [(HeadSpan, &CpuTensor); 2],
        spec: NormSpec,
        table: &CpuTensor,
    ) {
        assert_eq!(table.rows, x.rows, "a row of the table for every row");
        let (cols, pairs) = (x.cols, table.cols / 2);
        let heads = heads.map(|(span, weight)| NormedHeads { span, weight: weight.vector() });
        head_norm_rope::head_norm_rope(&self.exec, x.data_mut(), cols, heads, spec, table.data(), pairs);
    }

    fn gated(&self, x: &CpuTensor, activation: Activation) -> CpuTensor {
        assert!(x.cols.is_multiple_of(2), "a gate and what it gates");
        let mut out = self.alloc(x.rows, x.cols / 2);
        elementwise::gated(&self.exec, x.data(), x.cols / 2, activation, out.data_mut());
        out
    }

    fn activate(&self, x: &mut CpuTensor, activation: Activation) {
        elementwise::activate(&self.exec, x.data_mut(), activation);
    }

    fn add(&self, x: &mut CpuTensor, y: &CpuTensor) {
        assert_eq!(x.cols, y.cols, "matrices of the same width");
        assert!(y.rows == x.rows || y.rows == 1, "{} rows added to {}", y.rows, x.rows);
        if x.rows == y.rows {
            elementwise::add(&self.exec, x.data_mut(), y.data());
        } else {
            elementwise::add_bias(&self.exec, x.data_mut(), y.data());
        }
    }

    fn scale(&self, x: &mut CpuTensor, by: f32) {
        elementwise::scale(&self.exec, x.data_mut(), by);
    }

    fn softcap(&self, x: &mut CpuTensor, cap: f32) {
        elementwise::softcap(&self.exec, x.data_mut(), cap);
    }

    fn store_kv(&self, kv: &mut CpuKv, qkv: &CpuTensor, step: &CpuStep, spec: &AttentionSpec) {
        assert_eq!(qkv.cols, spec.qkv_cols(), "columns of queries, keys and values");
        cache::store(&self.exec, kv, qkv.data(), &step.sequences, spec);
    }

    fn copy_kv(&self, kv: &mut CpuKv, pairs: &[(u32, u32)]) {
        cache::copy(&self.exec, kv, pairs);
    }

    fn attention(&self, qkv: &CpuTensor, kv: &CpuKv, step: &CpuStep, spec: &AttentionSpec) -> CpuTensor {
        assert_eq!(qkv.cols, spec.qkv_cols(), "columns of queries, keys and values");
        let mut out = self.alloc(qkv.rows, spec.num_heads * spec.head_dim);
        attention::attention(&self.exec, qkv.data(), kv, &step.sequences, spec, out.data_mut());
        out
    }

    fn attention_segments(
        &self,
        q: &CpuTensor,
        kv: &CpuKv,
        step: &CpuStep,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> CpuTensor {
        assert_eq!(q.cols, spec.num_heads * spec.head_dim, "columns of queries");
        let own = attention::Own::new(kv.spec.share, &step.sequences, spec.window, rows);
        let mut out = self.alloc(spec.num_heads * own.len(), 2 + spec.head_dim);
        attention::attention_segments(&self.exec, q.data(), kv, &step.sequences, spec, &own, out.data_mut());
        out
    }

    fn merge_segments(
        &self,
        parts: &CpuTensor,
        owners: usize,
        step: &CpuStep,
        spec: &AttentionSpec,
        rows: Range<usize>,
        out: &mut CpuTensor,
    ) {
        assert_eq!(out.cols, spec.num_heads * spec.head_dim, "columns of query heads");
        let range = rows.start * out.cols..rows.end * out.cols;
        let out = &mut out.data_mut()[range];
        attention::merge_segments(&self.exec, parts.data(), owners, &step.sequences, spec, rows, out);
    }

    fn route(&self, logits: &CpuTensor, spec: RouterSpec) -> CpuRouting {
        moe::route(&self.exec, logits.data(), logits.rows, spec)
    }

    fn routing_to_host(&self, routing: &CpuRouting) -> Result<Vec<Vec<(u32, f32)>>, DeviceError> {
        Ok(moe::routing_to_host(routing))
    }

    fn count_choices(&self, routing: &CpuRouting, counts: &mut CpuTensor) -> Result<(), DeviceError> {
        moe::count_choices(routing, counts.data_mut());
        Ok(())
    }

    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> CpuRouting {
        moe::routing_from_host(choices, experts)
    }

    fn assign(&self, routing: &CpuRouting, experts: Range<usize>) -> CpuAssignment {
        moe::assign(routing, experts)
    }

    fn grouped_linear(&self, x: &CpuTensor, assignment: &CpuAssignment, weights: &[CpuWeight]) -> CpuTensor {
        let n = weights.first().map_or(0, |w| w.n);
        let mut out = self.alloc(assignment.num_pairs(), n);
        let program = Program::sequential(x.cols);
        grouped::grouped_linear(&self.exec, x.data(), true, assignment, weights, &program, out.data_mut());
        out
    }

    fn grouped_linear_tree(
        &self,
        x: &CpuTensor,
        assignment: &CpuAssignment,
        weights: &[CpuWeight],
        program: &Program,
    ) -> CpuTensor {
        let n = weights.first().map_or(0, |w| w.n);
        let mut out = self.alloc(program.num_nodes() * assignment.num_pairs(), n);
        grouped::grouped_linear(&self.exec, x.data(), false, assignment, weights, program, out.data_mut());
        out
    }

    fn combine(&self, y: &CpuTensor, assignment: &CpuAssignment, program: &Program) -> CpuTensor {
        assert_eq!(y.rows, assignment.num_pairs(), "a row for every pair");
        let mut out = self.alloc(program.num_nodes() * assignment.num_tokens(), y.cols);
        moe::combine(&self.exec, y.data(), y.cols, assignment, program, out.data_mut());
        out
    }

    fn edit_logits(&self, x: &mut CpuTensor, edits: &[LogitEdit]) {
        let cols = x.cols;
        logits::edit(&self.exec, x.data_mut(), cols, edits);
    }

    fn row_max(&self, x: &CpuTensor) -> Result<Vec<f32>, DeviceError> {
        Ok(logits::row_max(&self.exec, x.data(), x.rows, x.cols))
    }

    fn exp_sums(&self, x: &CpuTensor, max: &[f32], program: &Program) -> Result<Vec<f32>, DeviceError> {
        assert_eq!(max.len(), x.rows, "a maximum for every row");
        Ok(logits::exp_sums(&self.exec, x.data(), x.cols, max, program))
    }

    fn top_k(&self, x: &CpuTensor, skip: usize, k: usize) -> Result<Vec<Vec<(f32, u32)>>, DeviceError> {
        Ok(logits::top_k(&self.exec, x.data(), x.rows, x.cols, skip, k))
    }

    fn pick(&self, x: &CpuTensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError> {
        Ok(at.iter().map(|&(row, col)| x.data()[row * x.cols..(row + 1) * x.cols][col]).collect())
    }

    fn count_before(&self, x: &CpuTensor, places: &[(f32, usize)]) -> Result<Vec<u32>, DeviceError> {
        assert_eq!(places.len(), x.rows, "a place for every row");
        Ok(logits::count_before(&self.exec, x.data(), x.cols, places))
    }

    fn memory(&self) -> DeviceMemory {
        let recycler = &self.exec.recycler;
        DeviceMemory {
            activations: recycler.most_in_use(Purpose::Activations),
            scratch: recycler.most_in_use(Purpose::Scratch),
            free: None,
            total: None,
            ranks: 0,
        }
    }
}

impl HostDevice for CpuDevice {
    fn as_slice<'a>(&self, x: &'a CpuTensor) -> &'a [f32] {
        x.data()
    }

    fn as_mut_slice<'a>(&self, x: &'a mut CpuTensor) -> &'a mut [f32] {
        x.data_mut()
    }

    fn parallel(&self, items: usize, grain: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        self.exec.pool.split(items, grain, work);
    }
}
