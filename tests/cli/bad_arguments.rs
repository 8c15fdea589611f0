//! A command line that can't be is refused before anything is loaded.

use serde_json::json;

use crate::checkpoints::{Copy, golden};
use crate::child::anysplit;

#[test]
fn unknown_commands_flags_and_values_are_named() {
    anysplit("complete").refused(&["complete"]);
    anysplit("generate x --beams 4").refused(&["--beams"]);
    anysplit("score --text x --temperature 1").refused(&["--temperature"]);
    anysplit("tp-plan --model").refused(&["--model"]);
    anysplit("generate x --dtype int8").refused(&["int8", "--dtype", "bfloat16"]);
    anysplit("generate x --kv-cache-dtype q4").refused(&["q4", "--kv-cache-dtype", "float16"]);
    anysplit("generate x --load-format pickle").refused(&["pickle", "--load-format", "safetensors"]);
    anysplit("generate x --device tpu").refused(&["tpu", "--device", "cpu", "cuda"]);
    // Whether there is a driver or not, there is no GPU.
    anysplit("generate x --device cuda").refused(&["--device cuda", "NVIDIA"]);
    anysplit("generate x --device gpu").refused(&["--device cuda", "NVIDIA"]);
    anysplit("generate x --max-tokens many").refused(&["many", "--max-tokens"]);
    anysplit("generate x --seed 0.5").refused(&["0.5", "--seed"]);
    anysplit("generate x --seed -1").refused(&["-1", "--seed"]);
    anysplit("generate x --stop-token-ids 1,x").refused(&["x", "--stop-token-ids"]);
    anysplit("generate x --max-num-seqs 0").refused(&["--max-num-seqs", "from 1"]);
    anysplit("generate x --max-num-batched-tokens 0").refused(&["--max-num-batched-tokens", "from 1"]);
    anysplit("generate x --comm-timeout 0").refused(&["--comm-timeout"]);
    anysplit("generate x --threads-per-rank 0").refused(&["--threads-per-rank must", "at least 1"]);
    anysplit("generate x --threads-per-rank 100000").refused(&["--threads-per-rank 100000 on 1 rank "]);
    anysplit("generate x --max-tokens 0").refused(&["max-tokens", "at least 1"]);
    anysplit("generate x --max-model-len 0").refused(&["max-model-len", "2048"]);
    anysplit("generate x --max-model-len 2049").refused(&["max-model-len 2049", "2048"]);
    anysplit("bench decode --splits 2").refused(&["--splits", "2x1"]);
    anysplit("bench decode --gen-len 1").refused(&["--gen-len at least 2"]);
    anysplit("bench decode --repeats 0").refused(&["--repeats"]);
    anysplit("bench decode --prompt-len 8,0").refused(&["--prompt-len must be at least 1"]);
    anysplit("bench decode --prompt-len 8,2000").refused(&["--prompt-len 2000", "2048 positions"]);
    anysplit("bench decode --batch-size 1,0").refused(&["--batch-size 0", "1 to 4096"]);
    anysplit("bench decode --batch-size 8,x").refused(&["'x'", "--batch-size"]);
    anysplit("bench decode --batch-size 8 --max-num-seqs 4").refused(&["--batch-size 8", "--max-num-seqs 4"]);
    anysplit("bench decode --isa abacus").refused(&["--isa", "abacus", "portable"]);
    anysplit("bench limits --threads 0").refused(&["--threads", "from 1 to 1024"]);
}

#[test]
fn names_of_types_that_other_engines_have_are_understood() {
    let plan = |dtype: &str| anysplit("tp-plan --json --dtype").arg(dtype).json()["dtype"].clone();
    for (name, others) in [
        ("float32", &["float", "f32", "fp32"][..]),
        ("bfloat16", &["bf16"]),
        ("float16", &["half", "f16", "fp16"]),
    ] {
        let of_cache = |dtype: &str| {
            let run = anysplit("generate Once --max-tokens 2 --json --kv-cache-dtype").arg(dtype);
            run.json()["stats"]["ranks"][0]["kv_bytes_per_token"].as_u64().unwrap()
        };
        for other in others {
            assert_eq!(plan(other), name);
            assert_eq!(of_cache(other), of_cache(name));
        }
    }
    anysplit("generate Once --max-tokens 2 --kv-cache-dtype fp8_e4m3").prints();
    anysplit("generate Once --kv-cache-dtype fp8_e5m2").refused(&["fp8_e5m2", "fp8"]);
}

