//! Mixtures of experts: slices, whole experts on ranks, tokens that travel; the same bits in every mode.

mod common;

use std::time::Duration;

use checkpoint::{Checkpoint, WeightSource};
use collective::{CollectiveStats, Group, ShapeGroup, SharedConfig, SharedGroup};
use model::parallel::{ExpertCounts, ExpertForm, ExpertOptions, ExpertPlacement, expert_bytes, imbalance};
use model::{Decoder, KeptAs, KvCache, Layout, Loader, ModelConfig, Rank, Stage, TpPlan};
use serde_json::json;
use tensor::{Cost, DType, KV_BLOCK, Reference, SequenceSpan, StepMeta};

const MIXTURES: [&str; 6] =
    ["mixtral", "mixtral_old_config", "qwen3_moe", "qwen3_moe_mixed", "qwen3_moe_fused", "qwen3_moe_fp8"];

/// A mixture and a prompt for it.
struct Mixture {
    name: &'static str,
    config: ModelConfig,
    source: WeightSource,
    tokens: Vec<u32>,
}

/// What the ranks of a group have to say after a step.
struct Ran {
    /// Bits of the hidden states, which are the same on every rank.
    hidden: Vec<u32>,
    /// By layer, of all ranks together.
    counts: Vec<(usize, ExpertCounts)>,
    stats: Vec<CollectiveStats>,
}

impl Mixture {
    fn open(name: &'static str) -> Self {
        let golden: serde_json::Value =
            checkpoint::json_file(&common::golden().join(name).join("golden.json")).unwrap();
        let ids = golden["prompt_token_ids"].as_array().unwrap();
        Mixture {
            name,
            config: common::config(name).unwrap(),
            source: WeightSource::Files(Checkpoint::open(&common::golden().join(name)).unwrap()),
            tokens: ids.iter().take(29).map(|id| id.as_u64().unwrap() as u32).collect(),
        }
    }

