//! Every operation of a forward pass is in a part of it that has a name, for every architecture and split.

mod common;

use checkpoint::WeightSource;
use collective::ShapeGroup;
use model::{Decoder, KeptAs, KvCache, Layout, Loader, ModelConfig, Rank, Stage, TpPlan};
use tensor::{
    Cost, DType, Device, OpCost, Part, PartCost, PartCosts, Recorder, SequenceSpan, Shapes, StepMeta,
};

/// Rank 0 of a model over so many ranks, and three tokens.
fn run<R: Recorder>(dev: &Shapes<R>, config: ModelConfig, ranks: usize, sequence_parallel: bool) {
    let mut layout = Layout::new(config, &vec![1.0; ranks], &TpPlan::auto()).unwrap();
    layout.sequence_parallel = sequence_parallel;
    let source = WeightSource::Meta { dtype: DType::BF16 };
    let stage = Stage::whole(&layout.config);
    let loader = Loader::new(dev, &source, &layout, 0, KeptAs::default(), &|_| Ok(()));
    let decoder = Decoder::load(&loader, &stage).unwrap();
    let group = ShapeGroup::new(0, ranks, |_| {});
    let mut kv = KvCache::new(dev, &layout, &stage, 0, 1, DType::BF16.into());
    let meta = StepMeta {
        tokens: vec![1, 2, 3],
        sequences: vec![SequenceSpan { rows: 0..3, start: 0, block_table: vec![0] }],
        logit_rows: vec![2],
    };
    let hidden = decoder.forward(Rank::new(dev, &group), &meta, &mut kv).unwrap();
    decoder.logits(dev, &hidden);
}

fn parts(config: ModelConfig, ranks: usize, sequence_parallel: bool) -> Vec<PartCost> {
    let dev = PartCosts::new();
    run(&dev, config, ranks, sequence_parallel);
    assert_eq!(dev.outside(), OpCost::default(), "operations in no part");
    dev.take()
}

#[test]
fn every_operation_is_in_a_part_and_all_parts_are_the_whole() {
    for name in common::all() {
        let Ok(config) = common::config(&name) else { continue };
        for (ranks, sequence_parallel) in [(1, false), (2, false), (2, true)] {
            let of = |part: Part| part != Part::Layer && part != Part::Step;
            let parts = parts(config.clone(), ranks, sequence_parallel);
            let mut sum = OpCost::default();
            for part in &parts {
                assert!(
                    of(part.part) || part.ops.is_empty(),
                    "{name}: {} is in no part of its own",
                    part.ops
                );
                sum += part.cost;
            }
            let whole = Cost::new();
            run(&whole, config.clone(), ranks, sequence_parallel);
            let whole = whole.report().total();
            assert_eq!((sum.calls, sum.flops), (whole.calls, whole.flops), "{name} {ranks}");
            assert_eq!(
                (sum.weight_bytes, sum.kv_bytes),
                (whole.weight_bytes, whole.kv_bytes),
                "{name} {ranks}"
            );
            // What goes to other ranks is counted besides.
            assert!(sum.activation_bytes >= whole.activation_bytes, "{name} {ranks}");
        }
    }
}

#[test]
fn a_layer_is_what_the_paper_says() {
    let parts = parts(common::config("llama").unwrap(), 2, false);
    let names: Vec<&str> = parts.iter().map(|part| part.part.name()).collect();
    assert_eq!(
        names.join(" "),
        "embedding exchange attention \
         layer norm qkv attention output all-reduce norm ffn all-reduce \
         layer norm qkv attention output all-reduce norm ffn all-reduce \
         norm head norm head"
    );
    let sums: Vec<&str> = parts.iter().filter(|p| p.part == Part::Norm).map(|p| p.ops.as_str()).collect();
    assert_eq!(
        sums,
        [
            "norm rms [3, 32]",
            "add_norm [3, 32] + [3, 32], rms",
            "add_norm [3, 32] + [3, 32], rms",
            "add_norm [3, 32] + [3, 32], rms",
            "add [3, 32] + [3, 32]",
            "norm rms [1, 32]"
        ]
    );
    let qkv = parts.iter().find(|part| part.part == Part::Qkv).unwrap();
    assert!(qkv.ops.starts_with("linear [3, 32] x bf16"), "{}", qkv.ops);
}

#[test]
fn parts_close_in_the_order_in_which_they_were_opened_last() {
    let dev = PartCosts::new();
    let result = dev.span(Part::Ffn, || dev.span(Part::AllReduce, || 7));
    assert_eq!(result, 7);
    let parts: Vec<Part> = dev.take().iter().map(|part| part.part).collect();
    assert_eq!(parts, [Part::Ffn, Part::AllReduce]);
}
