//! A KV cache that is split by position gives the bits of one that is not.

use checkpoint::WeightSource;
use collective::{Collective, Group, SharedConfig, SharedGroup, SharedRank, Solo};
use cpu::{CpuConfig, CpuDevice};
use model::{Decoder, KeptAs, KvCache, Layout, Loader, ModelConfig, Rank, Stage, TpPlan};
use scheduler::{Batch, CacheUse, ContextParallel, Request, Scheduler, SchedulerConfig};
use serde_json::{Value, json};
use tensor::{DType, Device, KV_BLOCK, SEGMENT, SequenceSpan, StepMeta};

/// Three segments but for a few positions, so that decode begins a fourth.
const LONG_PROMPT: usize = 3 * SEGMENT - 3;
const TOKENS: usize = 7;

/// A golden model's configuration with some settings changed.
fn config(name: &str, changes: &[(&str, Value)]) -> ModelConfig {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    let mut config = checkpoint::config_file(&dir).unwrap();
    for (key, value) in changes {
        config[key] = value.clone();
    }
    ModelConfig::parse(&config, None).unwrap()
}

/// A model, and how it is split.
struct Plan {
    layout: Layout,
    dtype: DType,
}

impl Plan {
    fn new(config: &ModelConfig, weights: &[f64], size: usize, dtype: DType) -> Plan {
        let layout = Layout::new(config.clone(), weights, &TpPlan::auto()).unwrap();
        Plan { layout: layout.with_context_parallel(size).unwrap(), dtype }
    }

    fn context(&self) -> ContextParallel {
        ContextParallel { ranks: self.layout.context_parallel(), segment_blocks: SEGMENT / KV_BLOCK }
    }

    /// Two long prompts and short ones beside each other, in chunks, then decoded; as the engine would have it.
    fn steps(&self) -> (usize, Vec<StepMeta>) {
        let context = self.context();
        let mut config = SchedulerConfig {
            num_blocks: 0,
            block_size: KV_BLOCK,
            max_num_seqs: 8,
            max_num_batched_tokens: 1000,
            prefix_caching: false,
            context,
        };
        let lengths = [40, LONG_PROMPT, 300, 1500];
        // More than needed: blocks are not all next to each other.
        let needed = lengths.map(|n| context.blocks_that_fit((n + TOKENS).div_ceil(KV_BLOCK)));
        config.num_blocks = needed.iter().sum();
        let mut scheduler = Scheduler::new(config);
        let vocab = self.layout.config.vocab_size as u32;
        for (id, length) in lengths.into_iter().enumerate() {
            let prompt = (0..length as u32).map(|i| (i * i + 7 * i + id as u32) % vocab).collect();
            scheduler
                .add(Request { id: id as u64, prompt, max_tokens: TOKENS, cache: CacheUse::default() })
                .unwrap();
        }
        let (mut steps, mut owners) = (Vec::new(), std::collections::BTreeSet::new());
        while let Some(batch) = scheduler.schedule(config.max_num_batched_tokens) {
            owners.extend(batch.items.iter().flat_map(|item| &item.block_table).map(|&b| context.owner(b)));
            steps.push(meta(&batch));
            let sampled = batch.items.iter().filter(|item| item.samples);
            let token = |id: u64| (id as u32 * 31 + steps.len() as u32) % vocab;
            let outputs: Vec<_> = sampled.map(|item| (item.id, token(item.id), false)).collect();
            scheduler.complete(&batch, &outputs);
        }
        assert_eq!(owners.len(), context.ranks, "every rank of a context group holds something");
        (config.num_blocks, steps)
    }

    /// The hidden states of every row of every step, and the bytes of the rank's cache.
    fn run(
        &self,
        rank: usize,
        group: &dyn Collective<CpuDevice>,
        context: Option<&dyn Collective<CpuDevice>>,
    ) -> (Vec<Vec<u32>>, u64) {
        let dev = CpuDevice::new(CpuConfig { spin: false, ..CpuConfig::default() });
        let source = WeightSource::Random { seed: 5, dtype: self.dtype };
        let stage = Stage::whole(&self.layout.config);
        let loader = Loader::new(&dev, &source, &self.layout, rank, KeptAs::default(), &|_| Ok(()));
        let decoder = Decoder::load(&loader, &stage).unwrap();
        let (blocks, steps) = self.steps();
        let mut kv = KvCache::new(&dev, &self.layout, &stage, rank, blocks, self.dtype.into());
        let rank = Rank { context, ..Rank::new(&dev, group) };
        let hidden = |meta: &StepMeta| {
            let hidden = decoder.forward(rank, meta, &mut kv).unwrap();
            dev.download(&hidden).unwrap().into_iter().map(f32::to_bits).collect()
        };
        (steps.iter().map(hidden).collect(), kv.bytes())
    }

    /// What [`Plan::run`] gives on each rank.
    fn run_all(&self) -> Vec<(Vec<Vec<u32>>, u64)> {
        let (ranks, size) = (self.layout.ranks(), self.layout.context_parallel());
        let group = SharedGroup::new(ranks, SharedConfig::default());
        let of_contexts = (0..ranks / size).flat_map(|_| SharedGroup::new(size, SharedConfig::default()));
        let places: Vec<(SharedRank, SharedRank)> = group.into_iter().zip(of_contexts).collect();
        std::thread::scope(|scope| {
            let run = |(group, context): (SharedRank, SharedRank)| {
                scope.spawn(move || self.run(Group::rank(&group), &group, (size > 1).then_some(&context)))
            };
            let threads: Vec<_> = places.into_iter().map(run).collect();
            threads.into_iter().map(|thread| thread.join().expect("the rank's own error is above")).collect()
        })
    }
}

