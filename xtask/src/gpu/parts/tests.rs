use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::gpu::table::Outcome;

/// A packed folder whose programs are these scripts.
fn folder(programs: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, script) in [("anysplit", "exit 1")].iter().chain(programs) {
        program(&folder.path().join(name), script);
    }
    folder
}

/// Writes a script. Another process does: what this one has open to be written, programs that other tests start meanwhile have too,
/// and then it can't be run.
fn program(file: &Path, script: &str) {
    let write = "mkdir -p \"${1%/*}\" && printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let written = Command::new("sh").args(["-c", write, "sh"]).arg(file).arg(script).status();
    assert!(written.is_ok_and(|status| status.success()), "{}", file.display());
}

fn says(place: &Place) -> Result<Vec<Row>, String> {
    Ok(vec![Row::ok(place.run(&mut place.command("says"))?.trim())])
}

fn fails(place: &Place) -> Result<Vec<Row>, String> {
    place.run(&mut place.command("fails"))?;
    Ok(Vec::new())
}

fn hangs(place: &Place) -> Result<Vec<Row>, String> {
    place.run(&mut place.command("hangs"))?;
    Ok(Vec::new())
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

/// Does something with more and more seconds until what has to be done in them was: a busy machine may need some.
fn with_time(mut is_done: impl FnMut(u64) -> bool) {
    assert!([1, 4, 16].into_iter().any(&mut is_done), "not even in 16 s");
}

#[test]
fn a_part_that_fails_or_hangs_is_nothing_to_the_others() {
    let left = "sleep 300 & echo $! > started; mv started left; wait";
    let folder =
        folder(&[("says", "echo fine"), ("fails", "echo 'error: no luck' >&2; exit 3"), ("hangs", left)]);
    let failed = Outcome::Failed("fails: exit status: 3: error: no luck".into());
    with_time(|seconds| {
        let parts = [part("fails", 60, fails), part("hangs", seconds, hangs), part("says", 60, says)];
        let report = run_of(&parts, folder.path(), None, 200).expect("a report");
        let hung = Outcome::Failed(format!("hangs took longer than the {seconds} s of this part"));
        assert_eq!(results(&report), [("fails", &failed), ("hangs", &hung), ("fine", &Outcome::Ok)]);
        assert!(!report.is_good() && report.seconds < 30.0);
        folder.path().join("left").exists()
    });
    // What it started has ended too, as soon as the system has done what it was told.
    let left = fs::read_to_string(folder.path().join("left")).expect("a number");
    let stat = || fs::read_to_string(format!("/proc/{}/stat", left.trim())).unwrap_or_default();
    let began = Instant::now();
    while !(stat().is_empty() || stat().contains(") Z ")) {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", stat());
        std::thread::yield_now();
    }
}

#[test]
fn what_is_left_of_the_time_is_what_parts_get() {
    let folder = folder(&[("says", "echo fine"), ("hangs", "sleep 300")]);
    let parts = [part("hangs", 100, hangs), part("says", 9, says)];
    let report = run_of(&parts, folder.path(), None, 1).expect("a report");
    let late = Outcome::Skipped("hangs took longer than the 1 s of this part".into());
    assert_eq!(results(&report), [("hangs", &late), ("says", &Outcome::Skipped("no time was left".into()))]);
    // What had all of its time hangs.
    let report = run_of(&[part("hangs", 1, hangs)], folder.path(), None, 60).expect("a report");
    let hung = Outcome::Failed("hangs took longer than the 1 s of this part".into());
    assert_eq!(results(&report), [("hangs", &hung)]);
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
  bench\ limits*) echo '{{"rows":[{{"copy_gb_s":4000,"read_gb_s":4100,"bf16_tflop_s":400,"bf16_library_tflop_s":800,"bf16_library_missing":null,"launch_us":2.5,"graph_launch_us":1.2}}]}}' ;;
  bench\ decode*repeats\ 3*tokens\ 4096*fast*gen-len\ 64*) echo '{{"rows":[{{"batch":1,"prompt":4096,"prefill_tokens_per_s":40000,"decode_tokens_per_s":230,
    "decode_bandwidth_fraction":0.8,"prefill_flops_fraction":1.42,"fma_gflop_s":400000}}]}}' ;;
  bench\ decode*repeats\ 3*tokens\ 8192*1,64*) echo '{{"rows":[{{"batch":1,"prompt":128,"decode_tokens_per_s":200,"decode_roofline_fraction":0.9,
    "decode_bandwidth_fraction":0.74,"load_s":9}},{{"batch":64,"prompt":128,"decode_tokens_per_s":5000}}]}}' ;;
  bench\ decode*repeats\ 3*tokens\ 4096*gen-len\ 64*) echo '{{"rows":[{{"batch":1,"prompt":4096,"prefill_tokens_per_s":20000,"decode_tokens_per_s":190,
    "decode_bandwidth_fraction":0.7,"prefill_flops_fraction":0.9,"fma_gflop_s":400000}}]}}' ;;
  bench\ comm*all_gather*) echo '{{"rows":[{{"op":"all_gather","time_us_p50":9,"wrong":0}},{{"op":"reduce_scatter","time_us_p50":9,"wrong":0}},
    {{"op":"all_to_all","time_us_p50":9,"wrong":0}},{{"op":"send_recv","time_us_p50":9,"wrong":0}}]}}' ;;
  bench\ comm*) echo '{{"rows":[{{"time_us_p50":4.5,"wrong":0}}]}}' ;;
  score*) echo '{{"logprobs":[null,-1.25]}}' ;;
  generate*max-model-len*) echo '{{"stats":{{"load_s":1.5}}}}' ;;
  serve*) trap 'kill $!; exit 0' TERM; echo "listening on http://$(cat address) for all" >&2; sleep 300 & wait ;;
  generate*trace*) for last; do :; done; cp trace.json "$last"; cat stats.json ;;
  generate*clients.txt) awk 'BEGIN {{ printf "[" ; for (i = 0; i < 8; i++) printf "%s{{\"text\":\" ships\"}}", i ? "," : "" ; print "]" }}' ;;
  generate*prompt-file*) awk 'BEGIN {{ printf "[" ; for (i = 0; i < 33; i++) printf "%s{{\"token_ids\":[7,8]}}", i ? "," : "" ; print "]" }}' ;;
  generate*) echo '{{"token_ids":[7,8]}}' ;;
  launch*score*) echo '{{"logprobs":[null,-1.25]}}' ;;
  launch*generate*) echo '{{"token_ids":[7,8]}}' ;;
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
    let parts = ["qkv", "attention", "output", "ffn", "head"];
    let steps: Vec<Value> = parts.iter().map(|op| json!({ "op": op, "ms": 0.15 })).collect();
    let by_host = json!({ "ttft_ms": 1.0, "decode_tokens_per_s": 1000.0, "breakdown": steps, "prefill_breakdown": steps });
    write("stats.json", &json!({ "stats": by_host }));
    let slices: Vec<Value> = [0, 1]
        .iter()
        .flat_map(|rank| parts.map(|name| json!({ "pid": rank, "ph": "X", "name": name, "dur": 2.5 })))
        .collect();
    write("trace.json", &json!({ "traceEvents": slices }));
    fs::write(folder.path().join("address"), server(" ships").to_string()).expect("a file");
    let report = all_of(folder.path(), (!only.is_empty()).then_some(only), 120).expect("a report");
    (folder, report)
}