#[test]
fn lists_may_have_blanks_and_no_gaps() {
    let rows = |prompts: &str, quantizations: &str| {
        let bench = anysplit("bench decode --json --gen-len 2 --repeats 1 --threads-per-rank 1 --prompt-len")
            .arg(prompts);
        bench.arg("--quantizations").arg(quantizations).json()["rows"].as_array().unwrap().len()
    };
    assert_eq!(rows("4, 8", "none, int8"), 4);
    for missing in ["", " ", "4,,8"] {
        anysplit("bench decode --batch-size").arg(missing).refused(&["--batch-size", "a number is missing"]);
    }
    let split = anysplit("score --prompt-ids")
        .arg("1, 2")
        .arg("--rank-weights")
        .arg("2, 1")
        .arg("--pp-layers")
        .arg("2, 3");
    split.args("--pp 2").run().succeeds();
}

#[test]
fn a_prompt_without_quotes_is_told_from_a_wrong_flag() {
    for command in ["generate Once upon a time", "score --text Once upon a time"] {
        anysplit(command).refused(&["'upon'", "needs \"quotes\""]);
    }
    for command in ["generate Once --upon", "tp-plan Once", "quantize a b -o c"] {
        assert!(!anysplit(command).refused(&[]).contains("quotes"), "{command}");
    }
}

#[test]
fn gguf_is_said_not_to_be_read() {
    let copy = Copy::empty();
    copy.write("model.Q4_0.gguf", "GGUF");
    for model in [copy.path().to_owned(), copy.file("model.Q4_0.gguf")] {
        anysplit("generate x").model(&model).refused(&["GGUF is not read", "config.json", "safetensors"]);
    }
}

#[test]
fn a_wrong_value_in_the_environment_is_refused_as_on_the_command_line() {
    anysplit("generate x").env("ANYSPLIT_DTYPE", "int8").refused(&["int8", "--dtype"]);
    anysplit("generate x").env("ANYSPLIT_TENSOR_PARALLEL_SIZE", "9").refused(&["9", "8 query heads"]);
    anysplit("generate x").env("ANYSPLIT_TEMPERATURE", "-1").refused(&["temperature", "-1"]);
}

#[test]
fn arguments_that_contradict_each_other_are_named() {
    anysplit("generate x --prompt-ids 1").refused(&["PROMPT", "--prompt-ids"]);
    anysplit("generate x --prompt-file f").refused(&["PROMPT", "--prompt-file"]);
    anysplit("generate --prompt-ids 1 --prompt-file f").refused(&["--prompt-ids", "--prompt-file"]);
    anysplit("generate --prompt-ids 1 --chat").refused(&["--chat", "--prompt-ids"]);
    anysplit("score --text x --prompt-ids 1").refused(&["--text", "--prompt-ids"]);
}

#[test]
fn ranks_are_from_one_to_the_query_heads() {
    for command in ["generate x", "score --text x", "tp-plan"] {
        for tp in ["0", "9", "4096"] {
            anysplit(command).args("--tp").arg(tp).refused(&["tensor parallel size", tp, "8 query heads"]);
        }
        let all = usize::MAX.to_string();
        anysplit(command).arg("--tp").arg(&all).refused(&["tensor parallel size", &all, "query heads"]);
        anysplit(command).args("--tp -1").refused(&["--tensor-parallel-size", "-1"]);
        anysplit(command).args("--tp two").refused(&["--tensor-parallel-size", "two"]);
    }
    let six = golden("llama1");
    anysplit("score --prompt-ids 1,2 --tp 7").model(six).refused(&["7", "6 query heads"]);
}

#[test]
fn rank_weights_are_one_positive_number_per_rank() {
    let weights = |weights: &str| anysplit("score --text x").arg(format!("--rank-weights={weights}"));
    for wrong in ["0,1", "1,-1", "nan,1", "inf,1", "1,-inf", "1e308,1e308"] {
        weights(wrong).refused(&["rank weights", "positive"]);
    }
    weights("2,one").refused(&["--rank-weights", "one"]);
    weights("2,,1").refused(&["--rank-weights"]);
    weights("").refused(&["--rank-weights"]);
    weights("2,1").arg("--tp").arg("3").refused(&["--rank-weights", "2 numbers", "--tp is 3"]);
    weights("1,1,1,1,1,1,1,1,1").refused(&["9", "8 query heads"]);
    anysplit("tp-plan --rank-weights 1,1 --tp 1").refused(&["--rank-weights", "--tp is 1"]);
}

