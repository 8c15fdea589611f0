//! `bench serve` against a server whose every word is known.

use std::collections::HashSet;
use std::io;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::checkpoints::Copy;
use crate::child::{Anysplit, anysplit};
use crate::scripted_server::{Out, Seen, Server};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Answers with as many tokens as were asked for.
fn obey(_: usize, seen: &Seen, out: &mut Out) -> io::Result<()> {
    match seen.body["max_tokens"].as_u64() {
        Some(tokens) => out.completion(prompt(seen).len(), tokens as usize),
        None => out.json(404, &json!({ "error": { "message": "no such route" } })),
    }
}

/// Token ids that were sent.
fn prompt(seen: &Seen) -> Vec<u64> {
    seen.body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// A small run against a server.
fn bench(server: &Server, arguments: &str) -> Anysplit {
    anysplit("bench serve --base-url").arg(server.url()).args(arguments)
}

/// The value that it prints, and what it warns of.
fn with_warning(run: Anysplit) -> (Value, String) {
    let (stdout, stderr) = run.run().succeeds();
    (serde_json::from_str(&stdout).unwrap(), stderr)
}

#[test]
fn tokens_are_counted_and_requests_are_as_was_asked() {
    let server = Server::start(obey);
    let found = bench(&server, "--num-prompts 6 --random-input-len 12 --random-output-len 5 --ignore-eos")
        .args("--json --vocab-size 300")
        .arg("--extra-body={\"top_p\":0.5,\"temperature\":0.25}")
        .json();
    let counts = ["completed", "failed", "total_input_tokens", "total_output_tokens"].map(|key| &found[key]);
    assert_eq!(counts, [&json!(6), &json!(0), &json!(72), &json!(30)]);
    let seen = server.seen(COMPLETIONS);
    assert_eq!(seen.len(), 6);
    for seen in &seen {
        assert_eq!(prompt(seen).len(), 12);
        assert!(prompt(seen).iter().all(|id| (100..300).contains(id)), "{seen:?}");
        let mut body = seen.body.clone();
        body.as_object_mut().unwrap().remove("prompt");
        let expected = json!({ "model": "tiny", "max_tokens": 5, "temperature": 0.25, "stream": true,
            "stream_options": { "include_usage": true }, "ignore_eos": true, "top_p": 0.5 });
        assert_eq!(body, expected);
        assert!(seen.headers.iter().any(|line| line.eq_ignore_ascii_case("content-type: application/json")));
        let is_host = |line: &String| line.to_ascii_lowercase().starts_with("host: 127.0.0.1:");
        assert!(seen.headers.iter().any(is_host));
    }
}

#[test]
fn a_seed_says_what_is_asked_and_in_which_order() {
    let prompts = |more: &str| {
        let server = Server::start(obey);
        bench(
            &server,
            "--num-prompts 8 --max-concurrency 1 --random-output-len 2 --random-input-len 9 --json",
        )
        .args("--random-range-ratio 0.5")
        .args(more)
        .json();
        let bodies = server.seen(COMPLETIONS).into_iter().map(|seen| seen.body.to_string());
        bodies.collect::<Vec<_>>()
    };
    let first = prompts("--seed 3");
    assert_eq!(first, prompts("--seed 3"));
    assert_ne!(first, prompts("--seed 4"));
    // When they are sent is another matter than what is sent.
    assert_eq!(first, prompts("--seed 3 --request-rate 1000 --burstiness 0.5"));
    let shared = "--seed 3 --dataset-name prefix_repetition --num-prefixes 2 --prefix-len 6 --suffix-len 3";
    assert_eq!(prompts(shared), prompts(shared));
}

#[test]
fn no_more_requests_run_than_are_allowed_and_as_many_do() {
    let barrier = Arc::new(Barrier::new(3));
    let server = Server::start(move |_, seen, out| {
        // Nobody is answered before three are there.
        barrier.wait();
        obey(0, seen, out)
    });
    let found = bench(&server, "--num-prompts 12 --max-concurrency 3 --random-input-len 4 --json")
        .args("--random-output-len 2 --vocab-size 500")
        .json();
    assert_eq!((&found["completed"], &found["max_concurrent_requests"]), (&json!(12), &json!(3)));
    assert_eq!(server.most_running(), 3);
    // The first was for the question for the model.
    let connections = server.seen(COMPLETIONS).iter().map(|seen| seen.connection).max().unwrap() + 1;
    assert!(connections < 12, "connections are used again, {connections} were made");
}

#[test]
fn a_thousand_requests_run_at_a_time() {
    // Nobody is answered before all are there.
    let barrier = Arc::new(Barrier::new(1000));
    let server = Server::start(move |_, seen, out| {
        barrier.wait();
        obey(0, seen, out)
    });
    let run = bench(&server, "--num-prompts 1000 --random-input-len 4 --random-output-len 2 --json");
    // A process may have so few open files, unless it asks for more.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""]);
    let found = run.args("--vocab-size 500").by_way_of(limited).json();
    assert_eq!((&found["completed"], &found["max_concurrent_requests"]), (&json!(1000), &json!(1000)));
}

#[test]
fn requests_are_not_sent_before_they_are_due() {
    let server = Server::start(obey);
    let found = bench(&server, "--num-prompts 10 --request-rate 50 --burstiness inf --save-detailed --json")
        .args("--random-input-len 4 --random-output-len 2 --vocab-size 500")
        .json();
    let starts = found["start_times"].as_array().unwrap();
    for (i, start) in starts.iter().enumerate() {
        assert!(start.as_f64().unwrap() >= (i + 1) as f64 / 50.0 - 1e-9, "request {i}: {start}");
    }
    assert_eq!((&found["request_rate"], &found["burstiness"]), (&json!(50.0), &json!("inf")));
}

#[test]
fn results_are_saved_with_vllms_keys() {
    let (server, dir) = (Server::start(obey), Copy::empty());
    let dir = dir.path().join("new");
    let arguments = "--num-prompts 3 --random-input-len 4 --random-output-len 3 --save-result --json";
    let saving = bench(&server, arguments)
        .args("--metric-percentiles 50,99.9 --result-filename a.json --save-detailed --result-dir")
        .arg(&dir);
    let (found, told) = saving.run().succeeds();
    assert!(told.contains(dir.join("a.json").to_str().unwrap()), "{told}");
    let found: Value = serde_json::from_str(&found).unwrap();
    let saved: Value = serde_json::from_slice(&std::fs::read(dir.join("a.json")).unwrap()).unwrap();
    assert_eq!(saved, found);
    let keys: Vec<&str> = saved.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "date backend model_id dataset_name seed num_prompts request_rate burstiness max_concurrency interrupted \
        duration completed failed total_input_tokens total_output_tokens request_throughput request_goodput \
        output_throughput total_token_throughput max_output_tokens_per_s max_concurrent_requests \
        mean_ttft_ms median_ttft_ms std_ttft_ms p50_ttft_ms p99.9_ttft_ms \
        mean_tpot_ms median_tpot_ms std_tpot_ms p50_tpot_ms p99.9_tpot_ms \
        mean_itl_ms median_itl_ms std_itl_ms p50_itl_ms p99.9_itl_ms \
        mean_e2el_ms median_e2el_ms std_e2el_ms p50_e2el_ms p99.9_e2el_ms \
        input_lens output_lens start_times ttfts itls errors";
    assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(saved["median_ttft_ms"], saved["p50_ttft_ms"]);
    assert_eq!((&saved["input_lens"], &saved["output_lens"]), (&json!([4, 4, 4]), &json!([3, 3, 3])));
    let itls: Vec<usize> =
        saved["itls"].as_array().unwrap().iter().map(|i| i.as_array().unwrap().len()).collect();
    assert_eq!((itls, &saved["request_rate"]), (vec![2; 3], &json!("inf")));

    // A name that nobody gave says what was measured; what was there is replaced.
    bench(&server, arguments).args("--result-filename a.json --result-dir").arg(&dir).run().succeeds();
    bench(&server, arguments).args("--max-concurrency 2 --result-dir").arg(&dir).run().succeeds();
    let names =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[1].starts_with("openai-infqps-concurrency2-tiny-20"), "{names:?}");
    let saved: Value = serde_json::from_slice(&std::fs::read(dir.join("a.json")).unwrap()).unwrap();
    assert!(saved.get("itls").is_none(), "only if details are asked for");
}

