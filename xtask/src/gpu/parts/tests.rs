use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::gpu::table::Outcome;

/// A packed folder whose programs are these scripts.
fn folder(programs: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, script) in [("anysplit", "exit 1")].iter().chain(programs) {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("it may be run");
    }
    folder
}

fn says(place: &Place) -> Result<Vec<Row>, String> {
    place.run(&mut place.command("says")).map(|said| vec![Row::ok(said.trim())])
}

fn fails(place: &Place) -> Result<Vec<Row>, String> {
    place.run(&mut place.command("fails")).map(|_| Vec::new())
}

fn hangs(place: &Place) -> Result<Vec<Row>, String> {
    place.run(&mut place.command("hangs")).map(|_| Vec::new())
}

fn part(name: &'static str, limit: u64, run: fn(&Place) -> Result<Vec<Row>, String>) -> Part {
    Part { name, about: "", limit, run, targets: &[] }
}

/// A run of which nothing is kept.
fn run_of(parts: &[Part], folder: &Path, only: Option<&[&str]>, seconds: u64) -> Result<Report, String> {
    run(parts, folder, only, Duration::from_secs(seconds), &|_| Ok(()))
}

fn all_of(folder: &Path, only: Option<&[&str]>, seconds: u64) -> Result<Report, String> {
    run_of(PARTS, folder, only, seconds)
}

fn results(report: &Report) -> Vec<(&str, &Outcome)> {
    report.rows.iter().map(|row| (row.part.as_str(), &row.result)).collect()
}

