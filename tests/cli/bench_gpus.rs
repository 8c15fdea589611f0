//! Collectives between GPUs, measured under the real command line over libraries that stand for NVIDIA's. How fast those are is
//! nobody's business; what comes of them is.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::child::{Anysplit, anysplit};
use crate::json_shapes::assert_shape;
use crate::stand_ins;

/// The command, where libraries of this folder are found.
fn with(folder: &Path, gpus: usize, arguments: &str) -> Anysplit {
    anysplit(arguments).with_gpus_of(folder).env("FAKE_GPUS", gpus.to_string())
}

/// What a small measurement prints, if there is a C++ compiler.
fn measured(gpus: usize, arguments: &str) -> Option<Value> {
    let small = "bench comm --json -b 1K -e 40K -f 40 -n 2 -w 3";
    Some(with(stand_ins::libraries()?, gpus, small).args(arguments).json())
}

fn assert_right(found: &Value, backend: &str, ranks: usize, ops: &[&str]) {
    let like = json!({ "rows": [{
        "op": "", "backend": "", "ranks": 1, "bytes": 1, "time_us_p50": 0.1, "time_us_p99": 0.1, "algbw_gb_s": 0.1,
        "busbw_gb_s": 0.1, "wrong": 0,
    }]});
    assert_shape(found, &like, "comm");
    let rows: Vec<&Value> =
        found["rows"].as_array().unwrap().iter().filter(|row| row["backend"] == backend).collect();
    let expected: Vec<&str> = ops.iter().flat_map(|op| [*op, *op]).collect();
    assert_eq!(rows.iter().map(|row| row["op"].as_str().unwrap()).collect::<Vec<_>>(), expected);
    for row in rows {
        assert_eq!((&row["ranks"], &row["wrong"]), (&json!(ranks), &json!(0)), "{row}");
        assert!(
            row["time_us_p50"].as_f64().unwrap() > 0.0 && row["bytes"].as_u64().unwrap() >= 1000,
            "{row}"
        );
    }
}

const OPS: [&str; 5] = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"];

#[test]
fn gpus_exchange_over_nccl_and_through_each_others_memory() {
    let Some(found) = measured(3, "--backend nccl,peer --tp 3") else { return };
    assert_right(&found, "nccl", 3, &OPS);
    assert_right(&found, "peer", 3, &OPS);
}

#[test]
fn several_ranks_of_one_gpu_use_its_memory() {
    let Some(found) = measured(1, "--backend peer --op all_reduce,all_gather") else { return };
    assert_right(&found, "peer", 2, &OPS[..2]);
    for shots in ["one", "two"] {
        let found =
            measured(1, &format!("--backend peer --op all_reduce --shots {shots}")).expect("it was there");
        assert_right(&found, "peer", 2, &OPS[..1]);
    }
    anysplit("bench comm --backend shared --shots one").refused(&["--shots is of --backend peer alone"]);
}

#[test]
fn processes_of_a_job_exchange_over_nccl() {
    let Some(folder) = stand_ins::libraries() else { return };
    let command =
        "launch --nproc-per-node 2 -- anysplit bench comm --backend nccl --json --op all_reduce,all_to_all";
    let found = with(folder, 2, command).args("-b 1K -e 40K -f 40 -n 2 -w 3").json();
    assert_right(&found, "nccl", 2, &["all_reduce", "all_to_all"]);
}

#[test]
fn sums_that_give_up_their_bits_are_not_compared() {
    let Some(found) = measured(2, "--backend nccl --op all_reduce,all_gather --reduction fast") else {
        return;
    };
    let wrong: Vec<&Value> = found["rows"].as_array().unwrap().iter().map(|row| &row["wrong"]).collect();
    assert_eq!(wrong, [&Value::Null, &Value::Null, &json!(0), &json!(0)]);
    let small =
        "bench comm --json -b 1K -e 1K -n 4 -w 1 --backend shared --op all_reduce --all-reduce-dtype int8";
    let found = anysplit(small).json();
    assert_eq!(found["rows"][0]["wrong"], Value::Null);
}

#[test]
fn what_is_missing_is_said_in_one_line() {
    if cuda::probe().is_err() {
        for backend in ["nccl", "peer"] {
            let told = ["--backend", backend, "no NVIDIA driver: looked for libcuda.so.1"];
            anysplit("bench comm --backend").arg(backend).refused(&told);
        }
    }
    anysplit("bench comm --backend peer --op broadcast").refused(&["broadcast", "host memory"]);
    let Some(folder) = stand_ins::libraries() else { return };
    let few = ["NCCL wants a GPU for each, and this process may use 1"];
    with(folder, 1, "bench comm --backend nccl").refused(&few);
    let some = tempfile::tempdir().expect("a folder");
    for library in ["libcuda.so.1", "libnvrtc.so.13"] {
        symlink(folder.join(library), some.path().join(library)).expect("a link");
    }
    if cuda::nccl::Nccl::find().is_err() {
        let told = ["no libnccl", "looked for libnccl.so.2 and libnccl.so"];
        with(some.path(), 2, "bench comm --backend nccl").refused(&told);
    }
}

#[test]
fn why_memory_is_not_shared_is_told() {
    let Some(folder) = stand_ins::libraries() else { return };
    let small = "bench comm --backend peer --op all_reduce -b 1K -e 1K -n 2 -w 1";
    let told = with(folder, 2, small).env("FAKE_PEERS", "0").run().fails_with(1);
    assert!(told.contains("does not reach the memory of GPU"), "{told}");
}

#[test]
fn a_call_that_hangs_ends_the_measurement() {
    let Some(folder) = stand_ins::libraries() else { return };
    let small = "bench comm --json --backend nccl --op all_reduce -b 1K -e 1K -n 2 -w 1 --comm-timeout 2";
    let told = with(folder, 2, small).env("FAKE_NCCL_HANG", "1:40").run().fails_with(1);
    assert!(told.contains("over NCCL on rank") && told.contains("not done within 2 s"), "{told}");
}