#[test]
fn a_result_that_cannot_be_saved_is_not_measured() {
    let server = Server::start(|_, _, _| panic!("nothing is asked"));
    let error = bench(&server, "--num-prompts 3 --save-result --result-dir /proc/no").run().fails_with(2);
    assert!(error.starts_with("--save-result: no file can be in /proc/no: "), "{error}");
}

#[test]
fn the_table_is_for_people() {
    let server = Server::start(obey);
    let table = bench(&server, "--num-prompts 4 --random-input-len 8 --random-output-len 2")
        .args("--percentile-metrics ttft,itl --metric-percentiles 90 --goodput ttft:1000000 tpot:1000000")
        .prints();
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name} in {table}")).rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!((row("Successful requests:"), row("Failed requests:")), ("4".into(), "0".into()));
    assert_eq!((row("Total input tokens:"), row("Total generated tokens:")), ("32".into(), "8".into()));
    assert_eq!(row("Request throughput (req/s):"), row("Request goodput (req/s):"));
    assert!(row("P90 TTFT (ms):").parse::<f64>().unwrap() > 0.0 && row("Mean ITL (ms):").contains('.'));
    assert!(!table.contains("TPOT") && !table.contains("P99") && !table.contains('\x1b'), "{table}");
}

#[test]
fn goodput_counts_requests_that_meet_every_goal() {
    let server = Server::start(obey);
    let rate = |goals: &str| {
        let found = bench(&server, "--num-prompts 3 --random-input-len 4 --random-output-len 2 --json")
            .args(goals)
            .json();
        assert!(found["request_throughput"].as_f64().unwrap() > 0.0);
        found["request_goodput"].clone()
    };
    assert_eq!(rate("--goodput ttft:0.000001 tpot:1000000"), json!(0.0));
    assert!(rate("--goodput ttft:1000000,e2el:1000000").as_f64().unwrap() > 0.0);
    assert_eq!(rate(""), Value::Null);
    let server = Server::start(obey);
    let twin = bench(&server, "--num-prompts 1 --random-output-len 1 --json")
        .env("ANYSPLIT_GOODPUT", "ttft:1e9,e2el:1e9");
    assert!(twin.json()["request_goodput"].as_f64().unwrap() > 0.0);
}

