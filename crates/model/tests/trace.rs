//! What the forward pass does, op by op, for every architecture: rank 0 of 2, three tokens.

mod common;

use std::rc::Rc;

use checkpoint::WeightSource;
use collective::ShapeGroup;
use model::{Decoder, KeptAs, KvCache, Layout, Loader, Rank, Stage, TpPlan};
use tensor::{DType, SequenceSpan, StepMeta, Trace};

/// One checkpoint of each architecture.
const ARCHITECTURES: [&str; 10] =
    ["llama", "mistral", "qwen2_sliding", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "qwen3_moe", "opt"];

fn trace(name: &str) -> String {
    let config = common::config(name).unwrap();
    let layout = Layout::new(config, &[1.0, 1.0], &TpPlan::auto()).unwrap();
    let source = WeightSource::Meta { dtype: DType::BF16 };
    let dev = Rc::new(Trace::new());
    let stage = Stage::whole(&layout.config);
    let loader = Loader::new(&*dev, &source, &layout, 0, KeptAs::default(), &|_| Ok(()));
    let decoder = Decoder::load(&loader, &stage).unwrap();
    let noted = dev.clone();
    let group = ShapeGroup::new(0, 2, move |line| noted.note(line.to_owned()));
    let rank = Rank::new(&*dev, &group);
    let mut kv = KvCache::new(&*dev, &layout, &stage, 0, 1, DType::BF16.into());
    dev.take();
    let meta = StepMeta {
        tokens: vec![1, 2, 3],
        sequences: vec![SequenceSpan { rows: 0..3, start: 0, block_table: vec![0] }],
        logit_rows: vec![2],
    };
    let hidden = decoder.forward(rank, &meta, &mut kv).unwrap();
    decoder.logits(&dev, &hidden);
    dev.take().join("\n")
}

#[test]
fn the_forward_pass_of_each_architecture_is_as_recorded() {
    for name in ARCHITECTURES {
        insta::assert_snapshot!(name, trace(name));
    }
}

#[test]
fn a_context_group_gathers_queries_and_exchanges_segments() {
    let layout = Layout::new(common::config("gemma2").unwrap(), &[1.0; 4], &TpPlan::auto()).unwrap();
    let layout = layout.with_context_parallel(2).unwrap();
    let source = WeightSource::Meta { dtype: DType::BF16 };
    let dev = Rc::new(Trace::new());
    let stage = Stage::whole(&layout.config);
    let loader = Loader::new(&*dev, &source, &layout, 3, KeptAs::default(), &|_| Ok(()));
    let decoder = Decoder::load(&loader, &stage).unwrap();
    let (noted, also_noted) = (dev.clone(), dev.clone());
    let group = ShapeGroup::new(3, 4, move |line| noted.note(format!("group: {line}")));
    let context = ShapeGroup::new(1, 2, move |line| also_noted.note(format!("context: {line}")));
    let rank = Rank::new(&*dev, &group).in_context(&context);
    let mut kv = KvCache::new(&*dev, &layout, &stage, 3, 300, DType::BF16.into());
    dev.take();
    // The first and third segment are with rank 0 of the context group, the second is with rank 1.
    let block = |i: u32| if i / 64 == 1 { 2 * i + 1 } else { 2 * i };
    let meta = StepMeta {
        tokens: vec![1, 2],
        sequences: vec![SequenceSpan { rows: 0..2, start: 2050, block_table: (0..129).map(block).collect() }],
        logit_rows: vec![1],
    };
    decoder.forward(rank, &meta, &mut kv).unwrap();
    let lines = dev.take();
    let layers: Vec<&[String]> = lines.split(|line| line.starts_with("store_kv")).collect();
    // A layer with a window of 16 positions, and one without.
    let of = |layer: usize| layers[layer].iter().take_while(|line| !line.starts_with("linear_tree"));
    let lines: Vec<&str> = of(1).chain(of(2)).map(String::as_str).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    gather_cols [2, 32], columns 0..16 -> [2, 16]
    context: all_gather [2, 16] of [4, 16]
    download [4, 16]
    attention_segments heads 4/1 of 8, window 16, softcap 1.5, owner 1 of 2, rows 0..2 -> [8, 10]
    context: all_to_all [8, 10]
    merge_segments [8, 10] of 2 owners -> rows 0..2 of [2, 16]
    gather_cols [2, 32], columns 0..16 -> [2, 16]
    context: all_gather [2, 16] of [4, 16]
    download [4, 16]
    attention_segments heads 4/1 of 8, softcap 1.5, owner 1 of 2, rows 0..2 -> [8, 10]
    context: all_to_all [8, 10]
    merge_segments [12, 10] of 2 owners -> rows 0..2 of [2, 16]
    ");
}

#[test]
fn every_layer_ends_in_exactly_two_all_reduces() {
    for name in ARCHITECTURES {
        let layers = common::config(name).unwrap().num_layers();
        let count = trace(name).lines().filter(|line| line.starts_with("all_reduce")).count();
        assert_eq!(count, 2 * layers, "{name}");
    }
}
