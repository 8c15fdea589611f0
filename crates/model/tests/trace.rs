//! What the forward pass does, op by op, for every architecture: rank 0 of 2, three tokens.

mod common;

use std::rc::Rc;

use checkpoint::WeightSource;
use collective::ShapeGroup;
use model::{Decoder, KvCache, Layout, Loader, Rank, Stage, TpPlan};
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
    let loader = Loader::new(&*dev, &source, &layout, 0, None, &|_| Ok(()));
    let decoder = Decoder::load(&loader, &stage).unwrap();
    let noted = dev.clone();
    let group = ShapeGroup::new(0, 2, move |line| noted.note(line.to_owned()));
    let rank = Rank::new(&*dev, &group);
    let mut kv = KvCache::new(&*dev, &layout, &stage, 0, 1, DType::BF16);
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
fn every_layer_ends_in_exactly_two_all_reduces() {
    for name in ARCHITECTURES {
        let layers = common::config(name).unwrap().num_layers();
        let count = trace(name).lines().filter(|line| line.starts_with("all_reduce")).count();
        assert_eq!(count, 2 * layers, "{name}");
    }
}