#[test]
fn chats_are_asked_in_words_and_timed_by_content() {
    let server = Server::start(|_, _, out: &mut Out| {
        let delta = |delta: Value| json!({ "choices": [{ "delta": delta }] });
        out.begin()?;
        out.event(&delta(json!({ "role": "assistant", "content": "" })))?;
        out.event(&delta(json!({ "content": "a" })))?;
        // Comments and cut events are part of any stream.
        out.bytes(": waiting\n\ndata: {\"choices\":[{\"de")?;
        out.bytes("lta\":{\"content\":\"b\"}}]}\r\n\r\n")?;
        out.event(&json!({ "choices": [{ "delta": {}, "finish_reason": "stop" }] }))?;
        out.end()
    });
    let found =
        bench(&server, "--backend openai-chat --num-prompts 2 --random-input-len 7 --save-detailed --json")
            .json();
    assert_eq!((&found["completed"], &found["backend"]), (&json!(2), &json!("openai-chat")));
    // Without usage, tokens are chunks, and prompts are of unknown length.
    assert_eq!((&found["output_lens"], &found["total_input_tokens"]), (&json!([2, 2]), &json!(0)));
    for seen in server.seen(CHAT) {
        let message = &seen.body["messages"][0];
        assert_eq!((&message["role"], seen.body["messages"].as_array().unwrap().len()), (&json!("user"), 1));
        assert_eq!(message["content"].as_str().unwrap().split(' ').count(), 7);
    }
    assert!(server.seen("/tokenize").is_empty());
}