#[test]
fn sampling_parameters_that_cannot_be_are_named() {
    let names =
        ["temperature", "top-p", "min-p", "repetition-penalty", "presence-penalty", "frequency-penalty"];
    for name in names {
        for value in ["nan", "NaN", "-inf", "inf", "-3"] {
            let told = name.replace('-', "_");
            anysplit("generate x").arg(format!("--{name}={value}")).refused(&[&told, "must be"]);
        }
        anysplit("generate x").arg(format!("--{name}=warm")).refused(&[name, "warm"]);
    }
    anysplit("generate x --temperature -0.5").refused(&["temperature is -0.5", "positive"]);
    anysplit("generate x --top-p 0").refused(&["top_p is 0"]);
    anysplit("generate x --top-p 1.01").refused(&["top_p is 1.01"]);
    anysplit("generate x --min-p 1.5").refused(&["min_p is 1.5"]);
    anysplit("generate x --repetition-penalty 0").refused(&["repetition_penalty is 0"]);
    anysplit("generate x --frequency-penalty 2.5").refused(&["frequency_penalty is 2.5"]);
    anysplit("generate x --top-k -1").refused(&["--top-k", "-1"]);
    anysplit("generate x --stop").arg("").refused(&["--stop is empty"]);
}

/// What is said of a plan.
fn plan_refused(plan: impl AsRef<[u8]>, parts: &[&str]) {
    let copy = Copy::of("llama");
    copy.write("plan.json", plan);
    let with_plan =
        |command: &str| anysplit(command).model(&copy).arg("--tp-plan").arg(copy.file("plan.json"));
    let score = with_plan("score --prompt-ids 1,2 --tp 2").refused(parts);
    assert_eq!(score, with_plan("tp-plan --tp 2").refused(parts));
    with_plan("score --prompt-ids 1,2").refused(parts);
}

#[test]
fn a_tp_plan_that_cannot_be_read_is_named() {
    anysplit("score --text x --tp-plan nowhere.json").refused(&["nowhere.json"]);
    plan_refused("{\"lm_head\": \"colwise\"", &["plan.json", "line 1"]);
    plan_refused("[\"colwise\"]", &["plan.json", "object"]);
    plan_refused("", &["plan.json"]);
    plan_refused(b"\xff", &["plan.json"]);
}

#[test]
fn a_tp_plan_that_cannot_be_right_names_what_is_wrong() {
    let up = "model.layers.*.mlp.up_proj";
    plan_refused(json!({ up: "diagonal" }).to_string(), &[up, "diagonal", "colwise", "replicate"]);
    plan_refused(json!({ up: 7 }).to_string(), &[up, "7", "colwise"]);
    let unmatched = "model.layers.*.mlp.fc1";
    plan_refused(json!({ unmatched: "colwise" }).to_string(), &[unmatched, "no module", "mlp.up_proj"]);
    plan_refused(json!({ up: "rowwise" }).to_string(), &["mlp.up_proj", "rowwise", "colwise"]);
    let half = json!({ "model.layers.*.mlp.down_proj": "replicate" });
    plan_refused(half.to_string(), &["mlp.gate_proj", "colwise", "mlp.down_proj", "replicate"]);
    let torn = json!({ "model.layers.*.self_attn.k_proj": "replicate" });
    plan_refused(torn.to_string(), &["self_attn.q_proj", "self_attn.k_proj", "alike"]);
    let norm = json!({ "model.layers.*.input_layernorm": "colwise" });
    plan_refused(norm.to_string(), &["input_layernorm", "colwise", "replicate"]);
    let embedding = json!({ "model.embed_tokens": "colwise" });
    plan_refused(embedding.to_string(), &["model.embed_tokens", "colwise"]);
}

#[test]
fn a_tp_plan_cannot_split_the_final_norm() {
    let norm = json!({ "model.norm": "colwise" });
    plan_refused(norm.to_string(), &["model.norm", "colwise", "replicate"]);
}

#[test]
fn a_model_that_is_nowhere_is_named() {
    let empty = Copy::empty();
    anysplit("generate x").model(empty.file("nothing")).refused(&["nothing", "does not exist"]);
    anysplit("generate x --model ./nothing").within(empty.path()).refused(&["./nothing", "org/name"]);
    anysplit("generate x").model("a/b/c").refused(&["a/b/c"]);
    anysplit("generate x").model("").refused(&["model"]);
    anysplit("score --prompt-ids 1").model(golden("llama").join("config.json")).refused(&["config.json"]);
}