/// The address of a server that completes every prompt with the same text, as long as the tests run.
fn server(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = move |mut stream: TcpStream| -> std::io::Result<()> {
        // The body is one line, which ends in a brace.
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            let mut some = [0; 4096];
            let count = stream.read(&mut some)?;
            request.extend(&some[..count]);
        }
        let body = json!({ "choices": [{ "text": text }] }).to_string();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| answer(stream).expect("an answer"))
    });
    address
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
    // 90 % of what mma.sync can do are 45 % of what this GPU can.
    assert_eq!(met("prefill of 4096, of cuBLASLt"), Some(false));
    assert_eq!(met("fast: prefill of 4096, of cuBLASLt"), Some(true));
    let figure = |part: &str| report.rows.iter().find(|row| row.part == part).and_then(|row| row.figure);
    assert_eq!(figure("prefill of 4096, of cuBLASLt"), Some((45.0, "%")));
    assert_eq!(
        (figure("prefill of 4096, of mma.sync"), met("prefill of 4096, of mma.sync")),
        (Some((90.0, "%")), None)
    );
    let behind = ["decode behind 4096", "fast: decode behind 4096"].map(figure);
    assert_eq!(behind, [Some((190.0, "tokens/s")), Some((230.0, "tokens/s"))]);
    assert_eq!((met("splits"), met("send_recv of 1 MB, 3 ranks")), (Some(true), None));
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
fn without_nvidias_library_nobody_judges_a_prompts_speed() {
    let missing = "case $words in bench\\ limits*) echo '{\"rows\":[{\"copy_gb_s\":4000,\"read_gb_s\":4100,\"bf16_tflop_s\":400,
        \"bf16_library_tflop_s\":null,\"bf16_library_missing\":\"no libcublasLt\",\"launch_us\":2,\"graph_launch_us\":1}]}'; exit 0 ;; esac";
    let (_folder, report) = real(missing, &["limits", "prefill"]);
    let row = |part: &str| report.rows.iter().find(|row| row.part == part).expect("a row");
    assert!(report.is_good(), "{}", report.table());
    assert_eq!(row("bf16 by cuBLASLt").result, Outcome::Skipped("no libcublasLt".into()));
    let prefill = row("prefill of 4096, of cuBLASLt");
    assert_eq!((prefill.figure, prefill.is_met(), prefill.target), (None, None, Some(Target::AtLeast(55.0))));
    assert!(
        matches!(&prefill.result, Outcome::Skipped(why) if why.contains("can't be judged")),
        "{prefill:?}"
    );
    assert_eq!(row("prefill of 4096, of mma.sync").figure, Some((90.0, "%")));
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
    let other = "case $words in generate*clients.txt) echo '[{\"text\":\"a\"}]'; exit 0 ;; esac";
    assert_eq!(failed(other, "serve"), ["serve"], "too few texts");
    let other = "case $words in generate*clients.txt) echo '[{\"text\":\" ships\"},{\"text\":\" ships\"},{\"text\":\" boats\"},\
        {\"text\":\" ships\"},{\"text\":\" ships\"},{\"text\":\" ships\"},{\"text\":\" ships\"},{\"text\":\" ships\"}]'; exit 0 ;; esac";
    assert_eq!(failed(other, "serve"), ["serve: 8 clients at a time"]);
    assert_eq!(failed("case $words in serve*) echo 'error: no GPU' >&2; exit 1 ;; esac", "serve"), ["serve"]);
    let experts = "case $words in score*tp\\ 2\\ --ep) echo '{\"logprobs\":[null,-1]}'; exit 0 ;; esac";
    assert_eq!(failed(experts, "splits"), ["splits: experts: tp 2, ep"]);
    let processes = "case $words in launch*score*) echo 'error: no peer' >&2; exit 1 ;; esac";
    assert_eq!(failed(processes, "splits"), ["splits: rows, positions: two processes"]);
    let gathered = "case $words in bench\\ comm*all_gather*) echo '{\"rows\":[]}'; exit 0 ;; esac";
    assert_eq!(failed(gathered, "comm").len(), 4);
    let longer = "sed -i s/0.15/0.25/g stats.json";
    assert_eq!(failed(longer, "seeing"), ["seeing: prefill, on the GPU", "seeing: decode, on the GPU"]);
    let lacks = "sed -i s/attention/other/ trace.json";
    assert_eq!(failed(lacks, "seeing"), ["seeing: trace"]);
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
    program(&folder.path().join("anysplit"), "exit 1");
    assert!(!one("decode").is_good());
    let why = "there is no figure of `decode` to compare with: run it with `--only decode,eager,compiled`";
    assert_eq!(one("eager").rows[0].result, Outcome::Failed(why.into()));
}