#[test]
fn ids_are_those_that_the_server_knows() {
    let largest = |server: &Server| {
        bench(server, "--num-prompts 4 --random-input-len 500 --random-output-len 1 --json").json();
        server.seen(COMPLETIONS).iter().flat_map(prompt).max().unwrap()
    };
    let models = json!({ "data": [{ "id": "tiny", "meta": { "n_vocab": 120 } }] });
    let told = Server::with_models(models, obey);
    assert!(largest(&told) < 120 && told.seen("/tokenize").is_empty());
    let tokenizing = Server::start(|index, seen: &Seen, out: &mut Out| match &*seen.path {
        "/tokenize" => out.json(200, &json!({ "count": 3, "tokens": [5, 4999, 70] })),
        _ => obey(index, seen, out),
    });
    assert!((1000..5000).contains(&largest(&tokenizing)));
    let silent = Server::start(obey);
    assert!(largest(&silent) < 1000 && silent.seen("/tokenize").len() == 1);
}

#[test]
fn a_file_of_prompts_is_sent_in_its_order() {
    let (server, dir) = (
        Server::start(|_, seen: &Seen, out: &mut Out| {
            out.completion(1, seen.body["max_tokens"].as_u64().unwrap() as usize)
        }),
        Copy::empty(),
    );
    let file = dir.path().join("prompts.jsonl");
    std::fs::write(&file, "{\"prompt\":\"one\",\"output_tokens\":2}\n{\"prompt\":[7,8]}\n").unwrap();
    let found = bench(&server, "--num-prompts 3 --max-concurrency 1 --random-output-len 4 --json")
        .args("--num-warmups 1 --dataset-name custom --dataset-path")
        .arg(&file)
        .json();
    assert_eq!((&found["completed"], &found["total_output_tokens"]), (&json!(3), &json!(8)));
    let prompts: Vec<Value> =
        server.seen(COMPLETIONS).iter().map(|seen| seen.body["prompt"].clone()).collect();
    // The one before them is a warm-up, which is not measured.
    assert_eq!(prompts, [json!([7, 8]), json!("one"), json!([7, 8]), json!("one")]);
    assert!(server.seen("/tokenize").is_empty());
    bench(&server, "--backend openai-chat --dataset-name file --dataset-path")
        .arg(&file)
        .refused(&["token ids"]);
}

