//! `compute-sanitizer` over small models, each family of kernels once, in steps as they are; then over the conformance suite, test by
//! test, as far as the time goes.

use super::command::{NOT_SUPPORTED, Place};
use super::parts::{skipped, tests};
use super::table::Row;

/// What is run, the most important first. All are small, and launch by launch, so that an access is told with its kernel.
const RUNS: &[(&str, &str)] = &[
    ("bf16: linear, gemm, attention", "generate --dtype bfloat16"),
    (
        "f32: exact layers and attention",
        "generate --dtype float32 --kv-cache-dtype float32 --model golden/llama",
    ),
    ("two ranks: sums, gathers, fused norms", "generate --tp 2 --comm-timeout 60"),
    ("experts", "generate --model golden/qwen3_moe"),
    ("int4, and fp8 caches", "generate --quantization int4 --kv-cache-dtype fp8"),
    ("int8", "generate --quantization int8"),
    ("fp8", "generate --quantization fp8"),
    ("fast: gemv", "generate --reduction fast"),
    ("sampling", "generate --temperature 0.8 --top-p 0.9 --top-k 40 --min-p 0.01"),
    ("windows, soft caps", "generate --model golden/gemma2"),
    ("f16", "generate --dtype float16 --model golden/opt"),
    ("compressed sums", "generate --tp 2 --all-reduce-dtype int8 --comm-timeout 60"),
];

/// Where it is if it is not on PATH.
const PLACES: [&str; 3] =
    ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer", "/opt/cuda/bin/compute-sanitizer"];

/// One of its tools over small models.
pub fn models(place: &Place, tool: &str) -> Result<Vec<Row>, String> {
    // 40 tokens: more rows than decoding has, so that prompts' kernels run too.
    let ids = (5..45).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    let runs = RUNS.iter().map(|(about, words)| {
        let mut words: Vec<&str> = words.split_whitespace().collect();
        words.extend(["--device", "cuda", "--enforce-eager", "--max-tokens", "3", "--prompt-ids", &ids]);
        (format!("{tool}: {about}"), "anysplit".to_owned(), words.into_iter().map(str::to_owned).collect())
    });
    under(place, tool, runs.collect())
}

/// Whether accesses of the conformance suite are where they may be.
pub fn suite(place: &Place) -> Result<Vec<Row>, String> {
    const TOOL: &str = "memcheck";
    let mut runs = Vec::new();
    for program in tests(place)? {
        let listed = place.run(place.command(&program).arg("--list"))?;
        let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        runs.extend(tests.map(|test| {
            let words = ["--exact", test, "--nocapture"].map(str::to_owned).to_vec();
            (format!("{TOOL}: {test}"), program.clone(), words)
        }));
    }
    under(place, TOOL, runs)
}

/// A row's name, a program, its words.
type Run = (String, String, Vec<String>);

/// A tool over programs, one by one. What there was no time for says so; what came before stands.
fn under(place: &Place, tool: &str, runs: Vec<Run>) -> Result<Vec<Row>, String> {
    let is_there = |program: &&&str| place.run(place.command(program).arg("--version")).is_ok();
    let Some(sanitizer) = PLACES.iter().find(is_there) else {
        return Ok(vec![Row::skipped(
            tool,
            "compute-sanitizer is not on PATH; any CUDA toolkit of 12 or later has it",
        )]);
    };
    let mut rows = Vec::new();
    for (name, program, words) in runs {
        if place.is_over() {
            rows.push(Row::skipped(name, "no time was left"));
            continue;
        }
        let mut command = place.command(sanitizer);
        command.args(["--tool", tool, "--error-exitcode", "9"]).arg(place.folder.join(program)).args(words);
        let ran = place.run(&mut command);
        // It is the same with all that would come.
        if ran.clone().unwrap_or_else(String::from).contains(NOT_SUPPORTED) {
            rows.push(Row::skipped(tool, format!("compute-sanitizer: {NOT_SUPPORTED}")));
            break;
        }
        // If it was cut off, it had found nothing so far that would have ended it.
        let ended = |_| match skipped(place) {
            Some(why) => Row::failed(&name, why),
            None => Row::ok(&name),
        };
        rows.push(ran.map_or_else(|missed| missed.row(&name), ended));
    }
    Ok(rows)
}
