use std::fmt;
use std::ops::Range;

use crate::{
    Activation, AttentionSpec, Exchanged, HeadSpan, Heads, KvSpec, LogitEdit, MatrixSource, NormSpec, Part,
    PartTimes, Program, RopeSpec, RouterSpec, RowNorm, StepMeta, Survey, Timeline, WeightSpec,
};

/// What went wrong on a device. Operations only enqueue; it surfaces where results are read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{device}: {message}")]
pub struct DeviceError {
    /// The device.
    pub device: String,
    /// What happened.
    pub message: String,
}

/// Something that runs a model's operations on tensors only it can read.
///
/// A device belongs to one rank and is used from one thread. Operations enqueue and return at once where
/// the hardware allows it. What they compute, bit for bit, is fixed by NUMERICS.md and shown by
/// [`crate::Reference`]; [`crate::conformance::run`] compares.
///
/// Shapes: `t` rows (tokens), `n` outputs, `k` inputs. An activation is a row-major matrix of f32. Any
/// dimension may be 0.
pub trait Device {
    /// A matrix of activations.
    type Tensor;
    /// A packed weight `[n, k]`.
    type Weight;
    /// One layer's keys and values.
    type Kv;
    /// A step's positions and block tables, where the device wants them.
    type Step;
    /// Chosen experts and their weights, per token.
    type Routing;
    /// The (token, expert) pairs that a range of experts works on.
    type Assignment;

    // ---- memory ----

    /// Short name: `cpu`, `reference`, ….
    fn name(&self) -> String;
    /// A matrix from host memory. `data [rows · cols]`.
    fn upload(&self, data: &[f32], rows: usize, cols: usize) -> Self::Tensor;
    /// A matrix of unspecified content.
    fn alloc(&self, rows: usize, cols: usize) -> Self::Tensor;
    /// Lets all that was enqueued begin, without waiting for it but now and then, to make what comes again cheaper. A device may hold work back until a result is read; but a rank
    /// that reads nothing has a part in what others read. So it is called where a rank goes on to wait for others or for work.
    fn flush(&self) {}
    /// A matrix to host memory, row-major, after all that was enqueued.
    ///
    /// # Errors
    /// Whatever the device met since the last call.
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>, DeviceError>;
    /// `[rows, cols]`.
    fn shape(&self, x: &Self::Tensor) -> [usize; 2];
    /// Packs a weight. Floats are rounded to nearest, ties to even, and exact where they are stored so; groups are
    /// quantised as [`crate::Int8Group`], [`crate::Int4Group`] and [`crate::Fp8Group`] say, of finite weights.
    fn pack(&self, source: &dyn MatrixSource, spec: WeightSpec) -> Self::Weight;
    /// `(n, k)` of a weight.
    fn weight_shape(&self, w: &Self::Weight) -> [usize; 2];
    /// Bytes that a packed weight takes, padding included.
    fn packed_bytes(&self, w: &Self::Weight) -> usize;
    /// A KV cache of unspecified content. Positions that a query does not see have no influence, whatever is there.
    fn alloc_kv(&self, spec: KvSpec) -> Self::Kv;
    /// Brings a step's positions and block tables to the device, once per step.
    fn begin(&self, meta: &StepMeta) -> Self::Step;

    // ---- linear layers ----

