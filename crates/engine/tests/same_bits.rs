//! The plan, the batch, the chunking and the machine's instruction set never change a bit.

mod common;

use common::{Golden, bits};
use cpu::Isa;
use engine::{EngineOptions, GenerateRequest, SamplingParams};
use model::{Quantization, TpPlan};
use serde_json::json;

fn options(ranks: usize, threads: usize) -> EngineOptions {
    EngineOptions { rank_weights: vec![1.0; ranks], threads_per_rank: Some(threads), ..Default::default() }
}

/// Scores under other options have the bits of one rank with one thread.
fn assert_same(golden: &Golden, others: impl IntoIterator<Item = (String, EngineOptions)>) {
    let want = bits(&golden.engine(&options(1, 1)).score(&golden.prompt).unwrap());
    for (what, options) in others {
        let got = bits(&golden.engine(&options).score(&golden.prompt).unwrap());
        assert!(got == want, "{}, {what}: the bits differ", golden.name);
    }
}

#[test]
fn any_number_of_ranks_gives_the_bits_of_one() {
    for golden in Golden::all() {
        let most = golden.config.num_heads.min(8);
        assert_same(&golden, (2..=most).map(|n| (format!("{n} ranks"), options(n, 1))));
    }
}

#[test]
fn two_threads_per_rank_give_the_bits_of_one() {
    for golden in Golden::all() {
        assert_same(&golden, [1, 2, 3].map(|n| (format!("{n} ranks × 2 threads"), options(n, 2))));
    }
}

#[test]
fn unequal_ranks_give_the_bits_of_one() {
    let unequal = [vec![2.0, 1.0, 1.0], vec![1.0, 5.0], vec![3.0, 1.0, 2.0, 0.5]];
    for golden in Golden::all() {
        let others = unequal.iter().map(|weights| {
            (format!("{weights:?}"), EngineOptions { rank_weights: weights.clone(), ..options(1, 1) })
        });
        assert_same(&golden, others);
    }
}

#[test]
fn quantised_weights_give_the_same_bits_on_any_split() {
    for golden in Golden::all() {
        for quantization in Quantization::ALL {
            let quantised = |ranks, threads| EngineOptions {
                quantization: Some(quantization),
                ..options(ranks, threads)
            };
            let score = |options| bits(&golden.engine(&options).score(&golden.prompt).unwrap());
            let want = score(quantised(1, 1));
            let most = golden.config.num_heads.min(8);
            for ranks in [2, 3, most] {
                assert!(score(quantised(ranks, 1)) == want, "{}, {quantization}, {ranks} ranks", golden.name);
            }
            let portable = EngineOptions { isa: Some(Isa::Portable), ..quantised(1, 2) };
            assert!(score(portable) == want, "{}, {quantization}, portable", golden.name);
            let chunked = EngineOptions { max_num_batched_tokens: 7, ..quantised(2, 2) };
            assert!(score(chunked) == want, "{}, {quantization}, in chunks", golden.name);
        }
    }
}

#[test]
fn portable_kernels_give_the_bits_of_the_best_ones() {
    for golden in Golden::all() {
        let portable = EngineOptions { isa: Some(Isa::Portable), ..options(1, 1) };
        assert_same(&golden, [("portable".into(), portable)]);
    }
}

#[test]
fn chunks_of_any_size_give_the_bits_of_a_whole_prompt() {
    for golden in Golden::all() {
        let others = [1, 7, 64].map(|n| {
            (format!("chunks of {n}"), EngineOptions { max_num_batched_tokens: n, ..options(2, 1) })
        });
        // A thousand steps of one token take their time.
        let others =
            others.into_iter().filter(|(_, o)| golden.prompt.len() < 500 || o.max_num_batched_tokens > 1);
        assert_same(&golden, others);
    }
}