    fn layout(&self, weights: &[f64], options: &ExpertOptions) -> Layout {
        let layout = Layout::with_experts(self.config.clone(), weights, &TpPlan::auto(), options);
        layout.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Runs the prompt in two steps, of which the second has one token, on threads that share memory.
    fn run(&self, layout: &Layout) -> Ran {
        let config = SharedConfig { deadline: Duration::from_secs(60), ..SharedConfig::default() };
        let group = SharedGroup::new(layout.ranks(), config);
        let ranks: Vec<_> = std::thread::scope(|scope| {
            let run = |group| scope.spawn(move || self.run_rank(layout, group));
            let threads: Vec<_> = group.into_iter().map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut counts = ranks[0].1.clone();
        for (_, others, _) in &ranks[1..] {
            counts.iter_mut().zip(others).for_each(|((_, sum), (_, other))| sum.add(other));
        }
        for (rank, (hidden, ..)) in ranks.iter().enumerate() {
            assert!(*hidden == ranks[0].0, "{}: rank {rank} has other bits than rank 0", self.name);
        }
        Ran { hidden: ranks[0].0.clone(), counts, stats: ranks.into_iter().map(|r| r.2).collect() }
    }

    fn run_rank(
        &self,
        layout: &Layout,
        group: collective::SharedRank,
    ) -> (Vec<u32>, Vec<(usize, ExpertCounts)>, CollectiveStats) {
        let (dev, stage) = (Reference, Stage::whole(&self.config));
        let loader = Loader::new(&dev, &self.source, layout, group.rank(), KeptAs::default(), &|_| Ok(()));
        let decoder = Decoder::load(&loader, &stage).unwrap();
        let blocks = self.tokens.len().div_ceil(KV_BLOCK);
        let mut kv = KvCache::new(&dev, layout, &stage, group.rank(), blocks, DType::F32.into());
        let mut hidden = Vec::new();
        for rows in [0..self.tokens.len() - 1, self.tokens.len() - 1..self.tokens.len()] {
            let meta = StepMeta {
                tokens: self.tokens[rows.clone()].to_vec(),
                sequences: vec![SequenceSpan {
                    rows: 0..rows.len(),
                    start: rows.start,
                    block_table: (0..blocks as u32).collect(),
                }],
                logit_rows: (0..rows.len() as u32).collect(),
            };
            let x = decoder.forward(Rank::new(&dev, &group), &meta, &mut kv).unwrap();
            hidden.extend(x.data.iter().map(|x| x.to_bits()));
        }
        (hidden, decoder.take_expert_counts(&dev).unwrap(), group.stats())
    }

    fn num_experts(&self) -> usize {
        self.config.moe.unwrap().num_experts
    }

    fn sparse_layers(&self) -> usize {
        self.config.layers.iter().filter(|layer| layer.moe).count()
    }
}

fn whole(placement: ExpertPlacement) -> ExpertOptions {
    ExpertOptions { form: Some(ExpertForm::Whole), placement }
}

/// A number that looks like chance.
fn hash(a: usize, b: usize) -> usize {
    let h = ((a as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ b as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (h ^ h >> 32) as usize
}

/// Every way to have experts on so many ranks.
fn modes(mixture: &Mixture, ranks: usize) -> Vec<(String, ExpertOptions)> {
    let (experts, layers) = (mixture.num_experts(), mixture.sparse_layers());
    let any = |layer: usize| (0..experts).map(|e| hash(layer, e) % ranks).collect::<Vec<_>>();
    let counts = |layer: usize| (0..experts).map(|e| (hash(layer, e) % 1000) as u64).collect::<Vec<_>>();
    let placements = [
        ("contiguous", ExpertPlacement::Contiguous),
        ("round-robin", ExpertPlacement::RoundRobin),
        ("any, one list", ExpertPlacement::Given(vec![any(0)])),
        ("any, by layer", ExpertPlacement::Given((0..layers).map(any).collect())),
        ("all on the last rank", ExpertPlacement::Given(vec![vec![ranks - 1; experts]])),
        ("balanced", ExpertPlacement::Balanced((0..layers).map(counts).collect())),
    ];
    let mut modes = vec![
        ("sliced".to_owned(), ExpertOptions { form: Some(ExpertForm::Sliced), ..ExpertOptions::default() }),
        ("automatic".to_owned(), ExpertOptions::default()),
    ];
    for (name, placement) in placements {
        modes.push((format!("{name}, exchanged"), whole(placement.clone())));
        // Not asked for, whole experts are reduced where that moves less.
        if mixture.config.moe.unwrap().top_k > 2 {
            modes.push((name.to_owned(), ExpertOptions { form: None, placement }));
        }
    }
    modes
}

fn assert_same_bits(sequence_parallel: bool) {
    for name in MIXTURES {
        let mixture = Mixture::open(name);
        let alone = mixture.run(&mixture.layout(&[1.0], &ExpertOptions::default()));
        for ranks in 1..=mixture.config.num_heads.min(6) {
            for (mode, options) in modes(&mixture, ranks) {
                let mut layout = mixture.layout(&vec![1.0; ranks], &options);
                layout.sequence_parallel = sequence_parallel;
                let ran = mixture.run(&layout);
                assert!(ran.hidden == alone.hidden, "{name}, {mode} on {ranks} ranks: the bits differ");
                for ((layer, counts), (_, expected)) in ran.counts.iter().zip(&alone.counts) {
                    let what = format!("{name}, {mode} on {ranks} ranks, layer {layer}");
                    assert_eq!(counts.tokens_per_expert, expected.tokens_per_expert, "{what}");
                    assert_eq!(counts.dropped(), 0, "{what}");
                }
            }
        }
    }
}

#[test]
fn experts_give_the_bits_and_counts_of_one_rank_in_every_mode() {
    assert_same_bits(false);
}

#[test]
fn experts_give_the_bits_and_counts_of_one_rank_in_every_mode_of_a_split_stream() {
    assert_same_bits(true);
}

#[test]
fn unequal_ranks_have_unequal_experts_and_the_same_bits() {
    for name in ["mixtral", "qwen3_moe"] {
        let mixture = Mixture::open(name);
        let alone = mixture.run(&mixture.layout(&[1.0], &ExpertOptions::default()));
        let counts = ExpertPlacement::Balanced(vec![vec![7; mixture.num_experts()]]);
        for options in [whole(ExpertPlacement::Contiguous), whole(counts)] {
            let layout = mixture.layout(&[3.0, 1.0, 0.5], &options);
            let of_rank = |rank| layout.own_experts(mixture.config.num_layers() - 1, rank).len();
            assert!(of_rank(0) > of_rank(2), "{name}: {} and {}", of_rank(0), of_rank(2));
            assert!(mixture.run(&layout).hidden == alone.hidden, "{name}: the bits differ");
        }
    }
}

#[test]
fn every_token_is_counted_once_for_each_expert_it_chose() {
    for name in MIXTURES {
        let mixture = Mixture::open(name);
        let ran = mixture.run(&mixture.layout(&[1.0, 1.0], &whole(ExpertPlacement::RoundRobin)));
        assert_eq!(ran.counts.len(), mixture.sparse_layers());
        let pairs = (mixture.tokens.len() * mixture.config.moe.unwrap().top_k) as u64;
        for (_, counts) in &ran.counts {
            assert_eq!(counts.tokens_per_expert.iter().sum::<u64>(), pairs, "{name}");
            assert_eq!(counts.worked, pairs, "{name}");
        }
    }
}

#[test]
fn what_is_counted_as_sent_is_what_the_group_sent() {
    for name in ["mixtral", "qwen3_moe"] {
        let mixture = Mixture::open(name);
        for placement in [ExpertPlacement::Contiguous, ExpertPlacement::RoundRobin] {
            let ran = mixture.run(&mixture.layout(&[1.0; 3], &whole(placement)));
            let counted: u64 = ran.counts.iter().map(|(_, counts)| counts.sent_bytes).sum();
            let sent: u64 = ran.stats.iter().map(|stats| stats.sent_bytes).sum();
            assert_eq!(counted, sent, "{name}");
            assert!(counted > 0);
        }
    }
}

#[test]
fn the_bytes_of_reductions_are_those_that_groups_count() {
    let mixture = Mixture::open("qwen3_moe");
    let (tokens, layers) = (mixture.tokens.len(), mixture.config.num_layers());
    let row = (mixture.config.hidden_size * size_of::<f32>()) as u64;
    for ranks in [2, 3, 4] {
        let reduced = |form| {
            let options = ExpertOptions { form, placement: ExpertPlacement::Contiguous };
            let layout = mixture.layout(&vec![1.0; ranks], &options);
            let stats = mixture.run(&layout).stats;
            let all = stats.iter().map(|stats| stats.all_reduce_bytes).sum::<u64>();
            // Attention's share of it.
            let heads: usize = layout.split.heads.reduce_plan().nodes_of_rank.iter().sum();
            (layout, all - (heads * tokens * layers) as u64 * row)
        };
        // A reduction of so many contributed bytes scatters them, but for each rank's own part, and gathers the rows.
        let moved = |contributed: u64, rows: usize| {
            let others = ranks as u64 - 1;
            contributed * others / ranks as u64 + rows as u64 * row * others
        };
        let pairs = tokens * mixture.config.moe.unwrap().top_k;
        let near = |found: u64, expected: u64| found.abs_diff(expected) <= layers as u64;
        let sum = |layout: &Layout, of: fn(model::parallel::ExpertBytes) -> u64| -> u64 {
            (0..layers).map(|layer| of(expert_bytes(layout, layer, tokens).unwrap())).sum()
        };
        let (layout, contributed) = reduced(Some(ExpertForm::Sliced));
        let expected = moved(contributed, pairs * layers);
        assert!(near(sum(&layout, |b| b.sliced), expected), "sliced on {ranks} ranks");
        let (layout, contributed) = reduced(None);
        assert_eq!(layout.styles.experts, ExpertForm::Whole);
        let expected = moved(contributed, tokens * layers);
        assert!(near(sum(&layout, |b| b.whole_reduced.unwrap()), expected), "whole on {ranks} ranks");
    }
}

#[test]
fn what_an_exchange_is_expected_to_move_is_exact_where_all_experts_are_chosen() {
    let mut mixture = Mixture::open("mixtral");
    let moe = mixture.config.moe.as_mut().unwrap();
    moe.top_k = moe.num_experts;
    for ranks in [4, 2] {
        // Two rows for each rank, and one for the second step.
        mixture.tokens.truncate(2 * ranks + 1);
        let layout = mixture.layout(&vec![1.0; ranks], &whole(ExpertPlacement::RoundRobin));
        let ran = mixture.run(&layout);
        let row = (mixture.config.hidden_size * size_of::<f32>()) as u64;
        let gathered = (ranks - 1) as u64 * row;
        for (layer, counts) in ran.counts {
            let of = |tokens| {
                expert_bytes(&layout, layer, tokens).unwrap().whole_exchanged - gathered * tokens as u64
            };
            let steps = of(2 * ranks) + of(1);
            // The single token of the second step is where it is: on one rank, of which all have as many experts.
            assert!(counts.sent_bytes.abs_diff(steps) <= 2, "{ranks} ranks: {} {steps}", counts.sent_bytes);
        }
    }
}

#[test]
fn every_mode_runs_on_paper_on_every_rank() {
    for name in ["mixtral", "qwen3_moe"] {
        let mixture = Mixture::open(name);
        for ranks in 1..=mixture.config.num_heads.min(6) {
            for ((mode, options), rank) in
                modes(&mixture, ranks).into_iter().flat_map(|m| (0..ranks).map(move |r| (m.clone(), r)))
            {
                let layout = mixture.layout(&vec![1.0; ranks], &options);
                let (dev, source) = (Cost::new(), WeightSource::Meta { dtype: DType::BF16 });
                let stage = Stage::whole(&layout.config);
                let loader = Loader::new(&dev, &source, &layout, rank, KeptAs::default(), &|_| Ok(()));
                let decoder = Decoder::load(&loader, &stage).unwrap();
                // So many that on paper, too, every expert is chosen among the tokens of every rank.
                let rows = ranks * mixture.num_experts();
                let blocks = rows.div_ceil(KV_BLOCK);
                let mut kv = KvCache::new(&dev, &layout, &stage, rank, blocks, DType::BF16.into());
                let meta = StepMeta {
                    tokens: vec![1; rows],
                    sequences: vec![SequenceSpan {
                        rows: 0..rows,
                        start: 0,
                        block_table: (0..blocks as u32).collect(),
                    }],
                    logit_rows: vec![0],
                };
                let group = ShapeGroup::new(rank, ranks, |_| {});
                decoder.forward(Rank::new(&dev, &group), &meta, &mut kv).unwrap();
                let weights = dev.report().ops.get("grouped_linear").map_or(0, |op| op.weight_bytes);
                // A slice may be empty; a rank that has whole experts has work for them.
                let busy = layout.styles.experts == ExpertForm::Whole
                    && !layout.own_experts(mixture.config.num_layers() - 1, rank).is_empty();
                assert!(weights > 0 || !busy, "{name}, {mode}, rank {rank} of {ranks}");
            }
        }
    }
}

#[test]
fn recorded_counts_make_ranks_even() {
    let mixture = Mixture::open("qwen3_moe");
    let ran = mixture.run(&mixture.layout(&[1.0; 3], &whole(ExpertPlacement::Contiguous)));
    let recorded: Vec<&Vec<u64>> = ran.counts.iter().map(|(_, counts)| &counts.tokens_per_expert).collect();
    let balanced = ExpertPlacement::balanced(&json!({ "tokens_per_expert": recorded })).unwrap();
    let uneven = |placement| {
        let layout = mixture.layout(&[1.0; 3], &whole(placement));
        let placement = &layout.split.experts.as_ref().unwrap().placement;
        let of = |(layer, counts): &(usize, ExpertCounts)| {
            imbalance(&placement.tokens_per_rank(*layer, &counts.tokens_per_expert))
        };
        ran.counts.iter().map(of).fold(0.0, f64::max)
    };
    let (before, after) = (uneven(ExpertPlacement::Contiguous), uneven(balanced));
    assert!(after < before, "{before} before, {after} balanced");
    assert!(after < 1.25, "{after}");
}

#[test]
fn experts_that_cant_be_are_refused_with_what_would_work() {
    let refused = |name: &str, ranks: usize, plan: serde_json::Value, options: &ExpertOptions| {
        let plan = TpPlan::parse(&plan).unwrap();
        let config = common::config(name).unwrap();
        let error = Layout::with_experts(config, &vec![1.0; ranks], &plan, options).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    let given = |lists: serde_json::Value| whole(ExpertPlacement::given(&lists).unwrap());
    let contains = |error: String, words: &[&str]| {
        words.iter().for_each(|word| assert!(error.contains(word), "{word} is not in: {error}"));
    };
    let dense = refused("llama", 2, json!({}), &whole(ExpertPlacement::Contiguous));
    contains(dense, &["Llama", "mixtures of experts", "none"]);
    let sliced = ExpertOptions { form: None, placement: ExpertPlacement::RoundRobin };
    contains(refused("mixtral", 2, json!({}), &sliced), &["sliced", "enable-expert-parallel"]);
    let experts = common::config("mixtral").unwrap().moe.unwrap().num_experts;
    contains(refused("mixtral", 2, json!({}), &given(json!([0, 1]))), &["2 experts", &experts.to_string()]);
    let beyond = given(json!(vec![2; experts]));
    contains(refused("mixtral", 2, json!({}), &beyond), &["rank 2", "0 to 1"]);
    let lists = given(json!([[0], [0], [0], [0], [0]]));
    contains(refused("mixtral", 2, json!({}), &lists), &["5 lists", "layers with experts"]);
    let plan = json!({"layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise"});
    contains(
        refused("mixtral", 2, plan, &whole(ExpertPlacement::Contiguous)),
        &["sliced by the plan", "whole"],
    );
}
