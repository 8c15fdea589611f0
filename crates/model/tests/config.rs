//! config.json of either generation, and what is wrong with it.

mod common;

use model::ModelConfig;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 136, "vocab_size": 259,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"
    })
}

fn with(key: &str, value: Value) -> Result<ModelConfig, String> {
    let mut config = llama();
    config[key] = value;
    ModelConfig::parse(&config, None).map_err(|e| e.to_string())
}

#[test]
fn every_golden_checkpoint_is_understood_but_for_what_is_refused_by_name() {
    for name in common::all() {
        match common::config(&name) {
            Ok(config) => assert!(config.num_layers() > 0),
            Err(error) => {
                assert_eq!(name, "opt_post_norm", "{error}");
                assert!(error.is_usage() && error.to_string().contains("do_layer_norm_before"), "{error}");
            }
        }
    }
}

#[test]
fn both_generations_of_keys_say_the_same() {
    let mut old = llama();
    old["rope_theta"] = json!(50000.0);
    old["rope_scaling"] = json!({"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 128, "rope_type": "llama3"});
    let mut new = llama();
    new.as_object_mut().unwrap().remove("torch_dtype");
    new["dtype"] = json!("bfloat16");
    new["head_dim"] = json!(8);
    new["rope_parameters"] = json!({"rope_theta": 50000.0, "factor": 8.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 128, "rope_type": "llama3"});
    let (old, new) = (ModelConfig::parse(&old, None).unwrap(), ModelConfig::parse(&new, None).unwrap());
    assert_eq!(old.ropes, new.ropes);
    assert_eq!((old.head_dim, old.dtype), (new.head_dim, new.dtype));
    assert_ne!(old.ropes, ModelConfig::parse(&llama(), None).unwrap().ropes);
}

#[test]
fn impossible_numbers_are_named() {
    let wrong = [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(64.5)),
        ("hidden_size", json!("64")),
        ("hidden_size", json!(null)),
        ("num_hidden_layers", json!(0)),
        ("num_attention_heads", json!(7)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(0)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(1u64 << 60)),
        ("intermediate_size", json!(1e30)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0)),
        ("hidden_act", json!("mish")),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
        ("rope_scaling", json!({"type": "linear"})),
        ("tie_word_embeddings", json!("yes")),
        ("torch_dtype", json!("int3")),
        ("eos_token_id", json!(-1)),
        ("rope_scaling", json!("linear")),
        ("rope_parameters", json!([])),
        ("rope_parameters", json!({"rope_type": 5})),
        ("hidden_act", json!(5)),
        ("architectures", json!("LlamaForCausalLM")),
        ("quantization_config", json!({"quant_method": "gptq"})),
    ];
    for (key, value) in wrong {
        let error = with(key, value.clone()).unwrap_err();
        assert!(error.starts_with("config.json: ") && !error.contains('\n'), "{error}");
        let named = error.contains(key) || error.contains("rope") || error.contains("num_attention_heads");
        assert!(named, "{key} = {value}: {error}");
    }
}

#[test]
fn an_unknown_architecture_is_refused_with_those_that_are_known() {
    let error = with("architectures", json!(["FalconForCausalLM"])).unwrap_err();
    assert!(error.contains("FalconForCausalLM") && error.contains("LlamaForCausalLM"), "{error}");
    assert!(error.contains("OPTForCausalLM"), "{error}");
}

#[test]
fn end_of_sequence_ids_come_from_generation_config_where_it_has_them() {
    let mut config = llama();
    config["eos_token_id"] = json!(2);
    let ids =
        |generation: Option<Value>| ModelConfig::parse(&config, generation.as_ref()).unwrap().eos_token_ids;
    assert_eq!(ids(None), [2]);
    assert_eq!(ids(Some(json!({"eos_token_id": [5, 6]}))), [5, 6]);
    assert_eq!(ids(Some(json!({"temperature": 0.6}))), [2]);
}