#[test]
fn other_plans_give_the_bits_of_the_automatic_one() {
    let replicate_attention = json!({"model.layers.*.self_attn.q_proj": "replicate",
        "model.layers.*.self_attn.k_proj": "replicate", "model.layers.*.self_attn.v_proj": "replicate",
        "model.layers.*.self_attn.o_proj": "rowwise_split_input"});
    let gathered = json!({"model.layers.*.self_attn.q_proj": "colwise_gather_output",
        "model.layers.*.self_attn.k_proj": "colwise_gather_output",
        "model.layers.*.self_attn.v_proj": "colwise_gather_output",
        "model.layers.*.self_attn.o_proj": "colwise_rep", "model.layers.*.mlp.gate_proj": "colwise_rep",
        "model.layers.*.mlp.up_proj": "colwise_rep", "model.layers.*.mlp.down_proj": "replicate"});
    let all_replicated = json!({"model.layers.0.self_attn.q_proj": "replicate",
        "model.layers.0.self_attn.k_proj": "replicate", "model.layers.0.self_attn.v_proj": "replicate",
        "model.layers.0.self_attn.o_proj": "replicate", "model.embed_tokens": "replicate", "lm_head": "replicate"});
    let plans = [replicate_attention, gathered, all_replicated];
    for name in ["llama", "qwen2", "qwen3", "llama_bias"] {
        let golden = Golden::named(name);
        let others = plans.iter().flat_map(|plan| {
            [2, 3].map(|n| {
                (plan.to_string(), EngineOptions { tp_plan: TpPlan::parse(plan).unwrap(), ..options(n, 1) })
            })
        });
        assert_same(&golden, others);
    }
    let experts = |style: [&str; 2]| {
        json!({"layers.*.mlp.experts.gate_up_proj": style[0],
        "layers.*.mlp.experts.down_proj": style[1]})
    };
    for name in ["mixtral", "mixtral_old_config", "qwen3_moe", "qwen3_moe_mixed", "qwen3_moe_fused"] {
        let golden = Golden::named(name);
        let others =
            [["grouped_gemm", "grouped_gemm"], ["packed_colwise", "rowwise"]].into_iter().flat_map(|style| {
                let plan = TpPlan::parse(&experts(style)).unwrap();
                [1, 2, 3, 6]
                    .map(|n| (format!("{style:?}"), EngineOptions { tp_plan: plan.clone(), ..options(n, 1) }))
            });
        assert_same(&golden, others);
    }
}

/// Three prompts of different lengths and settings.
fn batch(golden: &Golden) -> Vec<GenerateRequest> {
    let sampled = SamplingParams { temperature: 0.8, top_p: 0.9, seed: 7, ..Default::default() };
    let penalised = SamplingParams {
        temperature: 1.3,
        top_k: 20,
        min_p: 0.01,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.1,
        seed: 8,
        ..Default::default()
    };
    let request = |len: usize, sampling| GenerateRequest {
        prompt: golden.prompt[..len].to_vec(),
        max_tokens: 12,
        sampling,
        stop_token_ids: Vec::new(),
        ..GenerateRequest::default()
    };
    vec![request(50, SamplingParams::default()), request(3, sampled), request(64, penalised)]
}

#[test]
fn a_request_gets_in_a_batch_what_it_gets_alone_on_any_split_and_in_any_chunks() {
    for golden in Golden::all() {
        let requests = batch(&golden);
        let mut alone = golden.engine(&options(1, 1));
        let want: Vec<_> = requests
            .iter()
            .map(|r| alone.generate(std::slice::from_ref(r), &mut |_, _| false).unwrap().remove(0))
            .collect();
        let variants = [
            options(1, 1),
            EngineOptions { max_num_batched_tokens: 9, ..options(1, 2) },
            EngineOptions { max_num_seqs: 2, ..options(2, 1) },
            EngineOptions { max_num_batched_tokens: 17, ..options(golden.config.num_heads.min(5), 1) },
        ];
        for options in variants {
            let got = golden.engine(&options).generate(&requests, &mut |_, _| false).unwrap();
            assert!(got == want, "{}: {options:?} gives {got:?}, alone {want:?}", golden.name);
        }
    }
}
