//! Measurements say what they are fractions of. How large they are is no test's business.

use serde_json::{Value, json};

use crate::child::anysplit;
use crate::json_shapes::assert_shape;

fn is_rate(value: &Value) -> bool {
    value.as_f64().is_some_and(|rate| rate.is_finite() && rate > 0.0)
}

#[test]
fn limits_has_a_row_per_number_of_threads() {
    let found = anysplit("bench limits --json").json();
    assert_shape(
        &found,
        &json!({ "isa": "", "rows": [{ "threads": 1, "read_gb_s": 0.1, "fma_gflop_s": 0.1 }] }),
        "limits",
    );
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows[0]["threads"], 1);
    assert!(rows.iter().all(|row| is_rate(&row["read_gb_s"]) && is_rate(&row["fma_gflop_s"])));
    if rows.len() > 1 {
        assert_shape(&found["core_to_core"], &json!({ "latency_ns": 0.1, "rate_gb_s": 0.1 }), "core_to_core");
    }
}

#[test]
fn decode_has_a_row_per_split_with_its_fractions_of_the_limit() {
    let found =
        anysplit("bench decode --prompt-len 16 --gen-len 4 --repeats 1 --splits 1x1,2x1 --json").json();
    let like = json!({ "rows": [{
        "model": "", "tp": 1, "threads_per_rank": 1, "dtype": "", "batch": 1, "prompt": 1, "gen": 1,
        "prefill_tokens_per_s": 0.1, "decode_tokens_per_s": 0.1, "decode_roofline_fraction": 0.1,
        "prefill_flops_fraction": 0.1, "peak_rss_bytes": 1,
    }]});
    assert_shape(&found, &like, "decode");
    let rows = found["rows"].as_array().unwrap();
    let splits: Vec<_> = rows.iter().map(|r| (r["tp"].as_u64(), r["threads_per_rank"].as_u64())).collect();
    assert_eq!(splits, [(Some(1), Some(1)), (Some(2), Some(1))]);
    for row in rows {
        assert_eq!(
            (&row["prompt"], &row["gen"], &row["quantization"]),
            (&json!(16), &json!(4), &Value::Null)
        );
        assert!(
            ["decode_roofline_fraction", "prefill_flops_fraction"].iter().all(|key| is_rate(&row[*key])),
            "{row}"
        );
    }
}
