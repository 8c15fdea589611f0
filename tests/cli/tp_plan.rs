//! `tp-plan` prints what a split would be, from config.json alone.

use serde_json::{Value, json};
use tensor::ReductionTree;

use crate::checkpoints::{Copy, golden};
use crate::child::anysplit;

fn numbers(list: &Value, key: &str) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|item| item[key].as_u64().unwrap()).collect()
}

#[test]
fn opt_175b_has_twelve_heads_on_each_of_eight_ranks() {
    let copy = Copy::of_config(&json!({
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 12288, "word_embed_proj_dim": 12288,
        "num_hidden_layers": 96, "num_attention_heads": 96, "ffn_dim": 49152, "vocab_size": 50272,
        "max_position_embeddings": 2048, "do_layer_norm_before": true, "activation_function": "relu",
        "torch_dtype": "float16", "bos_token_id": 2, "eos_token_id": 2,
    }));
    let found = anysplit("tp-plan --tp 8 --json").model(&copy).json();
    assert_eq!(
        (&found["tp"], &found["supported"], &found["dtype"]),
        (&json!(8), &json!(true), &json!("float16"))
    );
    assert_eq!(numbers(&found["ranks"], "query_heads"), [12; 8]);
    assert_eq!(numbers(&found["ranks"], "kv_heads"), [12; 8]);
    let plan = &found["plan"];
    assert_eq!(plan["model.decoder.layers.*.self_attn.q_proj"], "colwise");
    assert_eq!(plan["model.decoder.layers.*.self_attn.out_proj"], "rowwise");
    assert_eq!(plan["model.decoder.layers.*.fc1"], "colwise");
    assert_eq!(plan["model.decoder.layers.*.fc2"], "rowwise");
    let all: u64 = found["bytes_per_rank"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap()).sum();
    // 174.6 billion parameters in two bytes each, and on seven more ranks the norms and positions.
    assert!((349_000_000_000..350_000_000_000).contains(&all), "{all}");

    let table = anysplit("tp-plan --tp 8").model(&copy).prints();
    let heads = table.lines().find(|line| line.contains("query heads  ")).expect("a line of query heads");
    assert_eq!(heads.split_whitespace().filter(|cell| *cell == "12").count(), 8, "{heads}");
}

#[test]
fn a_config_file_alone_is_enough() {
    let copy = Copy::of("llama31");
    let of_dir = anysplit("tp-plan --tp 3 --json").model(&copy).prints();
    copy.remove("model.safetensors");
    copy.remove("generation_config.json");
    assert_eq!(anysplit("tp-plan --tp 3 --json").model(&copy).prints(), of_dir);
    std::fs::rename(copy.file("config.json"), copy.file("llama31.json")).unwrap();
    assert_eq!(anysplit("tp-plan --tp 3 --json").model(copy.file("llama31.json")).prints(), of_dir);
}

#[test]
fn the_demo_model_has_a_plan_too() {
    let found = anysplit("tp-plan --tp 3 --json").json();
    assert_eq!(numbers(&found["ranks"], "query_heads").iter().sum::<u64>(), 8);
    let table = anysplit("tp-plan --rank-weights 3,1").prints();
    for part in
        ["split over 2 ranks", "model.layers.*.self_attn.q_proj.weight", "rowwise", "query heads", "bytes"]
    {
        assert!(table.contains(part), "{table}\nshould have {part}");
    }
}

#[test]
fn another_dtype_changes_only_the_bytes() {
    let bytes = |dtype: &str| {
        let found = anysplit("tp-plan --tp 2 --json --dtype").arg(dtype).model(golden("llama")).json();
        found["bytes_per_rank"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(bytes("auto"), bytes("float32"));
    assert_eq!(bytes("float32"), bytes("float16").iter().map(|b| b * 2).collect::<Vec<_>>());
}

/// The shape of Llama-3.2-1B.
fn llama_1b() -> Copy {
    Copy::of_config(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
        "vocab_size": 128_256, "tie_word_embeddings": true, "max_position_embeddings": 131_072, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "torch_dtype": "bfloat16",
    }))
}

#[test]
fn no_rank_holds_more_than_its_share_and_one_head_one_leaf_and_one_panel() {
    let (hidden, head, layers, ffn, heads) = (2048, 64, 16, 8192, 32);
    let tree = ReductionTree::over_granules(ffn, heads);
    let leaf = (0..tree.num_leaves()).map(|l| tree.inputs_of(l..l + 1).len()).max().unwrap();
    // A head's columns of q and o, and of the k and v that it reads; a leaf's of gate, up and down; 16 ids.
    let slack = (layers * (4 * head + 3 * leaf) + 16) * hidden * 2;
    let config = llama_1b();
    for tp in [1, 2, 3, 4, 5, 6, 7, 8, 16, 32] {
        let found = anysplit("tp-plan --json --tp").arg(tp.to_string()).model(&config).json();
        let mut held = vec![0; tp];
        let mut all = 0;
        for weight in found["weights"].as_array().unwrap().iter().filter(|w| w["style"] != "replicate") {
            all +=
                weight["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>() * 2;
            for (held, bytes) in held.iter_mut().zip(numbers(&weight["ranks"], "bytes")) {
                *held += bytes;
            }
        }
        for (rank, held) in held.iter().enumerate() {
            let most = all / tp as u64 + slack as u64;
            assert!(*held <= most, "rank {rank} of {tp} holds {held} bytes, {most} are allowed");
        }
    }
}
