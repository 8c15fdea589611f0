//! Plans in transformers' notation.

mod common;

use model::parallel::{Module, Part};
use model::{Layout, TpPlan};
use serde_json::{Value, json};

fn layout(name: &str, ranks: usize, plan: Value) -> Result<Layout, String> {
    let plan = TpPlan::parse(&plan).map_err(|e| e.to_string())?;
    Layout::new(common::config(name).unwrap(), &vec![1.0; ranks], &plan).map_err(|e| e.to_string())
}

fn styles(layout: &Layout) -> Vec<String> {
    let modules = layout.layer_modules(0);
    modules.iter().map(|&m| format!("{:?} {}", m, layout.spec(m, 0).style)).collect()
}

/// transformers' plan of Llama, as its users write it.
fn verbatim() -> Value {
    json!({
        "model.layers.*.self_attn.q_proj": "colwise",
        "model.layers.*.self_attn.k_proj": "colwise",
        "model.layers.*.self_attn.v_proj": "colwise",
        "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.mlp.gate_proj": "colwise",
        "model.layers.*.mlp.up_proj": "colwise",
        "model.layers.*.mlp.down_proj": "rowwise"
    })
}

#[test]
fn transformers_plan_of_llama_equals_auto() {
    let auto = layout("llama", 2, json!({})).unwrap();
    let plan = layout("llama", 2, verbatim()).unwrap();
    assert_eq!(styles(&auto), styles(&plan));
    assert_eq!(auto.styles, plan.styles);
    let bare: Value = verbatim()
        .as_object()
        .unwrap()
        .iter()
        .map(|(k, v)| (k.trim_start_matches("model.").to_owned(), v.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert_eq!(styles(&layout("llama", 2, bare).unwrap()), styles(&auto));
}

#[test]
fn what_is_named_overrides_the_automatic_plan() {
    let plan = json!({"layers.*.mlp.gate_proj": "replicate", "layers.*.mlp.up_proj": "replicate",
        "layers.*.mlp.down_proj": "replicate"});
    let layout = layout("llama", 2, plan).unwrap();
    assert_eq!(layout.spec(Module::Down, 1).part, Part::Whole);
    assert_eq!(layout.spec(Module::O, 1).part, Part::QueryCols);
}

#[test]
fn one_layer_can_be_named() {
    let plan = json!({"model.layers.1.self_attn.q_proj": "replicate", "model.layers.1.self_attn.k_proj": "replicate",
        "model.layers.1.self_attn.v_proj": "replicate", "model.layers.1.self_attn.o_proj": "rowwise_rep"});
    let layout = layout("llama", 2, plan).unwrap();
    assert_eq!(layout.spec(Module::Q, 0).part, Part::QueryRows);
    assert_eq!(layout.spec(Module::Q, 1).part, Part::Whole);
    assert_eq!(layout.attention(1, 0).num_heads, 8);
}

#[test]
fn plans_that_cant_be_right_are_refused_with_the_modules_they_name() {
    let wrong = [
        (
            json!({"layers.*.mlp.down_proj": "replicate"}),
            vec!["gate_proj", "colwise", "down_proj", "replicate"],
        ),
        (json!({"layers.*.mlp.gate_proj": "replicate"}), vec!["gate_proj", "up_proj", "split alike"]),
        (json!({"layers.*.self_attn.q_proj": "rowwise"}), vec!["q_proj", "rowwise", "colwise"]),
        (json!({"layers.*.self_attn.o_proj": "colwise"}), vec!["o_proj", "colwise"]),
        (
            json!({"layers.*.mlp.gate_projection": "colwise"}),
            vec!["gate_projection", "matches no module", "gate_proj"],
        ),
        (json!({"layers.*.input_layernorm": "colwise"}), vec!["input_layernorm", "replicate"]),
        (json!({"model.embed_tokens": "rowwise"}), vec!["embed_tokens", "embedding_rowwise"]),
        (json!({"lm_head": "rowwise"}), vec!["lm_head", "colwise_gather_output"]),
        (json!({"lm_head": 3}), vec!["lm_head", "3", "not known"]),
        (json!({"layers.*.mlp.up_proj": "gather"}), vec!["up_proj", "gather", "not supported"]),
        (json!({"layers.*.mlp.up_proj": "diagonal"}), vec!["up_proj", "diagonal", "not known"]),
        (json!({"model.norm": "colwise"}), vec!["model.norm", "replicate"]),
        (json!(["colwise"]), vec!["JSON object"]),
    ];
    for (plan, words) in wrong {
        let error = layout("llama", 2, plan).unwrap_err();
        assert!(error.starts_with("tp plan: ") && !error.contains('\n'), "{error}");
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}

#[test]
fn experts_can_be_sliced_or_whole() {
    let whole = |layout: &Layout| layout.own_experts(0, 0).len() < layout.config.moe.unwrap().num_experts;
    assert!(!whole(&layout("mixtral", 2, json!({})).unwrap()));
    assert!(whole(&layout("qwen3_moe", 2, json!({})).unwrap()));
    let grouped = json!({"layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm", "layers.*.mlp.gate": "ep_router"});
    assert!(whole(&layout("mixtral", 2, grouped).unwrap()));
    let sliced = json!({"layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise", "layers.*.mlp.experts": "moe_tp_experts"});
    assert!(!whole(&layout("qwen3_moe", 2, sliced).unwrap()));
}

#[test]
fn transformers_plans_of_experts_are_taken_verbatim() {
    let attention =
        [("q_proj", "colwise"), ("k_proj", "colwise"), ("v_proj", "colwise"), ("o_proj", "rowwise")];
    let mut plan: serde_json::Map<String, Value> =
        attention.iter().map(|(m, s)| (format!("layers.*.self_attn.{m}"), json!(s))).collect();
    for norm in ["q_norm", "k_norm"] {
        plan.insert(format!("layers.*.self_attn.{norm}"), json!("replicated_with_grad_allreduce"));
    }
    // A model without dense layers is no reason to refuse a plan that names them.
    for (module, style) in [("gate_proj", "colwise"), ("up_proj", "colwise"), ("down_proj", "rowwise")] {
        plan.insert(format!("layers.*.mlp.{module}"), json!(style));
    }
    let experts = [
        ("experts.gate_up_proj", "packed_colwise"),
        ("experts.down_proj", "rowwise"),
        ("experts", "moe_tp_experts"),
    ];
    plan.extend(experts.iter().map(|(m, s)| (format!("layers.*.mlp.{m}"), json!(s))));
    for name in ["qwen3_moe", "qwen3_moe_mixed", "qwen3_moe_fused"] {
        let sliced = layout(name, 2, plan.clone().into()).unwrap();
        assert_eq!(sliced.styles.experts, model::parallel::ExpertForm::Sliced);
    }
    let error = layout("mixtral", 2, json!({"layers.*.mlp.experts": "colwise"})).unwrap_err();
    assert!(error.contains("experts") && error.contains("moe_tp_experts"), "{error}");
}

#[test]
fn more_ranks_than_heads_are_refused_and_every_other_number_works() {
    for name in common::all().into_iter().filter(|n| n != "opt_post_norm") {
        let heads = common::config(&name).unwrap().num_heads;
        for ranks in 1..=heads {
            let layout = layout(&name, ranks, json!({})).unwrap();
            let total: usize = (0..ranks).map(|r| layout.attention(0, r).num_heads).sum();
            assert_eq!(total, heads, "{name} on {ranks}");
        }
        for ranks in [0, heads + 1] {
            let error = layout(&name, ranks, json!({})).unwrap_err();
            assert!(error.contains(&format!("{heads} query heads")), "{error}");
        }
    }
}

#[test]
fn no_rank_holds_more_than_its_share_and_a_head_a_leaf_and_a_panel() {
    for name in common::all().into_iter().filter(|n| n != "opt_post_norm") {
        let config = common::config(&name).unwrap();
        let (h, d, hidden) = (config.num_heads, config.head_dim, config.hidden_size);
        for weights in [vec![1.0; 2], vec![1.0; 3], vec![1.0; 5], vec![2.0, 1.0, 1.0], vec![1.0; h]] {
            let layout = Layout::new(config.clone(), &weights, &TpPlan::auto()).unwrap();
            let share = |rank: usize| weights[rank] / weights.iter().sum::<f64>();
            let mut modules: Vec<_> = layout.outer_modules().into_iter().map(|m| (m, 0)).collect();
            for layer in 0..config.num_layers() {
                modules.extend(layout.layer_modules(layer).into_iter().map(|m| (m, layer)));
            }
            let split: Vec<_> = modules
                .into_iter()
                .map(|(m, layer)| layout.spec(m, layer))
                .filter(|spec| spec.part != Part::Whole)
                .collect();
            let held = |rank: usize| -> usize {
                split.iter().map(|spec| layout.held(spec.part, &spec.shape, rank).elements()).sum()
            };
            let total: usize = split.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
            // A head has rows of q, k and v and columns of o; a leaf has rows of gate and up and columns of down.
            let leaf = config.moe.map_or(0, |moe| match layout.styles.experts {
                model::parallel::ExpertForm::Whole => 3 * moe.intermediate_size,
                model::parallel::ExpertForm::Sliced => 3 * 32 * moe.num_experts,
            });
            let leaf = leaf.max(
                3 * 32.max(config.intermediate_size.div_ceil(h.next_power_of_two()).next_multiple_of(32)),
            );
            let slack = config.num_layers() * (4 * d + leaf) * hidden + 2 * 16 * hidden;
            for rank in 0..weights.len() {
                let most = share(rank) * total as f64 + slack as f64;
                assert!(
                    held(rank) as f64 <= most,
                    "{name} {weights:?}: rank {rank} holds {} of {total}",
                    held(rank)
                );
            }
        }
    }
}
