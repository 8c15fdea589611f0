//! What a forward pass costs, without running it.
//!
//! The rules by which [`Cost`] counts:
//! - A fused multiply-add is two FLOPs; another operation on an element is one; a function of an element (`exp`,
//!   an activation) is ten; an RMS norm is four per element, a LayerNorm seven.
//! - A weight is read once per operation, in panels of 16 outputs, of which the last may be padding. An
//!   embedding reads only the rows that it is asked for.
//! - The keys and values that any row of a sequence sees are read once per operation and sequence: rows of one
//!   chunk share them. FLOPs are counted for every row and every position that it sees.
//! - The `top_k` experts of the tokens are spread evenly: of `p` pairs in all, the experts `a..b` of `e` have
//!   `⌊b·p/e⌋ − ⌊a·p/e⌋`, and so many of their weights are read, at most all.
//! - Every f32 matrix that is read or written, also a bias or a norm's weight, counts as activation bytes. What a
//!   real device keeps in registers or caches between operations is not known here.
//! - Memory operations (`upload`, `alloc`, `pack`, `alloc_kv`, `begin`) count nothing, so loading a model does not.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use crate::shapes::{Recorder, Shapes};

/// A device that computes nothing and counts what a real one would have to do.
pub type Cost = Shapes<CostCounter>;

/// The counts of a [`Cost`].
#[derive(Debug, Default)]
pub struct CostCounter(RefCell<BTreeMap<&'static str, OpCost>>);

/// What one or several operations cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCost {
    /// How many operations.
    pub calls: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes of weights read.
    pub weight_bytes: u64,
    /// Bytes of keys and values read and written.
    pub kv_bytes: u64,
    /// Bytes of activations read and written.
    pub activation_bytes: u64,
}

impl OpCost {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.activation_bytes
    }
}

impl AddAssign for OpCost {
    fn add_assign(&mut self, other: OpCost) {
        self.calls += other.calls;
        self.flops += other.flops;
        self.weight_bytes += other.weight_bytes;
        self.kv_bytes += other.kv_bytes;
        self.activation_bytes += other.activation_bytes;
    }
}

/// Counts by kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CostReport {
    /// By the operation's name in [`crate::Device`].
    pub ops: BTreeMap<&'static str, OpCost>,
}

impl CostReport {
    /// All operations together.
    pub fn total(&self) -> OpCost {
        let mut total = OpCost::default();
        self.ops.values().for_each(|&op| total += op);
        total
    }
}

impl fmt::Display for CostReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:20} {:>7} {:>18} {:>16} {:>16} {:>16}",
            "", "calls", "FLOPs", "weight B", "KV B", "activation B"
        )?;
        let total = self.total();
        for (name, op) in self.ops.iter().chain([(&"total", &total)]) {
            let OpCost { calls, flops, weight_bytes, kv_bytes, activation_bytes } = op;
            writeln!(
                f,
                "{name:20} {calls:7} {flops:18} {weight_bytes:16} {kv_bytes:16} {activation_bytes:16}"
            )?;
        }
        Ok(())
    }
}

impl Recorder for CostCounter {
    const NAME: &'static str = "cost";

    fn record(&self, op: &'static str, cost: OpCost, _detail: fmt::Arguments<'_>) {
        *self.0.borrow_mut().entry(op).or_default() += cost;
    }
}

impl Cost {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counts so far.
    pub fn report(&self) -> CostReport {
        CostReport { ops: self.recorder().0.borrow().clone() }
    }

