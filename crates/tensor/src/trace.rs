//! What a forward pass does, as text.

use std::cell::RefCell;
use std::fmt;

use crate::OpCost;
use crate::shapes::{Recorder, Shapes};

/// A device that computes nothing and writes down one line per operation.
///
/// Memory operations (`upload`, `alloc`, `pack`, `alloc_kv`, `begin`) leave no line, so loading a model does not.
pub type Trace = Shapes<TraceLog>;

/// The lines of a [`Trace`].
#[derive(Debug, Default)]
pub struct TraceLog(RefCell<Vec<String>>);

impl Recorder for TraceLog {
    const NAME: &'static str = "trace";

    fn record(&self, op: &'static str, _cost: OpCost, detail: fmt::Arguments<'_>) {
        self.0.borrow_mut().push(format!("{op} {detail}"));
    }
}

impl Trace {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line for something that is not an operation of a device, a collective for example.
    pub fn note(&self, line: String) {
        self.recorder().0.borrow_mut().push(line);
    }

    /// The lines since the last call.
    pub fn take(&self) -> Vec<String> {
        self.recorder().0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::step;
    use crate::*;

    const ATTENTION: AttentionSpec = AttentionSpec {
        num_heads: 3,
        num_kv_heads: 2,
        group: 2,
        first_in_group: 1,
        head_dim: 16,
        scale: 0.25,
        softcap: Some(50.0),
        window: Some(8),
    };

    fn weight<D: Device>(dev: &D, n: usize, k: usize) -> D::Weight {
        let matrix = ReferenceTensor::from_fn(n, k, |row, col| ((row * 7 + col * 3) % 11) as f32 - 5.0);
        dev.pack(&matrix, DType::BF16.into())
    }

    fn ones<D: Device>(dev: &D, cols: usize) -> D::Tensor {
        dev.upload(&vec![1.0; cols], 1, cols)
    }

    /// A bit of everything. Returns the shapes of all results.
    fn forward<D: Device>(dev: &D) -> Vec<[usize; 2]> {
        let mut shapes = Vec::new();
        let mut of = |x: D::Tensor| {
            shapes.push(dev.shape(&x));
            x
        };
        let norm = NormSpec { kind: NormKind::Rms { weight_offset: 0.0 }, eps: 1e-6 };
        let layer = NormSpec { kind: NormKind::Layer, eps: 1e-6 };
        let from_one = NormSpec { kind: NormKind::Rms { weight_offset: 1.0 }, eps: 1e-6 };
        let step = dev.begin(&step(&[[0, 2], [0, 1]]));

        let mut x = of(dev.embed(&weight(dev, 96, 64), &[5, 1, 95]));
        let normed = of(dev.norm(&x, &ones(dev, 64), None, norm));
        let mut qkv = of(dev.linear(&normed, &weight(dev, 112, 64), Some(&ones(dev, 112))));
        let table = of(dev.rope_table(&step, &RopeSpec { inv_freq: vec![1.0, 0.5] }));
        dev.head_norm(&mut qkv, ATTENTION.k(), &ones(dev, 16), from_one);
        dev.rope(&mut qkv, ATTENTION.q(), &table);
        let of_heads = [ones(dev, 16), ones(dev, 16)];
        let heads = [(ATTENTION.q(), &of_heads[0]), (ATTENTION.k(), &of_heads[1])];
        dev.head_norm_rope(&mut qkv, heads, norm, &table);
        let mut kv = dev.alloc_kv(KvSpec {
            blocks: 4,
            share: KvShare::WHOLE,
            num_kv_heads: 2,
            head_dim: 16,
            dtype: DType::F16.into(),
        });
        dev.store_kv(&mut kv, &qkv, &step, &ATTENTION);
        dev.copy_kv(&mut kv, &[(0, 2), (1, 3)]);
        let o = of(dev.attention(&qkv, &kv, &step, &ATTENTION));
        let q = of(dev.gather_cols(&qkv, 0..48));
        let parts = of(dev.attention_segments(&q, &kv, &step, &ATTENTION, 1..3));
        let mut merged = of(dev.alloc(3, 48));
        dev.merge_segments(&parts, 1, &step, &ATTENTION, 1..3, &mut merged);
        let o_proj = ReductionTree::over_heads(6, 16).program(2..5);
        let nodes = of(dev.linear_tree(&o, &weight(dev, 64, 48), &o_proj));
        let sum = of(dev.gather_rows(&nodes, &[0, 1, 2]));
        dev.add(&mut x, &sum);
        let (weight_of, bias_of) = (ones(dev, 64), ones(dev, 64));
        let row_norm = |spec| RowNorm { weight: &weight_of, bias: None, spec };
        of(dev.add_norm(&mut x, &sum, None, row_norm(norm)));
        let with_bias = RowNorm { bias: Some(&bias_of), ..row_norm(layer) };
        of(dev.add_norm(&mut x, &sum, Some(row_norm(from_one)), with_bias));

        let normed = of(dev.norm(&x, &ones(dev, 64), Some(&ones(dev, 64)), layer));
        let router = of(dev.linear(&normed, &weight(dev, 8, 64), None));
        let routing = dev.route(&router, RouterSpec { top_k: 2, normalize: true });
        let routing = dev.routing_from_host(&dev.routing_to_host(&routing).unwrap(), 8);
        let assignment = dev.assign(&routing, 0..8);
        let weights = |n, k| -> Vec<D::Weight> { (0..8).map(|_| weight(dev, n, k)).collect() };
        let y = of(dev.grouped_linear(&normed, &assignment, &weights(96, 64)));
        let y = of(dev.gated(&y, Activation::Silu));
        let granules = ReductionTree::over_granules(48, 8).program(0..2);
        let y = of(dev.grouped_linear_tree(&y, &assignment, &weights(64, 48), &granules));
        let mut y = of(dev.combine(&y, &assignment, &ReductionTree::over_ids(8).program(0..8)));
        dev.activate(&mut y, Activation::GeluTanh);
        dev.scale(&mut y, 0.5);

        let y = of(dev.gather_cols(&y, 8..64));
        let mut logits = of(dev.linear(&y, &weight(dev, 40, 56), None));
        dev.softcap(&mut logits, 30.0);
        dev.edit_logits(
            &mut logits,
            &[LogitEdit::Divide { row: 2, by: 0.7 }, LogitEdit::Allow { row: 1, words: vec![5] }],
        );
        let max = dev.row_max(&logits).unwrap();
        let sums = dev.exp_sums(&logits, &max, &ReductionTree::over_ids(3).program(0..3)).unwrap();
        let top: usize = dev.top_k(&logits, 1, 4).unwrap().iter().map(Vec::len).sum();
        let picked = dev.pick(&logits, &[(2, 39)]).unwrap();
        shapes.push([sums.len(), top]);
        let before = dev.count_before(&logits, &[(0.0, 39); 3]).unwrap();
        shapes.push([before.len(), before.len()]);
        shapes.push([picked.len(), dev.download(&logits).unwrap().len()]);
        shapes
    }

    #[test]
    fn a_trace_is_one_line_per_operation() {
        let trace = Trace::new();
        forward(&trace);
        trace.note("all_reduce [3, 64]".into());
        insta::assert_snapshot!(trace.take().join("\n"), @r"
        embed bf16 [96, 64] -> [3, 64]
        norm rms [3, 64]
        linear [3, 64] x bf16 [112, 64] + bias -> [3, 112]
        rope_table 2 pairs -> [3, 4]
        head_norm rms(1 + w) 2 heads of 16 from column 48 of [3, 112]
        rope 3 heads of 16 from column 0 of [3, 112], 2 pairs
        head_norm_rope rms 3 heads of 16 from column 0, 2 heads of 16 from column 48 of [3, 112], 2 pairs
        store_kv 3 rows, 2 heads of 16, f16
        copy_kv 2 blocks, 2 heads of 16, f16
        attention heads 3/2 of 16, first in group 1 of 2, window 8, softcap 50 -> [3, 48]
        gather_cols [3, 112], columns 0..48 -> [3, 48]
        attention_segments heads 3/2 of 16, first in group 1 of 2, window 8, softcap 50, owner 0 of 1, rows 1..3 -> [6, 18]
        merge_segments [6, 18] of 1 owners -> rows 1..3 of [3, 48]
        linear_tree [3, 48] x bf16 [64, 48], 3 nodes -> [9, 64]
        gather_rows [9, 64] -> [3, 64]
        add [3, 64] + [3, 64]
        add_norm [3, 64] + [3, 64], rms
        add_norm [3, 64] + rms(1 + w) [3, 64], layer + bias
        norm layer [3, 64] + bias
        linear [3, 64] x bf16 [8, 64] -> [3, 8]
        route [3, 8], top 2, normalized
        routing_to_host 3 tokens, 6 pairs
        routing_from_host 3 tokens, 6 pairs, 8 experts
        assign experts 0..8 of 8 -> 6 pairs
        grouped_linear [3, 64] x 8 experts bf16 [96, 64] -> [6, 96]
        gated silu [6, 96] -> [6, 48]
        grouped_linear_tree [6, 48] x 8 experts bf16 [64, 48], 1 node -> [6, 64]
        combine [6, 64], 1 node -> [3, 64]
        activate gelu_tanh [3, 64]
        scale [3, 64] by 0.5
        gather_cols [3, 64], columns 8..64 -> [3, 56]
        linear [3, 56] x bf16 [40, 56] -> [3, 40]
        softcap [3, 40] at 30
        edit_logits [3, 40], edits 2
        row_max [3, 40]
        exp_sums [3, 40], 1 node
        top_k 4 of [3, 40], behind 1
        pick 1 of [3, 40]
        count_before [3, 40]
        download [3, 40]
        all_reduce [3, 64]
        ");
        assert!(trace.take().is_empty());
    }

    #[test]
    fn shapes_are_those_of_the_reference() {
        let expected = forward(&Reference);
        assert_eq!(forward(&Trace::new()), expected);
        assert_eq!(forward(&Cost::new()), expected);
    }

    #[test]
    #[should_panic(expected = "linear: inputs of x and of the weight: 63, expected 64")]
    fn a_wrong_shape_is_a_panic_that_says_which() {
        let trace = Trace::new();
        trace.linear(&trace.alloc(3, 63), &weight(&trace, 96, 64), None);
    }

    #[test]
    #[should_panic(expected = "attention: the last query head reads KV head 1 of 1")]
    fn query_heads_need_their_kv_heads() {
        let trace = Trace::new();
        let spec = AttentionSpec { num_kv_heads: 1, ..ATTENTION };
        let kv = trace.alloc_kv(KvSpec {
            blocks: 1,
            share: KvShare::WHOLE,
            num_kv_heads: 1,
            head_dim: 16,
            dtype: DType::F32.into(),
        });
        trace.attention(&trace.alloc(1, spec.qkv_cols()), &kv, &trace.begin(&step(&[[0, 1]])), &spec);
    }
}
