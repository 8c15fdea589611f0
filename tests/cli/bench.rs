//! Measurements say what they are fractions of. How large they are is no test's business.

use serde_json::{Value, json};

use crate::checkpoints::golden;
use crate::child::{Anysplit, anysplit, free_port};
use crate::json_shapes::assert_shape;
use crate::launch::told;

const BIN: &str = env!("CARGO_BIN_EXE_anysplit");

fn is_rate(value: &Value) -> bool {
    value.as_f64().is_some_and(|rate| rate.is_finite() && rate > 0.0)
}

#[test]
fn limits_has_a_row_per_number_of_threads() {
    let found = anysplit("bench limits --device cpu --json").json();
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

#[test]
fn decode_has_a_row_for_each_combination_of_lists() {
    let found = anysplit("bench decode --prompt-len 4,8 --gen-len 2,4 --batch-size 1,3 --repeats 2")
        .args("--threads-per-rank 1 --json")
        .json();
    let like = json!({ "rows": [{
        "pp": 1, "dp": 1, "ep": 1, "sp": false, "dcp": 1, "isa": "", "kv_cache_dtype": "", "decode_bandwidth_fraction": 0.1, "decode_flops_fraction": 0.1,
        "spread": { "prefill_tokens_per_s": [0.1], "decode_tokens_per_s": [0.1],
            "decode_roofline_fraction": [0.1], "prefill_flops_fraction": [0.1] },
        "read_gb_s": 0.1, "fma_gflop_s": 0.1, "repeats": 2, "load_s": 0.1,
    }]});
    assert_shape(&found, &like, "decode");
    let rows = found["rows"].as_array().unwrap();
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    let points: Vec<[f64; 3]> =
        rows.iter().map(|row| ["prompt", "gen", "batch"].map(|key| number(row, key))).collect();
    let mut expected = Vec::new();
    for prompt in [4.0, 8.0] {
        for generate in [2.0, 4.0] {
            expected.extend([1.0, 3.0].map(|batch| [prompt, generate, batch]));
        }
    }
    assert_eq!(points, expected);
    for row in rows {
        for key in ["prefill_tokens_per_s", "decode_tokens_per_s", "decode_roofline_fraction"] {
            let spread = [0, 1].map(|end| row["spread"][key][end].as_f64().unwrap());
            assert!(spread[0] <= number(row, key) && number(row, key) <= spread[1], "{key}: {row}");
        }
        let fractions = ["decode_bandwidth_fraction", "decode_flops_fraction"].map(|key| number(row, key));
        let least = fractions[0].max(fractions[1]);
        assert!(number(row, "decode_roofline_fraction") >= least * 0.999, "the lesser limit: {row}");
    }
}

#[test]
fn the_peak_of_a_split_does_not_depend_on_what_is_compared_with_it() {
    let peaks = |splits: &str| {
        let run =
            anysplit("bench decode --prompt-len 8 --gen-len 4 --repeats 1 --json --splits").args(splits);
        let rows = run.json()["rows"].as_array().unwrap().clone();
        let of = |row: &Value| (row["tp"].as_u64().unwrap(), row["peak_rss_bytes"].as_f64().unwrap());
        rows.iter().map(of).collect::<std::collections::BTreeMap<_, _>>()
    };
    let (one_way, other_way) = (peaks("1x1,2x1,1x1"), peaks("2x1,1x1"));
    assert_eq!(one_way.len(), 2, "a split that is named twice is run once");
    for (tp, peak) in one_way {
        assert!((peak / other_way[&tp] - 1.0).abs() < 0.1, "tp {tp}: {peak} and {}", other_way[&tp]);
    }
}

#[test]
fn decode_shows_how_it_was_split_and_one_number_of_one_run() {
    let table =
        anysplit("bench decode --prompt-len 4 --gen-len 2 --batch-size 1,1 --repeats 1 --dp 2").prints();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].contains(" dp ") && !lines[0].contains(" pp ") && !table.contains('('), "{table}");
}

#[test]
fn decode_compares_quantisations() {
    let found =
        anysplit("bench decode --prompt-len 4 --gen-len 2 --repeats 1 --quantizations none,int8 --json")
            .json();
    let kept: Vec<_> = found["rows"].as_array().unwrap().iter().map(|row| &row["quantization"]).collect();
    assert_eq!(kept, [&Value::Null, &json!("int8")]);
    anysplit("bench decode --quantizations int8,int3").refused(&["int3", "--quantizations", "int4"]);
    anysplit("bench decode --quantizations int8 --quantization int8").refused(&["--quantizations"]);
}

#[test]
fn decode_counts_the_tokens_of_all_sequences() {
    let rows = anysplit("bench decode --prompt-len 4 --gen-len 8 --batch-size 1,4 --repeats 1 --json").json();
    // Weights are read once for all of them, so a sequence more costs less than a fraction of the limit more.
    let per_token = |i: usize| {
        let row = &rows["rows"][i];
        let number = |key: &str| row[key].as_f64().unwrap();
        number("decode_bandwidth_fraction") * number("read_gb_s") / number("decode_tokens_per_s")
    };
    let bytes_of_four = per_token(1) / per_token(0);
    assert!(bytes_of_four > 0.25 && bytes_of_four < 0.3, "{bytes_of_four}: {rows}");
}