    /// Starts again from nothing.
    pub fn reset(&self) {
        self.recorder().0.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::step;
    use crate::{
        AttentionSpec, DType, Device, HeadSpan, KvShare, KvSpec, MatrixSource, NormKind, NormSpec,
        ReductionTree, RouterSpec, RowNorm,
    };
    use std::ops::Range;

    /// A weight that must not be read.
    struct Unread([usize; 2]);

    impl MatrixSource for Unread {
        fn rows(&self) -> usize {
            self.0[0]
        }
        fn cols(&self) -> usize {
            self.0[1]
        }
        fn read(&self, _: usize, _: Range<usize>, _: &mut [f32]) {
            panic!("no data is needed to count");
        }
    }

    fn only(cost: &Cost) -> OpCost {
        let report = cost.report();
        assert_eq!(report.ops.len(), 1);
        cost.reset();
        assert_eq!(cost.report(), CostReport::default());
        report.total()
    }

    #[test]
    fn linear_layers_read_each_weight_once() {
        let cost = Cost::new();
        let x = cost.alloc(7, 64);
        let w = cost.pack(&Unread([20, 64]), DType::BF16.into());
        cost.linear(&x, &w, None);
        let counted = only(&cost);
        assert_eq!((counted.calls, counted.flops, counted.weight_bytes), (1, 2 * 7 * 20 * 64, 32 * 64 * 2));
        assert_eq!((counted.kv_bytes, counted.activation_bytes), (0, 4 * 7 * (64 + 20)));
        cost.embed(&w, &[3, 1, 3]);
        assert_eq!(only(&cost).weight_bytes, 3 * 64 * 2);
    }

    #[test]
    fn a_fused_operation_does_the_arithmetic_of_its_parts_and_moves_less() {
        let cost = Cost::new();
        let spec = NormSpec { kind: NormKind::Rms { weight_offset: 0.0 }, eps: 1e-6 };
        let counted = |work: &dyn Fn()| {
            work();
            let total = cost.report().total();
            cost.reset();
            (total.flops, total.activation_bytes)
        };
        let (x, weight) = (cost.alloc(7, 64), cost.alloc(1, 64));
        let norm = RowNorm { weight: &weight, bias: None, spec };
        for post in [None, Some(norm)] {
            let apart = counted(&|| {
                let y = post.map_or(x, |norm| cost.norm(&x, norm.weight, None, spec));
                cost.add(&mut { x }, &y);
                cost.norm(&x, &weight, None, spec);
            });
            let fused = counted(&|| _ = cost.add_norm(&mut { x }, &x, post, norm));
            let spared = if post.is_some() { 3 } else { 1 };
            assert_eq!(fused, (apart.0, apart.1 - spared * 4 * 7 * 64));
        }

        let (weight, table) = (cost.alloc(1, 16), cost.alloc(7, 8));
        let [q, k] = [(0, 3), (48, 1)].map(|(first_col, heads)| HeadSpan { first_col, heads, head_dim: 16 });
        let apart = counted(&|| {
            [q, k].into_iter().for_each(|span| cost.head_norm(&mut { x }, span, &weight, spec));
            cost.rope(&mut { x }, HeadSpan { heads: 4, ..q }, &table);
        });
        let fused = counted(&|| cost.head_norm_rope(&mut { x }, [(q, &weight), (k, &weight)], spec, &table));
        assert_eq!(fused, (apart.0, apart.1 - 4 * 7 * 4 * 16));
    }

    #[test]
    fn attention_counts_what_each_row_sees() {
        let cost = Cost::new();
        let spec = AttentionSpec {
            num_heads: 4,
            num_kv_heads: 2,
            group: 2,
            first_in_group: 0,
            head_dim: 8,
            scale: 1.0,
            softcap: None,
            window: None,
        };
        let kv = cost.alloc_kv(KvSpec {
            blocks: 20,
            share: KvShare::WHOLE,
            num_kv_heads: 2,
            head_dim: 8,
            dtype: DType::F16.into(),
        });
        let step = cost.begin(&step(&[[100, 1], [10, 3]]));
        let qkv = cost.alloc(4, spec.qkv_cols());
        cost.attention(&qkv, &kv, &step, &spec);
        let counted = only(&cost);
        assert_eq!(counted.flops, (101 + 11 + 12 + 13) * 4 * (4 * 8 + 10));
        assert_eq!(counted.kv_bytes, (101 + 13) * 2 * 2 * 8 * 2);
        cost.attention(&qkv, &kv, &step, &AttentionSpec { window: Some(8), ..spec });
        let counted = only(&cost);
        assert_eq!(counted.flops, 4 * 8 * 4 * (4 * 8 + 10));
        assert_eq!(counted.kv_bytes, (8 + 10) * 2 * 2 * 8 * 2);
    }

    #[test]
    fn owners_of_a_shared_cache_do_together_what_one_would() {
        let cost = Cost::new();
        let spec = AttentionSpec {
            num_heads: 4,
            num_kv_heads: 1,
            group: 4,
            first_in_group: 0,
            head_dim: 8,
            scale: 1.0,
            softcap: None,
            window: Some(1500),
        };
        let mut step = step(&[[3000, 2], [10, 3]]);
        let (even, odd): (Vec<u32>, Vec<u32>) = (0..400).partition(|block| block % 2 == 0);
        step.sequences[0].block_table = [&even[..64], &odd[..64], &even[64..188 - 64]].concat();
        step.sequences[1].block_table = vec![399];
        let step = cost.begin(&step);
        let whole = KvSpec {
            blocks: 400,
            share: KvShare::WHOLE,
            num_kv_heads: 1,
            head_dim: 8,
            dtype: DType::F16.into(),
        };
        cost.attention(&cost.alloc(5, spec.qkv_cols()), &whole, &step, &spec);
        let one = only(&cost);
        let (mut flops, mut kv_bytes) = (0, 0);
        for owner in 0..2 {
            let kv = KvSpec { blocks: 200, share: KvShare { owners: 2, owner }, ..whole };
            let part = cost.attention_segments(&cost.alloc(5, 4 * 8), &kv, &step, &spec, 0..5);
            assert_eq!(cost.shape(&part), [4 * [2, 2 + 3][owner], 2 + 8]);
            let counted = only(&cost);
            flops += counted.flops;
            kv_bytes += counted.kv_bytes;
        }
        assert_eq!((flops, kv_bytes), (one.flops, one.kv_bytes));
    }

    #[test]
    fn only_the_experts_that_tokens_chose_are_read() {
        let cost = Cost::new();
        let weights =
            |n| -> Vec<_> { (0..n).map(|_| cost.pack(&Unread([16, 8]), DType::F32.into())).collect() };
        let pairs_and_experts = |tokens, experts: Range<usize>| {
            let routing = cost.route(&cost.alloc(tokens, 8), RouterSpec { top_k: 2, normalize: true });
            let assignment = cost.assign(&routing, experts.clone());
            let weights = weights(experts.len());
            cost.reset();
            let y = cost.grouped_linear(&cost.alloc(tokens, 8), &assignment, &weights);
            let read = only(&cost).weight_bytes / (16 * 8 * 4);
            cost.combine(&y, &assignment, &ReductionTree::over_ids(8).program(experts));
            cost.reset();
            (cost.shape(&y)[0], read)
        };
        assert_eq!(pairs_and_experts(1, 0..8), (2, 2));
        assert_eq!(pairs_and_experts(1, 0..4), (1, 1));
        assert_eq!(pairs_and_experts(1, 4..8), (1, 1));
        assert_eq!(pairs_and_experts(13, 0..8), (26, 8));
        assert_eq!(pairs_and_experts(13, 0..3).0 + pairs_and_experts(13, 3..8).0, 26);
        assert_eq!(pairs_and_experts(0, 0..8), (0, 0));
    }
}