    /// `y[t, n] = Σ_k x[t, k] · w[n, k]`, k ascending by FMA from +0, then `+ bias[n]`.
    ///
    /// Where weights are kept as whole numbers, activations are quantised per group ([`crate::ActivationGroup`]), and the
    /// sum is over groups: `fma(f32(Σ w x), w_scale · x_scale, sum)`, groups ascending, from +0, with whole numbers `w`
    /// (`q` of an int8 weight, `16 q − zero` of an int4 weight) and `x`.
    ///
    /// # Shapes
    /// `x [t, k]`, `w [n, k]`, `bias [1, n]` → `[t, n]`
    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, bias: Option<&Self::Tensor>) -> Self::Tensor;
    /// The partial sums of a program's nodes: each item is summed like [`Device::linear`], items are merged
    /// as the program says. The items of a weight with groups begin and end where groups do.
    ///
    /// # Shapes
    /// `x [t, k]`, `w [n, k]` → `[nodes · t, n]`, node-major: row `node · t + row`
    fn linear_tree(&self, x: &Self::Tensor, w: &Self::Weight, program: &Program) -> Self::Tensor;
    /// What a gated feed-forward network does first: [`Device::linear`], then [`Device::gated`]. The bits are those of the two one by
    /// one.
    ///
    /// # Shapes
    /// `x [t, k]`, `w [2 f, k]`, first the gates, `bias [1, 2 f]` → `[t, f]`
    fn linear_gated(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        bias: Option<&Self::Tensor>,
        activation: Activation,
    ) -> Self::Tensor {
        self.gated(&self.linear(x, w, bias), activation)
    }
    /// Rows of a weight, widened.
    ///
    /// # Shapes
    /// `w [n, k]`, `rows [t]` → `[t, k]`
    fn embed(&self, w: &Self::Weight, rows: &[u32]) -> Self::Tensor;

    // ---- rows ----

    /// Rows of a matrix. `x [t, c]`, `rows [r]` → `[r, c]`
    fn gather_rows(&self, x: &Self::Tensor, rows: &[u32]) -> Self::Tensor;
    /// Columns of a matrix. `x [t, c]` → `[t, cols.len()]`
    fn gather_cols(&self, x: &Self::Tensor, cols: Range<usize>) -> Self::Tensor;
    /// Parts of rows that lie one under the other, put side by side: column `j` of the result is column
    /// `columns[j].1` of part `columns[j].0`.
    ///
    /// # Shapes
    /// `x [parts · rows, c]` → `[rows, columns.len()]`
    ///
    /// # Errors
    /// Whatever the device met since the last call: this default goes through host memory.
    fn regroup(
        &self,
        x: &Self::Tensor,
        rows: usize,
        columns: &[(u32, u32)],
    ) -> Result<Self::Tensor, DeviceError> {
        let (from, width) = (self.download(x)?, self.shape(x)[1]);
        let mut to = Vec::with_capacity(rows * columns.len());
        for row in 0..rows {
            to.extend(
                columns.iter().map(|&(part, col)| from[(part as usize * rows + row) * width + col as usize]),
            );
        }
        Ok(self.upload(&to, rows, columns.len()))
    }
    /// A norm of each row. Element i is summed in lane i mod 16 (squares by FMA), then the 16 by halves:
    /// lane l += lane l + 8, then + 4, + 2, + 1. Then `r = 1 / sqrt(sum / c + eps)` and `y = (x · r) · w`
    /// (`w = weight + weight_offset`, one add, also of 0; an RMS norm has no bias); for `Layer`,
    /// `y = fma((x − mean) · r, weight, bias)`, where the mean is a sum by the same lanes `/ c` and no bias is +0.
    ///
    /// # Shapes
    /// `x [t, c]`, `weight [1, c]`, `bias [1, c]` → `[t, c]`
    fn norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        spec: NormSpec,
    ) -> Self::Tensor;
    /// What happens to the residual stream between two blocks: `x = x + y`, or `x + post(y)` where the block before has
    /// a norm behind it, and then the norm of that sum. The bits are those of [`Device::add`] and [`Device::norm`] one
    /// by one.
    ///
    /// # Shapes
    /// `x [t, c]`, `y [t, c]` → `[t, c]`, normed
    fn add_norm(
        &self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        post: Option<RowNorm<'_, Self::Tensor>>,
        norm: RowNorm<'_, Self::Tensor>,
    ) -> Self::Tensor {
        match post {
            Some(post) => self.add(x, &self.norm(y, post.weight, post.bias, post.spec)),
            None => self.add(x, y),
        }
        self.norm(x, norm.weight, norm.bias, norm.spec)
    }
    /// The same norm over each head, in place. `weight [1, head_dim]`
    fn head_norm(&self, x: &mut Self::Tensor, span: HeadSpan, weight: &Self::Tensor, spec: NormSpec);
    /// Cosines and sines for each row's position: `angle = f32(position) · inv_freq` in f32, then sine and cosine
    /// in f64 rounded to f32.
    ///
    /// # Shapes
    /// → `[t, 2 · pairs]`, first the cosines
    fn rope_table(&self, step: &Self::Step, rope: &RopeSpec) -> Self::Tensor;
    /// Rotates heads in place: `a' = fma(a, cos, −(b · sin))`, `b' = fma(b, cos, a · sin)`, with
    /// a in column i and b in column i + pairs of the head.
    fn rope(&self, x: &mut Self::Tensor, span: HeadSpan, table: &Self::Tensor);
    /// Norms heads and rotates them, in place: queries and keys, each with the weight of their norm `[1, head_dim]`. The
    /// bits are those of [`Device::head_norm`] and [`Device::rope`] one by one.
    fn head_norm_rope(
        &self,
        x: &mut Self::Tensor,
        heads: [(HeadSpan, &Self::Tensor); 2],
        spec: NormSpec,
        table: &Self::Tensor,
    ) {
        for (span, weight) in heads {
            self.head_norm(x, span, weight, spec);
            self.rope(x, span, table);
        }
    }
    /// `activation(x[t, i]) · x[t, f + i]`, in one pass over what one product gave for gate and up. `x [t, 2 f]` → `[t, f]`
    fn gated(&self, x: &Self::Tensor, activation: Activation) -> Self::Tensor;
    /// `activation(x)`, in place.
    fn activate(&self, x: &mut Self::Tensor, activation: Activation);
    /// `x = x + y`. `y [t, c]`, or `[1, c]` for a bias of every row.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// `x = x · by`.
    fn scale(&self, x: &mut Self::Tensor, by: f32);
    /// `x = cap · tanh(x / cap)`.
    fn softcap(&self, x: &mut Self::Tensor, cap: f32);

    // ---- attention ----

    /// Writes the keys and values of every row to its position's block, rounded to the cache's type, which may come with
    /// a scale per head ([`crate::KvDType::round`]); rows whose block is another rank's ([`KvSpec::share`]) are passed
    /// over. `qkv [t, qkv_cols]`
    fn store_kv(&self, kv: &mut Self::Kv, qkv: &Self::Tensor, step: &Self::Step, spec: &AttentionSpec);
    /// What happens to queries, keys and values between their layer and attention: heads are normed and rotated, and keys and
    /// values are written. The bits are those of [`Device::head_norm`], [`Device::rope`] and [`Device::store_kv`] one by one. What
    /// `qkv [t, qkv_cols]` has of keys and values afterwards is unspecified.
    fn rotate_store(
        &self,
        kv: &mut Self::Kv,
        qkv: &mut Self::Tensor,
        heads: Heads<'_, Self::Tensor>,
        step: &Self::Step,
        spec: &AttentionSpec,
    ) {
        match heads {
            Heads { norms: Some(([q, k], norm)), table: Some(table) } => {
                self.head_norm_rope(qkv, [(spec.q(), q), (spec.k(), k)], norm, table);
            }
            Heads { norms: Some(([q, k], norm)), table: None } => {
                self.head_norm(qkv, spec.q(), q, norm);
                self.head_norm(qkv, spec.k(), k, norm);
            }
            Heads { norms: None, table: Some(table) } => {
                let both = HeadSpan { heads: spec.num_heads + spec.num_kv_heads, ..spec.q() };
                self.rope(qkv, both, table);
            }
            Heads { norms: None, table: None } => {}
        }
        self.store_kv(kv, qkv, step, spec);
    }
    /// Copies blocks, with all that belongs to them, from the first of each pair to the second; pairs whose blocks are
    /// another rank's ([`KvSpec::share`]) are passed over. Blocks are counted over all owners; those of a pair have the same
    /// one. No block that is written is in another pair.
    fn copy_kv(&self, kv: &mut Self::Kv, pairs: &[(u32, u32)]);
    /// Attention of every row over its sequence's cached positions, itself included (rule 4):
    /// scores by FMA over head_dim ascending, `· the keys' scale`, `· scale`, soft cap; positions in tiles of 64 at
    /// absolute multiples; per tile `m' = max(m, tile)` (by `if a > b`), `c = exp(m − m')`, weights `exp(s − m')`; the
    /// tile's sum in 16 lanes (lane = position mod 16, ascending, from +0; unseen positions add nothing) and
    /// then by halves; `l = fma(l, c, sum)`; `o = o · c`, then `o = fma(weight · the values' scale, v, o)` by position,
    /// ascending. (The scales of keys and values are 1 but in an fp8 cache.)
    /// Segments of 1,024 positions each start from the first seen tile of their own (m = −∞, l = +0, o = +0,
    /// c = 0 for it) and merge ascending: `m = max(m1, m2)`, `l = fma(l1, e^(m1−m), l2 · e^(m2−m))`, o likewise.
    /// The result is `o / l`. All blocks that are seen must be here.
    ///
    /// # Shapes
    /// `qkv [t, qkv_cols]` → `[t, num_heads · head_dim]`
    fn attention(
        &self,
        qkv: &Self::Tensor,
        kv: &Self::Kv,
        step: &Self::Step,
        spec: &AttentionSpec,
    ) -> Self::Tensor;
    /// [`Device::attention`] of some rows up to the merge, over the segments that are here ([`KvSpec::share`]): for
    /// every query head, for every row, for every segment here of which the row sees a position, ascending, one row
    /// `[m, l, o]`. All blocks of a segment have one owner.
    ///
    /// # Shapes
    /// `q [t, num_heads · head_dim]` → `[num_heads · s, 2 + head_dim]`, with `s` what [`crate::seen_segments`] gives
    /// of `rows` here
    fn attention_segments(
        &self,
        q: &Self::Tensor,
        kv: &Self::Kv,
        step: &Self::Step,
        spec: &AttentionSpec,
        rows: Range<usize>,
    ) -> Self::Tensor;
    /// Merges what all owners' [`Device::attention_segments`] gave for these query heads and `rows`, one owner's after
    /// the other's: starts from the first segment that a row sees as it is, merges those that follow as
    /// [`Device::attention`] does, and writes `o / l` to `rows` of `out`.
    ///
    /// # Shapes
    /// `parts [num_heads · s, 2 + head_dim]`, with `s` what [`crate::seen_segments`] gives of `rows`;
    /// `out [t, num_heads · head_dim]`
    fn merge_segments(
        &self,
        parts: &Self::Tensor,
        owners: usize,
        step: &Self::Step,
        spec: &AttentionSpec,
        rows: Range<usize>,
        out: &mut Self::Tensor,
    );

    // ---- experts ----

    /// Chooses experts: softmax over all (max, `exp(x − max)`, sum ascending, divide), the `top_k` largest
    /// quotients, ties to the lower id, put in ascending order of ids; if `normalize`, divided by their sum in that order.
    /// `logits [t, experts]`
    fn route(&self, logits: &Self::Tensor, spec: RouterSpec) -> Self::Routing;
    /// What each token chose: (expert, weight), by ascending id.
    ///
    /// # Errors
    /// Whatever the device met since the last call.
    fn routing_to_host(&self, routing: &Self::Routing) -> Result<Vec<Vec<(u32, f32)>>, DeviceError>;
    /// A routing of choices that were made elsewhere, among `experts`: any number per token, also none, each token's
    /// by ascending id.
    fn routing_from_host(&self, choices: &[Vec<(u32, f32)>], experts: usize) -> Self::Routing;
    /// Adds to `counts[expert]` how many tokens chose it. Exact while no count is above 2^24.
    ///
    /// # Shapes
    /// `counts [1, experts]`
    ///
    /// # Errors
    /// Whatever the device met since the last call: this default goes through host memory.
    fn count_choices(&self, routing: &Self::Routing, counts: &mut Self::Tensor) -> Result<(), DeviceError> {
        let mut sums = self.download(counts)?;
        for (expert, _) in self.routing_to_host(routing)?.into_iter().flatten() {
            sums[expert as usize] += 1.0;
        }
        *counts = self.upload(&sums, 1, sums.len());
        Ok(())
    }
    /// The pairs whose expert is in `experts`: sorted by expert, then by token. A device that would have to wait to know how
    /// many there are may take more for `pairs` in what follows: rows behind the last pair have unspecified content.
    fn assign(&self, routing: &Self::Routing, experts: Range<usize>) -> Self::Assignment;
    /// A linear layer per expert on the tokens that chose it. `weights[e]` belongs to expert `experts.start + e`
    /// of the assignment.
    ///
    /// # Shapes
    /// `x [t, k]`, `weights[e] [n, k]` → `[pairs, n]`; without weights `n` is 0
    fn grouped_linear(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
    ) -> Self::Tensor;
    /// The same of gate and up: [`Device::grouped_linear`], then [`Device::gated`], with the bits of the two one by one.
    ///
    /// # Shapes
    /// `x [tokens, k]`, weights `[2 f, k]`, first the gates → `[pairs, f]`
    fn grouped_linear_gated(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
        activation: Activation,
    ) -> Self::Tensor {
        self.gated(&self.grouped_linear(x, assignment, weights), activation)
    }
    /// [`Device::linear_tree`] per expert on rows that are pairs already.
    ///
    /// # Shapes
    /// `x [pairs, k]` → `[nodes · pairs, n]`
    fn grouped_linear_tree(
        &self,
        x: &Self::Tensor,
        assignment: &Self::Assignment,
        weights: &[Self::Weight],
        program: &Program,
    ) -> Self::Tensor;
    /// The program's nodes of the tree over expert ids: item `i` is `weight · output` of expert `experts.start + i`
    /// where a token chose it, and −0 (which adds nothing) where it did not.
    ///
    /// # Shapes
    /// `y [pairs, n]` → `[nodes · t, n]`
    fn combine(&self, y: &Self::Tensor, assignment: &Self::Assignment, program: &Program) -> Self::Tensor;

    // ---- logits ----

    /// Changes logits, in the order given.
    fn edit_logits(&self, logits: &mut Self::Tensor, edits: &[LogitEdit]);
    /// The largest logit of each row (`if a > b`, from −∞). Where it is a zero, its sign is unspecified.
    ///
    /// # Errors
    /// Whatever the device met since the last call; also by the next five.
    fn row_max(&self, logits: &Self::Tensor) -> Result<Vec<f32>, DeviceError>;
    /// Sums of `exp(x − max)` over the nodes of a tree whose items are panels of 16 columns (item `i` is panel `i` of
    /// these logits; the last may be short, its missing columns are +0), each panel summed by halves.
    ///
    /// # Shapes
    /// `logits [t, n]`, `max [t]` → `[t · nodes]`, row-major
    fn exp_sums(
        &self,
        logits: &Self::Tensor,
        max: &[f32],
        program: &Program,
    ) -> Result<Vec<f32>, DeviceError>;
    /// The `k` largest of each row (all, if there are fewer) as (logit, column), by logit descending, then column
    /// ascending (+0 and −0 are equal). Starts behind `skip` of them.
    fn top_k(
        &self,
        logits: &Self::Tensor,
        skip: usize,
        k: usize,
    ) -> Result<Vec<Vec<(f32, u32)>>, DeviceError>;
    /// What choosing a token asks of each row, for a device that answers it with one read: the bits are those of
    /// [`Device::row_max`], [`Device::exp_sums`] relative to it (to 0 where it is −∞) and [`Device::top_k`], one by one.
    ///
    /// # Errors
    /// Whatever the device met since the last call.
    fn survey(&self, logits: &Self::Tensor, program: &Program, k: usize) -> Result<Survey, DeviceError> {
        let max = self.row_max(logits)?;
        let relative_to: Vec<f32> = max.iter().map(|&max| Survey::base(max)).collect();
        let sums = self.exp_sums(logits, &relative_to, program)?;
        Ok(Survey { sums, top: self.top_k(logits, 0, k)?, max })
    }
    /// Single logits, by (row, column).
    fn pick(&self, logits: &Self::Tensor, at: &[(usize, usize)]) -> Result<Vec<f32>, DeviceError>;
    /// How many of each row come before a (logit, column) in the order of [`Device::top_k`]. The column may be any,
    /// also one beyond the last.
    ///
    /// # Shapes
    /// `logits [t, n]`, `places [t]` → `[t]`
    fn count_before(&self, logits: &Self::Tensor, places: &[(f32, usize)]) -> Result<Vec<u32>, DeviceError>;

    // ---- where time and memory go ----

    /// Opens a part of a step: from here on, time and work count for it. Parts nest.
    fn enter(&self, _part: Part) {}
    /// Closes the part that was opened last.
    fn leave(&self) {}
    /// A part of a step.
    fn span<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        self.enter(part);
        let result = work();
        self.leave();
        result
    }
    /// Says of the part that is open what ranks exchanged in it.
    fn exchanged(&self, _exchanged: Exchanged) {}
    /// How long parts took since the last call; nothing from a device that doesn't keep it.
    fn take_part_times(&self) -> PartTimes {
        PartTimes::default()
    }
    /// Begins to record every part and operation.
    fn record(&self) {}
    /// Whether the part that is open is recorded: there is a limit, from which on no step is.
    fn is_recording(&self) -> bool {
        false
    }
    /// Stops that: what was recorded.
    fn take_timeline(&self) -> Timeline {
        Timeline::default()
    }
    /// What it needed besides weights and KV caches; nothing from a device that doesn't know.
    fn memory(&self) -> DeviceMemory {
        DeviceMemory::default()
    }
}

/// Memory of a device besides weights and KV caches: the most that was in use at a time, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Of matrices of activations.
    pub activations: u64,
    /// Of what operations need for themselves.
    pub scratch: u64,
    /// What nobody has of a memory of the device's own; `None` where it is the host's.
    pub free: Option<u64>,
    /// All of that memory, whoever has it.
    pub total: Option<u64>,
    /// Ranks of this host that share it, this one among them; 0 where it is the host's.
    pub ranks: usize,
}

/// A device whose tensors are host memory, for collectives that reduce on the host.
pub trait HostDevice: Device {
    /// A matrix's elements.
    fn as_slice<'a>(&self, x: &'a Self::Tensor) -> &'a [f32];
    /// A matrix's elements, to be written.
    fn as_mut_slice<'a>(&self, x: &'a mut Self::Tensor) -> &'a mut [f32];
    /// Calls `work(range)` for ranges that together are `0..items`, each at least `grain` long but the last, on the
    /// threads of this device, and returns when all are done.
    fn parallel(&self, items: usize, grain: usize, work: &(dyn Fn(Range<usize>) + Sync));
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluErf => "gelu",
            Activation::Relu => "relu",
        })
    }
}
