//! Experts in the engine: every form and placement with the bits of one rank, and what is told of them.

mod common;

use common::{Golden, bits};
use engine::{EngineOptions, ExpertReport};
use model::parallel::{ExpertForm, ExpertOptions, ExpertPlacement};

const MIXTURES: [&str; 6] =
    ["mixtral", "mixtral_old_config", "qwen3_moe", "qwen3_moe_mixed", "qwen3_moe_fused", "qwen3_moe_fp8"];

fn options(tp: usize, form: ExpertForm, placement: ExpertPlacement) -> EngineOptions {
    EngineOptions {
        rank_weights: vec![1.0; tp],
        threads_per_rank: Some(1),
        experts: ExpertOptions { form: Some(form), placement },
        ..Default::default()
    }
}

fn forms(golden: &Golden, tp: usize) -> Vec<EngineOptions> {
    let experts = golden.config.moe.unwrap().num_experts;
    let backwards = (0..experts).map(|e| tp - 1 - e * tp / experts).collect();
    vec![
        options(tp, ExpertForm::Sliced, ExpertPlacement::Contiguous),
        options(tp, ExpertForm::Whole, ExpertPlacement::Contiguous),
        options(tp, ExpertForm::Whole, ExpertPlacement::RoundRobin),
        options(tp, ExpertForm::Whole, ExpertPlacement::Given(vec![backwards])),
    ]
}

#[test]
fn sliced_and_whole_experts_score_with_the_bits_of_one_rank() {
    for name in MIXTURES {
        let golden = Golden::named(name);
        let alone = EngineOptions { threads_per_rank: Some(1), ..Default::default() };
        let want = bits(&golden.engine(&alone).score(&golden.prompt).unwrap());
        for tp in 2..=golden.config.num_heads.min(6) {
            for form in forms(&golden, tp) {
                for (sequence_parallel, stages) in [(false, 1), (true, 1), (true, 2)] {
                    let pipeline_parallel_size = stages.min(golden.config.num_layers());
                    let options = EngineOptions { sequence_parallel, pipeline_parallel_size, ..form.clone() };
                    let got = bits(&golden.engine(&options).score(&golden.prompt).unwrap());
                    assert!(got == want, "{name}, {options:?}: the bits differ");
                }
            }
        }
    }
}

#[test]
fn requests_get_the_tokens_of_one_rank_whatever_the_experts() {
    for name in ["mixtral", "qwen3_moe"] {
        let golden = Golden::named(name);
        let alone = EngineOptions { threads_per_rank: Some(1), ..Default::default() };
        let requests = [golden.request(9), golden.request(3)];
        let want = golden.engine(&alone).generate(&requests, &mut |_, _| false).unwrap();
        for options in forms(&golden, 3) {
            let chunks = EngineOptions { max_num_batched_tokens: 7, ..options };
            let got = golden.engine(&chunks).generate(&requests, &mut |_, _| false).unwrap();
            assert!(got == want, "{name}, {chunks:?}");
        }
    }
}

#[test]
fn recorded_counts_are_those_of_one_rank_and_balance_the_next_start() {
    let golden = Golden::named("qwen3_moe");
    let run = |options: &EngineOptions| {
        let mut engine = golden.engine(options);
        engine.score(&golden.prompt).unwrap();
        let reports = engine.reports().unwrap();
        ExpertReport::new(engine.plan(), &reports).unwrap()
    };
    let alone = run(&options(1, ExpertForm::Whole, ExpertPlacement::Contiguous));
    let tokens = |report: &ExpertReport| -> Vec<Vec<u64>> {
        report.layers.iter().map(|layer| layer.tokens_per_expert.clone()).collect()
    };
    for options in forms(&golden, 3) {
        let report = run(&EngineOptions { pipeline_parallel_size: 2, ..options });
        assert_eq!((tokens(&report), report.dropped_tokens), (tokens(&alone), 0));
    }
    let before = run(&options(3, ExpertForm::Whole, ExpertPlacement::Contiguous));
    let recorded = ExpertPlacement::balanced(&before.to_json()).unwrap();
    let after = run(&options(3, ExpertForm::Whole, recorded));
    assert_eq!(tokens(&after), tokens(&before));
    assert!(after.imbalance < before.imbalance, "{} then {}", before.imbalance, after.imbalance);
}

#[test]
fn a_dense_model_has_no_experts_to_tell_of_or_to_place() {
    let golden = Golden::named("llama");
    let mut engine = golden.engine(&EngineOptions::default());
    engine.score(&golden.prompt).unwrap();
    let reports = engine.reports().unwrap();
    assert_eq!(ExpertReport::new(engine.plan(), &reports), None);
    assert_eq!(ExpertReport::bytes_of_step(engine.plan(), 8), None);
}