fn meta(batch: &Batch) -> StepMeta {
    let mut meta = StepMeta::default();
    for item in &batch.items {
        let first = meta.tokens.len();
        meta.tokens.extend(&item.tokens);
        let rows = first..meta.tokens.len();
        meta.sequences.push(SequenceSpan { rows, start: item.start, block_table: item.block_table.clone() });
    }
    meta.logit_rows = (0..meta.num_rows() as u32).collect();
    meta
}

fn has_the_bits_of_one_rank(config: &ModelConfig, dtype: DType, splits: &[(&[f64], usize)]) {
    let one = Plan::new(config, &[1.0], 1, dtype);
    let (expected, _) = one.run(0, &Solo::default(), None);
    for &(weights, size) in splits {
        for (rank, (hidden, _)) in Plan::new(config, weights, size, dtype).run_all().iter().enumerate() {
            let ranks = weights.len();
            assert_eq!(hidden.len(), expected.len(), "steps");
            for (step, (hidden, expected)) in hidden.iter().zip(&expected).enumerate() {
                assert!(hidden == expected, "rank {rank} of {ranks}, context groups of {size}, step {step}");
            }
        }
    }
}

#[test]
fn groups_of_two_and_four_ranks_that_share_a_cache_give_the_bits_of_one_rank() {
    let config = config("llama", &[("num_key_value_heads", json!(2))]);
    has_the_bits_of_one_rank(&config, DType::F32, &[(&[1.0; 4], 2), (&[1.0; 8], 4), (&[1.0; 8], 2)]);
}

#[test]
fn a_shared_cache_and_a_split_residual_stream_give_the_bits_of_one_rank() {
    let config = config("llama", &[("num_key_value_heads", json!(2))]);
    let (expected, _) = Plan::new(&config, &[1.0], 1, DType::F32).run(0, &Solo::default(), None);
    let mut plan = Plan::new(&config, &[1.0; 4], 2, DType::F32);
    plan.layout.sequence_parallel = true;
    for (rank, (hidden, _)) in plan.run_all().iter().enumerate() {
        assert!(*hidden == expected, "rank {rank}");
    }
}

#[test]
fn three_ranks_with_different_numbers_of_query_heads_give_the_bits_of_one_rank() {
    let config =
        config("llama", &[("num_key_value_heads", json!(1)), ("max_position_embeddings", json!(4096))]);
    has_the_bits_of_one_rank(&config, DType::F16, &[(&[1.0, 2.0, 1.0], 3)]);
}

#[test]
fn windows_across_segments_and_soft_caps_give_the_bits_of_one_rank() {
    let config = config("gemma2", &[("sliding_window", json!(1500))]);
    has_the_bits_of_one_rank(&config, DType::BF16, &[(&[1.0; 4], 2)]);
}

#[test]
fn a_rank_keeps_its_share_of_the_cache() {
    let config = config("llama", &[("num_key_value_heads", json!(2))]);
    let bytes = |size| -> Vec<u64> {
        let plan = Plan::new(&config, &[1.0; 8], size, DType::F32);
        let (dev, stage) = (CpuDevice::new(CpuConfig::default()), Stage::whole(&config));
        let cache = |rank| KvCache::new(&dev, &plan.layout, &stage, rank, 256, DType::F32.into()).bytes();
        let per_token = |rank| model::bytes_per_token(&plan.layout, &stage, rank, DType::F32.into());
        let replicated =
            |rank| model::replicated_bytes_per_token(&plan.layout, &stage, rank, DType::F32.into());
        assert!((0..8).all(|rank| cache(rank) == per_token(rank) * 256 * KV_BLOCK as u64));
        assert!((0..8).all(|rank| replicated(rank) == per_token(rank) * size as u64));
        (0..8).map(cache).collect()
    };
    // Keys and values of one head of 8 elements of 4 bytes in 2 layers.
    let whole = 2 * 8 * 4 * 2 * 256 * KV_BLOCK as u64;
    assert_eq!([bytes(1), bytes(2), bytes(4)], [vec![whole; 8], vec![whole / 2; 8], vec![whole / 4; 8]]);
}

#[test]
fn sizes_that_cannot_be_are_refused_with_those_that_can() {
    let refuse = |kv_heads: usize, weights: &[f64], size: usize| {
        let config = config("llama", &[("num_key_value_heads", json!(kv_heads))]);
        let layout = Layout::new(config, weights, &TpPlan::auto()).unwrap();
        layout.with_context_parallel(size).expect_err("refused").to_string()
    };
    assert_eq!(
        refuse(2, &[1.0; 8], 8),
        "decode context parallel size 8: every 8 consecutive ranks must read the same KV heads, which at tensor \
         parallel size 8 of a model with 2 KV heads works for 1, 2, 4"
    );
    assert!(refuse(2, &[1.0; 8], 3).ends_with("works for 1, 2, 4"));
    assert!(refuse(2, &[1.0; 8], 0).ends_with("works for 1, 2, 4"));
    assert!(refuse(8, &[1.0; 4], 2).ends_with("of a model with 8 KV heads works for 1"));
    assert!(refuse(1, &[1.0; 6], 4).ends_with("works for 1, 2, 3, 6"));
    // Of three ranks over two KV heads the middle one reads both.
    assert!(refuse(2, &[1.0; 3], 3).ends_with("works for 1"));
}