/// What a backend is called, and the ranks that it is run with here.
const BACKENDS: [(&str, usize); 4] = [("shared", 2), ("shared", 3), ("tcp", 2), ("tcp", 3)];
const OPS: [&str; 6] = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv"];

#[test]
fn comm_has_a_row_per_operation_and_size_and_nothing_is_wrong() {
    for (backend, ranks) in BACKENDS {
        let found = anysplit("bench comm --json -b 64 -e 64K -f 32 -n 5 -w 1")
            .args(&format!("--backend {backend} --tp {ranks}"))
            .json();
        let like = json!({ "rows": [{
            "op": "", "backend": "", "ranks": 1, "bytes": 1, "time_us_p50": 0.1, "time_us_p90": 0.1,
            "time_us_p99": 0.1, "algbw_gb_s": 0.1, "busbw_gb_s": 0.1, "wrong": 0,
        }]});
        assert_shape(&found, &like, "comm");
        let rows = found["rows"].as_array().unwrap();
        let ops: Vec<_> = rows.iter().map(|r| r["op"].as_str().unwrap()).collect();
        assert_eq!(ops, OPS.map(|op| [op; 3]).concat());
        for row in rows {
            assert_eq!(
                (&row["backend"], &row["ranks"], &row["wrong"]),
                (&json!(backend), &json!(ranks), &json!(0))
            );
            assert!(
                ["time_us_p50", "algbw_gb_s", "busbw_gb_s"].iter().all(|key| is_rate(&row[*key])),
                "{row}"
            );
            let share = match row["op"].as_str().unwrap() {
                "all_reduce" => 2.0 * (ranks - 1) as f64 / ranks as f64,
                "broadcast" | "send_recv" => 1.0,
                _ => (ranks - 1) as f64 / ranks as f64,
            };
            let rates = (row["algbw_gb_s"].as_f64().unwrap() * share, row["busbw_gb_s"].as_f64().unwrap());
            assert!((rates.0 / rates.1 - 1.0).abs() < 1e-9, "{row}");
            // Sizes that ranks share are the nearest below.
            let bytes = row["bytes"].as_u64().unwrap();
            assert!([64, 2048, 65536].iter().any(|asked| (asked - 12..=*asked).contains(&bytes)), "{row}");
        }
    }
}

#[test]
fn comm_marks_the_sizes_of_a_model_and_knows_the_bound_of_two_ranks() {
    let model = golden("llama");
    let args = "bench comm --json -b 1K -e 1K -n 3 --op all_reduce --backend shared";
    let found = anysplit(args).model(&model).json();
    let config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    let token = config["hidden_size"].as_u64().unwrap() * 4;
    let rows = found["rows"].as_array().unwrap();
    let used = |bytes: u64| rows.iter().find(|r| r["bytes"] == bytes).map(|r| r["used_in"].clone());
    assert_eq!(used(token), Some(json!("decode, 1 token")));
    assert_eq!(used(token * 512), Some(json!("prefill, 512 tokens")));
    assert_eq!(used(1024), Some(Value::Null));
    for row in rows {
        if let Some(bound) = row["bound_us"].as_f64() {
            let ratio = row["time_us_p50"].as_f64().unwrap() / bound;
            assert!((row["times_bound"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9, "{row}");
        }
    }
}

#[test]
fn comm_without_check_says_that_nothing_was_compared() {
    let table = anysplit("bench comm -b 64 -e 64 -n 2 --op broadcast --check false").prints();
    assert!(table.contains("#wrong") && table.contains("N/A"), "{table}");
    let found = anysplit("bench comm -b 64 -e 64 -n 2 --op broadcast --check false --json").json();
    assert_eq!(found["rows"][0]["wrong"], Value::Null);
}

/// `bench comm` by two processes of a job.
fn launched(options: &str) -> Anysplit {
    let port = free_port();
    anysplit(&format!("launch --nproc-per-node 2 --master-port {port} -- {BIN} bench comm {options}"))
}

#[test]
fn comm_measures_the_processes_of_a_job() {
    for (options, backend) in [("", "shared"), ("--comm-backend tcp", "tcp")] {
        let found = launched(&format!("--json -b 64 -e 64 -n 3 {options}")).json();
        let rows = found["rows"].as_array().unwrap();
        assert_eq!(rows.len(), OPS.len());
        for row in rows {
            assert_eq!(
                (&row["backend"], &row["ranks"], &row["wrong"]),
                (&json!(backend), &json!(2), &json!(0))
            );
        }
    }
    let line = told(launched("--tp 3")).fails_with(2);
    assert!(line.contains("--tp 3") && line.contains("2 processes"), "{line}");
}

#[test]
fn comm_refuses_what_it_cannot_measure() {
    // Built with MPI it can.
    if cfg!(not(feature = "mpi")) {
        let line = told(launched("--comm-backend mpi")).fails_with(2);
        assert!(line.contains("built without it") && line.contains("docs/mpi.md"), "{line}");
    }
    for (args, told) in [
        ("-b 3", "4 to 4G"),
        ("-b 8X", "4 to 4G"),
        ("-e 99999999999999G", "4 to 4G"),
        ("-b 8K -e 4K", "--min-bytes 8192 is more than --max-bytes 4096"),
        ("-f 1", "--factor"),
        ("-n 0", "--iters"),
        ("--tp 1", "from 2 to 1024"),
        ("--op gather", "all_gather"),
        ("--backend pigeons", "shared"),
    ] {
        anysplit("bench comm").args(args).refused(&[told]);
    }
}