type Outcomes = Vec<(String, Outcome)>;

/// What a part makes of a program that takes its time where the words fit, when the others were in time.
fn late(where_: &str, only: &str, were_in_time: impl Fn(&Outcomes) -> bool) -> Outcomes {
    let slow = format!("case $words in {where_}) sleep 300 ;; esac");
    let (folder, _) = real(&slow, &["limits"]);
    let part = PARTS.iter().find(|part| part.name == only).expect("a part");
    let mut rows = Vec::new();
    with_time(|seconds| {
        let limit = Duration::from_secs(seconds);
        let place = Place { folder: folder.path().to_owned(), deadline: Instant::now() + limit, limit };
        let found = (part.run)(&place).expect("rows");
        rows = found.into_iter().map(|row| (row.part, row.result)).collect();
        were_in_time(&rows)
    });
    rows
}

#[test]
fn what_there_was_no_time_for_is_neither_other_bits_nor_a_failure() {
    let is_ok = |row: &(String, Outcome)| row.1 == Outcome::Ok;
    let rows = late("score*tp\\ 3*", "bits", |rows| rows.iter().any(is_ok));
    let why = "not measured: 6 of 7 ways had no time";
    assert_eq!(rows[0], ("bits".into(), Outcome::Skipped(why.into())));
    assert_eq!(rows[1], ("bits: tp 2".into(), Outcome::Ok));
    let is_late = |row: &(String, Outcome)| matches!(&row.1, Outcome::Skipped(why) if !why.is_empty());
    assert!(rows.len() == 8 && rows[2..].iter().all(is_late), "{rows:?}");
    // Without anything to compare with, nothing is known of any way.
    let rows = late("score*", "bits", |_| true);
    assert!(rows.len() == 8 && rows.iter().all(is_late), "{rows:?}");
    // Of goldens, those are told that there was no time for; others are what they are.
    let only_one = |rows: &Outcomes| rows.iter().filter(|row| !is_ok(row)).count() == 1;
    let rows = late("score*opt*", "goldens", only_one);
    let not_ok: Vec<_> = rows.iter().filter(|row| !is_ok(row)).collect();
    assert!(not_ok.len() == 1 && not_ok[0].0 == "golden opt" && is_late(not_ok[0]), "{rows:?}");
}