#[test]
fn a_part_that_fails_or_hangs_is_nothing_to_the_others() {
    let left = "sleep 300 & echo $! > left; wait";
    let folder =
        folder(&[("says", "echo fine"), ("fails", "echo 'error: no luck' >&2; exit 3"), ("hangs", left)]);
    let parts = [part("fails", 9, fails), part("hangs", 1, hangs), part("says", 9, says)];
    let report = run_of(&parts, folder.path(), None, 60).expect("a report");
    let failed = Outcome::Failed("fails: exit status: 3: error: no luck".into());
    let hung = Outcome::Failed("hangs took longer than the 1 s of this part".into());
    assert_eq!(results(&report), [("fails", &failed), ("hangs", &hung), ("fine", &Outcome::Ok)]);
    assert!(!report.is_good() && report.seconds < 30.0);
    // What it started has ended too.
    let left = fs::read_to_string(folder.path().join("left")).expect("a number");
    let stat = fs::read_to_string(format!("/proc/{}/stat", left.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}

#[test]
fn what_is_left_of_the_time_is_what_parts_get() {
    let folder = folder(&[("says", "echo fine"), ("hangs", "sleep 300")]);
    let parts = [part("hangs", 100, hangs), part("says", 9, says)];
    let report = run_of(&parts, folder.path(), None, 1).expect("a report");
    let hung = Outcome::Failed("hangs took longer than the 1 s of this part".into());
    assert_eq!(results(&report), [("hangs", &hung), ("says", &Outcome::Skipped("no time was left".into()))]);
    let one = run_of(&parts, folder.path(), Some(&["says"]), 60).expect("a report");
    assert_eq!(results(&one), [("fine", &Outcome::Ok)]);
    let unknown = run_of(&parts, folder.path(), Some(&["sings"]), 60).err();
    assert_eq!(unknown.as_deref(), Some("gpu: there is no part \"sings\"; there are hangs, says"));
}

#[test]
fn the_parts_that_matter_most_fit_in_a_run() {
    // What needs programs that are seldom there comes last.
    let behind = PARTS.iter().position(|part| part.name == "eager").expect("a part");
    assert!(PARTS[..behind].iter().map(|part| part.limit).sum::<u64>() <= crate::gpu::SECONDS);
    assert!(PARTS.iter().all(|part| part.limit <= 150));
    let usage = crate::gpu::usage();
    assert!(PARTS.iter().all(|part| usage.contains(&format!(" {} ", part.name))), "{usage}");
}

#[test]
fn what_is_there_is_kept_after_each_part_and_targets_that_were_not_measured_are_told() {
    let folder = folder(&[("says", "echo fine"), ("fails", "exit 3")]);
    let target: &[(&str, Target)] = &[("speed", Target::AtLeast(3.0))];
    let parts = [part("says", 9, says), Part { targets: target, ..part("fails", 9, fails) }];
    let kept = std::cell::RefCell::new(Vec::new());
    let keep = |report: &Report| {
        kept.borrow_mut().push(report.rows.len());
        Ok(())
    };
    let report = run(&parts, folder.path(), None, Duration::from_secs(60), &keep).expect("a report");
    assert_eq!(*kept.borrow(), [1, 3]);
    let last = report.rows.last().expect("rows");
    assert_eq!((last.part.as_str(), last.is_met()), ("speed", None));
    assert!(report.table().contains("not measured"), "{}", report.table());
    let full = |_: &Report| Err("no room".to_owned());
    assert_eq!(
        run(&parts, folder.path(), None, Duration::from_secs(60), &full).err(),
        Some("no room".into())
    );
}

/// A command line's program that computes nothing and tells what it should, but for what `wrong` says.
fn anysplit(wrong: &str) -> String {
    format!(
        r#"words="$*"
{wrong}
case $words in
  bench\ limits*) echo '{{"rows":[{{"copy_gb_s":4000,"read_gb_s":4100,"bf16_tflop_s":600,"launch_us":2.5,"graph_launch_us":1.2}}]}}' ;;
  bench\ decode*repeats\ 3*tokens\ 4096*fast*) echo '{{"rows":[{{"batch":1,"prompt":4096,"decode_tokens_per_s":230,"decode_bandwidth_fraction":0.8,"prefill_flops_fraction":0.71}}]}}' ;;
  bench\ decode*repeats\ 3*tokens\ 8192*1,64*) echo '{{"rows":[{{"batch":1,"prompt":128,"decode_tokens_per_s":200,"decode_roofline_fraction":0.9,
    "decode_bandwidth_fraction":0.74,"load_s":9}},{{"batch":64,"prompt":128,"decode_tokens_per_s":5000}}]}}' ;;
  bench\ decode*repeats\ 3*tokens\ 4096*) echo '{{"rows":[{{"batch":1,"prompt":4096,"prefill_tokens_per_s":20000,"prefill_flops_fraction":0.5}}]}}' ;;
  bench\ comm*) echo '{{"rows":[{{"time_us_p50":4.5,"wrong":0}}]}}' ;;
  score*) echo '{{"logprobs":[null,-1.25]}}' ;;
  generate*max-model-len*) echo '{{"stats":{{"load_s":1.5}}}}' ;;
  generate*prompt-file*) awk 'BEGIN {{ printf "[" ; for (i = 0; i < 33; i++) printf "%s{{\"token_ids\":[7,8]}}", i ? "," : "" ; print "]" }}' ;;
  generate*) echo '{{"token_ids":[7,8]}}' ;;
esac"#
    )
}