#[test]
fn requests_that_fail_are_counted_and_the_first_is_told() {
    let server = Server::start(|index, seen: &Seen, out: &mut Out| match index {
        0 => out.completion(4, 2),
        1 => out.json(429, &json!({ "error": { "message": "the queue is full", "type": "busy" } })),
        2 => out.begin().and(Err(io::ErrorKind::ConnectionReset.into())),
        3 => {
            out.begin()?;
            out.event(&json!({ "error": { "message": "out of memory" } }))?;
            out.end()
        }
        4 => out.json(200, &json!({ "choices": [] })),
        5 => {
            out.begin()?;
            out.event(&json!({ "choices": [{ "text": "a" }] }))?;
            out.event(&json!("none"))?;
            out.end()
        }
        6 => Err(io::ErrorKind::ConnectionReset.into()),
        _ => obey(index, seen, out),
    });
    let run =
        bench(&server, "--num-prompts 8 --max-concurrency 1 --random-input-len 4 --random-output-len 2")
            .args("--vocab-size 500 --save-detailed --json");
    let (found, warning) = with_warning(run);
    assert_eq!((&found["completed"], &found["failed"]), (&json!(2), &json!(6)));
    assert_eq!(found["total_output_tokens"], 4);
    let errors: Vec<&str> = found["errors"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    let expected = [
        "",
        "HTTP 429",
        "connection",
        "out of memory",
        "no stream of events, but application/json",
        "cannot be read",
        "connection",
        "",
    ];
    for (error, part) in errors.iter().zip(expected) {
        assert!(error.contains(part) && error.is_empty() == part.is_empty(), "{part:?} in {errors:?}");
    }
    assert!(warning.starts_with("warning: 6 of 8 requests failed; the first: HTTP 429"), "{warning}");
    assert!(warning.contains("the queue is full") && warning.lines().count() == 1, "{warning}");
}

#[test]
fn a_server_that_ends_each_connection_is_no_failure() {
    let server = Server::start(|_, _, out: &mut Out| {
        out.raw("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n")?;
        out.raw("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n")?;
        Err(io::ErrorKind::ConnectionAborted.into())
    });
    let found = bench(&server, "--num-prompts 20 --max-concurrency 2 --vocab-size 500 --json").json();
    assert_eq!((&found["completed"], &found["total_output_tokens"]), (&json!(20), &json!(20)));
}

#[test]
fn a_server_that_ends_a_connection_which_it_said_it_would_keep_is_no_failure() {
    let answered = Mutex::new(HashSet::new());
    let server =
        Server::start(move |_, seen, out: &mut Out| match answered.lock().unwrap().insert(seen.connection) {
            true => obey(0, seen, out),
            false => Err(io::ErrorKind::ConnectionAborted.into()),
        });
    let found = bench(&server, "--num-prompts 6 --max-concurrency 1 --random-input-len 4 --json")
        .args("--random-output-len 2 --vocab-size 500")
        .json();
    assert_eq!((&found["completed"], &found["failed"]), (&json!(6), &json!(0)));
}

#[test]
fn where_all_fail_nothing_was_measured() {
    let server = Server::start(|_, _, out: &mut Out| {
        out.json(400, &json!({ "error": { "message": "the prompt is too long" } }))
    });
    let line = bench(&server, "--num-prompts 3 --vocab-size 500").run().fails_with(1);
    assert!(line.contains("all 3 requests failed") && line.contains("the prompt is too long"), "{line}");
    let line = bench(&server, "--num-prompts 3 --vocab-size 500 --num-warmups 1").run().fails_with(1);
    assert!(line.contains("warm-up"), "{line}");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let server = Server::start(|_, _, out: &mut Out| {
        out.begin()?;
        out.event(&json!({ "choices": [{ "text": "a" }] }))?;
        out.wait_for_the_end()
    });
    let line = bench(&server, "--num-prompts 2 --request-timeout 0.2 --vocab-size 500").run().fails_with(1);
    assert!(line.contains("--request-timeout") && line.contains("all 2"), "{line}");
}

#[test]
fn who_is_not_there_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let line = anysplit("bench serve --base-url").arg(&url).run().fails_with(1);
    assert!(line.contains("cannot connect to 127.0.0.1:") && line.contains("refused"), "{line}");
    let line = anysplit("bench serve --base-url http://host.invalid").run().fails_with(1);
    assert!(line.contains("host.invalid"), "{line}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Whatever it is, it is no server of this kind.
    std::thread::spawn(move || drop(listener.accept()));
    let line = anysplit("bench serve --base-url").arg(&url).run().fails_with(1);
    assert!(line.contains("127.0.0.1:") && line.contains("/v1/models"), "{line}");
    let none = Server::with_models(json!({ "data": [] }), obey);
    let line = bench(&none, "").run().fails_with(1);
    assert!(line.contains("--model"), "{line}");
    assert_eq!(bench(&none, "--model x --num-prompts 1 --json").json()["model_id"], "x");
}

#[test]
fn a_key_is_sent_and_never_shown() {
    let server = Server::start(obey);
    let keys = |run: Anysplit| {
        run.args("--num-prompts 1 --random-input-len 4 --random-output-len 1 --json").json();
        let lines = server.seen(COMPLETIONS).pop().unwrap().headers;
        lines.into_iter().find(|line| line.to_ascii_lowercase().starts_with("authorization"))
    };
    assert_eq!(keys(bench(&server, "")), None);
    let sent = |key: &str| Some(format!("authorization: Bearer {key}"));
    assert_eq!(keys(bench(&server, "--api-key typed").env("OPENAI_API_KEY", "o")), sent("typed"));
    assert_eq!(keys(bench(&server, "").env("ANYSPLIT_API_KEY", "a").env("OPENAI_API_KEY", "o")), sent("a"));
    assert_eq!(keys(bench(&server, "").env("OPENAI_API_KEY", "o")), sent("o"));
    assert_eq!(keys(bench(&server, "--api-key=").env("OPENAI_API_KEY", "o")), None);
    let help = anysplit("bench serve --help").env("ANYSPLIT_API_KEY", "sesame").prints();
    assert!(!help.contains("sesame"), "{help}");
    let line = anysplit("bench serve --api-key").arg("a\nb").refused(&["--api-key"]);
    assert!(!line.contains("a b"), "{line}");
}

#[test]
fn a_signal_shows_what_was_measured_so_far() {
    let server = Server::start(|index, seen: &Seen, out: &mut Out| match index {
        0 | 1 => obey(index, seen, out),
        _ => out.wait_for_the_end(),
    });
    let run = bench(
        &server,
        "--num-prompts 9 --max-concurrency 1 --random-input-len 4 --random-output-len 2 --json",
    )
    .args("--vocab-size 500");
    let child = run.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_for(3, COMPLETIONS);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert_eq!(told, "error: ended by SIGINT; 2 of 9 requests were answered\n");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["completed"], &found["interrupted"]), (&json!(2), &json!(true)));
    assert_eq!((&found["failed"], &found["num_prompts"]), (&json!(0), &json!(9)));
}

