//! The forward pass has the same bits on the device that is slow and obvious.

mod common;

use checkpoint::{Checkpoint, WeightSource};
use collective::Solo;
use common::Golden;
use engine::EngineOptions;
use model::{Decoder, KeptAs, KvCache, Layout, Loader, Rank, Stage, TpPlan};
use tensor::{KV_BLOCK, Reference, SequenceSpan, StepMeta};

#[test]
fn the_reference_device_gives_the_bits_of_the_cpu_on_every_architecture() {
    for golden in Golden::all().into_iter().filter(|g| g.prompt.len() < 500) {
        let ours = golden.engine(&EngineOptions::default()).score(&golden.prompt).unwrap();
        let source = WeightSource::Files(Checkpoint::open(golden.dir()).unwrap());
        let layout = Layout::new(golden.config.clone(), &[1.0], &TpPlan::auto()).unwrap();
        let dev = Reference;
        let stage = Stage::whole(&layout.config);
        let loader = Loader::new(&dev, &source, &layout, 0, KeptAs::default(), &|_| Ok(()));
        let decoder = Decoder::load(&loader, &stage).unwrap();
        let group = Solo::default();
        let rank = Rank::new(&dev, &group);
        let rows = golden.prompt.len() - 1;
        let blocks = rows.div_ceil(KV_BLOCK);
        let mut kv = KvCache::new(&dev, &layout, &stage, 0, blocks, source.dtype().into());
        let meta = StepMeta {
            tokens: golden.prompt[..rows].to_vec(),
            // The blocks lie in memory in another order than in the engine.
            sequences: vec![SequenceSpan {
                rows: 0..rows,
                start: 0,
                block_table: (0..blocks as u32).rev().collect(),
            }],
            logit_rows: (0..rows as u32).collect(),
        };
        let hidden = decoder.forward(rank, &meta, &mut kv).unwrap();
        let logits = decoder.logits(&dev, &hidden);
        let (_, sums) = decoder.head().survey(rank, &logits, 0, true).unwrap();
        let sums = sums.unwrap();
        let at: Vec<(usize, u32)> = golden.prompt[1..].iter().copied().enumerate().collect();
        let picked = decoder.head().pick(rank, &logits, &at).unwrap();
        for (i, (logit, sum)) in picked.iter().zip(&sums).enumerate() {
            let expected = (f64::from(*logit) - sum) as f32;
            let got = ours[i + 1].unwrap();
            assert_eq!(
                got.to_bits(),
                expected.to_bits(),
                "{}: token {}: {got} {expected}",
                golden.name,
                i + 1
            );
        }
    }
}
