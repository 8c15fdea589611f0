//! What is kept in fewer bits changes what the demo model thinks of a passage, but little.

use serde_json::Value;

use crate::child::anysplit;

/// The demo model wrote it.
const PASSAGE: &str = include_str!("../../crates/cli/demo/passage.txt");

/// Perplexity, and the log-probabilities of all tokens but the first.
fn score(how: &str) -> (f64, Vec<f64>) {
    let value = anysplit("score --json --text").arg(PASSAGE.trim_end()).args(how).json();
    let logprobs = value["logprobs"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    (value["perplexity"].as_f64().unwrap(), logprobs)
}

/// Relative change of perplexity, where changes of single tokens may cancel; and the mean change of a log-probability,
/// where they can't.
fn changes(how: &str) -> (f64, f64) {
    let ((exact, all_exact), (rounded, all)) = (score("--dtype float32"), score(how));
    let sum: f64 = all.iter().zip(&all_exact).map(|(a, b)| (a - b).abs()).sum();
    ((rounded / exact - 1.0).abs(), sum / all.len() as f64)
}

#[track_caller]
fn stays(how: &str, mean_change: f64) {
    let (perplexity, of_a_token) = changes(how);
    assert!(perplexity < 0.01, "{how} changes the perplexity by {:.2} %", 100.0 * perplexity);
    assert!(of_a_token > 0.0, "{how} is used");
    assert!(of_a_token < mean_change, "{how} changes a token's log-probability by {of_a_token}");
}

#[test]
fn a_kv_cache_of_few_bits_changes_little() {
    // Measured: 0.0002, 0.0014, 0.019.
    stays("--kv-cache-dtype float16", 0.0005);
    stays("--kv-cache-dtype bfloat16", 0.003);
    stays("--kv-cache-dtype fp8", 0.03);
}

#[test]
fn weights_of_few_bits_change_little() {
    // Measured: 0.010, 0.071, 0.030.
    stays("--quantization int8", 0.015);
    stays("--quantization int4", 0.1);
    stays("--quantization fp8", 0.045);
}

#[test]
fn weights_and_kv_cache_of_few_bits_change_little_together() {
    // Measured: 0.022, 0.078, 0.038.
    stays("--quantization int8 --kv-cache-dtype fp8", 0.03);
    stays("--quantization int4 --kv-cache-dtype fp8", 0.11);
    stays("--quantization fp8 --kv-cache-dtype fp8", 0.055);
}

#[test]
fn generate_keeps_keys_and_values_as_score_does() {
    let bytes = |how: &str| {
        let run = anysplit("generate --json --max-tokens 4 --prompt-ids 1,2,3").args(how).json();
        run["stats"]["ranks"][0]["kv_bytes_per_token"].as_u64().unwrap()
    };
    let [float32, bfloat16, fp8] =
        ["float32", "bfloat16", "fp8"].map(|dtype| bytes(&format!("--kv-cache-dtype {dtype}")));
    assert_eq!(float32, 2 * bfloat16);
    assert!(fp8 < bfloat16 && fp8 > bfloat16 / 2, "a byte per element, and scales: {fp8} of {bfloat16}");
}