#[test]
fn wrong_use_is_refused_before_anything_is_sent() {
    let cases: [(&str, &[&str]); 17] = [
        ("--base-url ftp://x", &["--base-url", "http://127.0.0.1:8000"]),
        ("--base-url 127.0.0.1:8000", &["--base-url"]),
        ("--request-rate 0", &["--request-rate", "inf"]),
        ("--request-rate -1", &["--request-rate"]),
        ("--burstiness 0", &["--burstiness"]),
        ("--num-prompts 0", &["--num-prompts"]),
        ("--num-prompts 10000000 --random-input-len 1000000", &["--num-prompts", "fewer"]),
        ("--max-concurrency 0", &["--max-concurrency"]),
        ("--random-range-ratio 1", &["--random-range-ratio"]),
        ("--dataset-name file", &["--dataset-path"]),
        ("--dataset-name file --dataset-path /nowhere.txt", &["/nowhere.txt", "No such file"]),
        ("--dataset-path x.txt", &["--dataset-name file"]),
        ("--dataset-name sonnet", &["shared-prefix"]),
        ("--goodput ttft", &["ttft:500"]),
        ("--goodput ttft:500 itl:5", &["itl:5", "e2el"]),
        ("--extra-body []", &["--extra-body", "object"]),
        ("--metric-percentiles 101", &["--metric-percentiles", "0 to 100"]),
    ];
    for (arguments, parts) in cases {
        anysplit("bench serve").args(arguments).refused(parts);
    }
    anysplit("bench serve --num-prompts 1").env("ANYSPLIT_REQUEST_RATE", "0").refused(&["--request-rate"]);
}