/// What the real parts make of such a program.
fn real(wrong: &str, only: &[&str]) -> (TempDir, Report) {
    let golden =
        json!({ "prompt_token_ids": [1, 2], "logprobs": [null, -1.2501], "greedy_token_ids": [7, 8] });
    let folder = folder(&[
        ("anysplit", &anysplit(wrong)),
        ("golden/one/golden.json", ""),
        ("golden/one/config.json", ""),
        ("shapes/to-load.json", ""),
        ("tests/gpu", "echo 'test bits ... ok'"),
        ("compute-sanitizer", "exit 0"),
        (
            "python3",
            "case $* in *eager*) echo '{\"decode_tokens_per_s\":50}' ;; *way*) echo '{\"decode_tokens_per_s\":160}' ;; esac",
        ),
        (
            "cuda_bench",
            "echo '{\"rows\":[{\"name\":\"qkv\",\"kind\":\"gemv\",\"of_copy\":0.9},{\"name\":\"gemm\",\"kind\":\"gemm\",\"of_bf16\":0.6}]}'",
        ),
    ]);
    let shape = json!({ "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 32 });
    let write = |name: &str, value: &Value| {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, value.to_string()).expect("a file");
    };
    write("golden/one/golden.json", &golden);
    write("golden/one/config.json", &json!({}));
    write("shapes/to-load.json", &shape);
    for name in ["llama31", "gemma2", "qwen3_moe", "opt"] {
        write(&format!("golden/{name}/golden.json"), &golden);
        write(&format!("golden/{name}/config.json"), &json!({}));
    }
    let report = all_of(folder.path(), (!only.is_empty()).then_some(only), 120).expect("a report");
    (folder, report)
}

#[test]
fn every_part_tells_its_figures_and_targets() {
    let (folder, report) = real("", &[]);
    assert!(report.is_good(), "{}", report.table());
    let met = |part: &str| {
        let row = report
            .rows
            .iter()
            .find(|row| row.part == part)
            .unwrap_or_else(|| panic!("no {part}: {}", report.table()));
        row.is_met()
    };
    assert_eq!(met("decode, batch 1, of copying"), Some(false), "of all limits it is nearer to one");
    assert_eq!(met("batch 64 beside batch 1"), Some(false), "25 times are not 30");
    assert_eq!(met("prefill of 4096, of mma.sync"), Some(false));
    assert_eq!(met("fast: prefill of 4096, of mma.sync"), Some(true));
    assert_eq!((met("slowest gemv"), met("gemm")), (Some(true), None));
    // A few kB in what counts as a millisecond at least.
    assert_eq!((met("bits"), met("weights from page cache")), (Some(true), Some(false)));
    assert!(!folder.path().join("shapes/loaded").exists(), "what was written to be loaded is gone");
    assert_eq!(
        (met("beside transformers, eager"), met("beside transformers, compiled")),
        (Some(true), Some(false))
    );
    assert_eq!(met("start, kernels cached"), Some(true));
    assert_eq!((met("bits: batch 33"), met("memcheck: int8"), met("goldens")), (None, None, None));
}

#[test]
fn wrong_results_are_failures() {
    let failed = |wrong: &str, only: &str| -> Vec<String> {
        let (_folder, report) = real(wrong, &[only]);
        let is_failed = |row: &&Row| matches!(row.result, Outcome::Failed(_));
        report.rows.iter().filter(is_failed).map(|row| row.part.clone()).collect()
    };
    let other = "case $words in score*tp\\ 3*) echo '{\"logprobs\":[null,-1.2500001]}'; exit 0 ;; esac";
    assert_eq!(failed(other, "bits"), ["bits: tp 3"]);
    let tokens = "case $words in generate*eager*) echo '{\"token_ids\":[7,9]}'; exit 0 ;; esac";
    assert_eq!(
        failed(tokens, "bits"),
        ["bits: without graphs", "bits: in chunks of 64, tp 2, without graphs"]
    );
    let far = "case $words in score*) echo '{\"logprobs\":[null,-1.26]}'; exit 0 ;; esac";
    assert!(failed(far, "goldens").contains(&"golden one".to_owned()));
    let unlike =
        "case $words in score*cuda*int4*opt*) echo '{\"logprobs\":[null,-1.2500001]}'; exit 0 ;; esac";
    assert_eq!(failed(unlike, "formats"), ["format: int4"]);
    let sums = "case $words in bench\\ comm*tp\\ 4*) echo '{\"rows\":[{\"time_us_p50\":4,\"wrong\":1}]}'; exit 0 ;; esac";
    assert_eq!(
        failed(sums, "comm"),
        ["all-reduce of 16 KB, 4 ranks, one shot", "all-reduce of 16 KB, 4 ranks, two shot"]
    );
    let nothing = "case $words in bench\\ decode*) echo '{\"rows\":[]}'; exit 0 ;; esac";
    assert_eq!(failed(nothing, "decode"), ["decode"]);
}

#[test]
fn some_parts_compare_with_what_a_whole_run_noted_but_not_with_what_failed_since() {
    let (folder, report) = real("", &[]);
    let one = |only: &str| all_of(folder.path(), Some(&[only]), 60).expect("a report");
    let ratio = |report: &Report| report.rows.iter().find(|row| row.part.ends_with("eager")).cloned();
    let (whole, alone) = (ratio(&report).expect("a row"), ratio(&one("eager")).expect("a row"));
    assert_eq!((whole.figure, &whole), (Some((4.0, "times")), &alone));
    fs::write(folder.path().join("anysplit"), "#!/bin/sh\nexit 1\n").expect("a script");
    assert!(!one("decode").is_good());
    let why = "there is no figure of `decode` to compare with: run it with `--only decode,eager,compiled`";
    assert_eq!(one("eager").rows[0].result, Outcome::Failed(why.into()));
}

/// The outcomes of one of the sanitizer's tools that does this, by their names.
fn sanitized(script: &str, milliseconds: u64) -> Vec<(String, Outcome)> {
    let folder = folder(&[("compute-sanitizer", script)]);
    let limit = Duration::from_millis(milliseconds);
    let place = Place { folder: folder.path().to_owned(), deadline: Instant::now() + limit, limit };
    let rows = sanitize::tool(&place, "memcheck").expect("rows");
    rows.into_iter().map(|row| (row.part, row.result)).collect()
}

#[test]
fn what_a_sanitizer_finds_is_told_and_what_it_was_too_slow_for_is_no_failure() {
    let finds = "case $* in *version*) exit 0 ;; *int8*) ;; *) exit 0 ;; esac
echo '========= RACECHECK SUMMARY: 0 hazards displayed'
echo '========= Invalid __shared__ write of size 4 bytes'
echo 'error: the GPU failed' >&2; exit 9";
    let found =
        "compute-sanitizer: exit status: 9: ========= Invalid __shared__ write of size 4 bytes".to_owned();
    let rows = sanitized(finds, 60_000);
    let failed: Vec<_> = rows.iter().filter(|(_, result)| *result != Outcome::Ok).collect();
    let expected = ["memcheck: int8", "memcheck: compressed sums"]
        .map(|name| (name.to_owned(), Outcome::Failed(found.clone())));
    assert_eq!(failed, expected.iter().collect::<Vec<_>>());

    let slow = sanitized("case $* in *version*) exit 0 ;; esac; sleep 300", 1500);
    assert!(slow.iter().all(|(_, result)| matches!(result, Outcome::Skipped(_))), "{slow:?}");
    assert!(matches!(&slow[0].1, Outcome::Skipped(why) if why.contains("took longer")), "{slow:?}");

    for end in ["0", "1"] {
        let not = format!(
            "case $* in *version*) exit 0 ;; esac; echo '========= Error: Device not supported. See'; exit {end}"
        );
        let why = Outcome::Skipped("compute-sanitizer: Device not supported".into());
        assert_eq!(sanitized(&not, 60_000), [("memcheck".to_owned(), why)]);
    }
}

#[test]
fn tests_without_a_gpu_are_no_tests_of_one() {
    let folder = folder(&[("tests/gpu", "echo 'skipped: no NVIDIA driver' >&2; echo 'test bits ... ok'")]);
    let report = all_of(folder.path(), Some(&["conformance"]), 60).expect("a report");
    assert_eq!(results(&report), [("tests/gpu", &Outcome::Failed("no NVIDIA driver".into()))]);
}

#[test]
fn afolder_that_nobody_packed_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = all_of(folder.path(), None, 9).err().expect("there is nothing");
    assert!(error.ends_with("has no program `anysplit`; `cargo xtask gpu pack` makes it"), "{error}");
}