#[test]
fn other_bits_are_told_also_if_something_had_no_time() {
    let (_folder, report) = real(
        "case $words in score*tp\\ 2*) echo '{\"logprobs\":[null,-1]}'; exit 0 ;; score*tp\\ 3*) exit 7 ;; esac",
        &["bits"],
    );
    assert_eq!(report.rows[0].figure, Some((2.0, "ways with other bits")), "{}", report.table());
    let (_folder, report) = real("case $words in score*tp\\ 3*) exit 7 ;; esac", &["bits"]);
    let why = "not measured: 0 of 7 ways had no time, and 1 failed";
    assert_eq!((report.rows[0].figure, report.is_good()), (None, false));
    assert_eq!(report.rows[0].result, Outcome::Skipped(why.into()));
}

/// The outcomes of one of the sanitizer's tools that does this, by their names.
fn sanitized(script: &str, milliseconds: u64) -> Vec<(String, Outcome)> {
    let folder = folder(&[("compute-sanitizer", script)]);
    let limit = Duration::from_millis(milliseconds);
    let place = Place { folder: folder.path().to_owned(), deadline: Instant::now() + limit, limit };
    let rows = sanitize::models(&place, "memcheck").expect("rows");
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

    with_time(|seconds| {
        let slow = sanitized("case $* in *version*) exit 0 ;; esac; sleep 300", seconds * 1000);
        assert!(slow.iter().all(|(_, result)| matches!(result, Outcome::Skipped(_))), "{slow:?}");
        matches!(&slow[0].1, Outcome::Skipped(why) if why.contains("took longer"))
    });

    for end in ["0", "1"] {
        let not = format!(
            "case $* in *version*) exit 0 ;; esac; echo '========= Error: Device not supported. See'; exit {end}"
        );
        let why = Outcome::Skipped("compute-sanitizer: Device not supported".into());
        assert_eq!(sanitized(&not, 60_000), [("memcheck".to_owned(), why)]);
    }
}

#[test]
fn a_part_that_is_alone_has_all_the_time() {
    let folder = folder(&[("hangs", "sleep 2")]);
    let parts = [part("hangs", 1, hangs), part("says", 9, says)];
    let report = run_of(&parts, folder.path(), Some(&["hangs"]), 60).expect("a report");
    assert_eq!(results(&report), []);
    assert!(report.is_good());
}

#[test]
fn each_test_of_the_suite_is_sanitized_by_itself() {
    let folder = folder(&[
        (
            "tests/gpu",
            "case $* in --list) printf 'rows: test\\nlogits: test\\n\\n2 tests, 0 benchmarks\\n' ;; *) exit 7 ;; esac",
        ),
        (
            "compute-sanitizer",
            "case $* in *logits*) echo '========= Invalid __global__ read of size 4 bytes'; exit 9 ;; esac",
        ),
    ]);
    let report = run_of(PARTS, folder.path(), Some(&["memcheck-suite"]), 60).expect("a report");
    let found =
        "compute-sanitizer: exit status: 9: ========= Invalid __global__ read of size 4 bytes".to_owned();
    let expected = [("memcheck: rows", &Outcome::Ok), ("memcheck: logits", &Outcome::Failed(found))];
    assert_eq!(results(&report), expected);
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
