//! What `serve` can be asked for on its command line, and what it tells of what it does.

use std::io::Write;

use rustix::process::Signal;
use serde_json::json;

use crate::checkpoints::{ENDLESS_TOKENS, golden};
use crate::child::anysplit;
use crate::job_child::Running;
use crate::served::{Served, endless, greedy, post};

#[test]
fn a_line_tells_of_each_request_when_it_is_over() {
    let mut served = Served::endless("--log-level debug");
    let send = |id: &str, more: serde_json::Value| {
        let mut body = json!({"prompt": "The", "temperature": 0, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = post("/v1/completions", &body);
        request.replacen("\r\n", &format!("\r\nX-Request-Id: {id}\r\n"), 1)
    };
    let answer = served.send(&send("abc-123", json!({"max_tokens": 5, "stream": true})));
    assert_eq!(answer.events()[0]["id"], "cmpl-abc-123");
    let line = served.running.says("cmpl-abc-123");
    assert!(line.starts_with("POST \"/v1/completions\" 200 "), "{line}");
    assert!(line.contains("prompt_tokens=") && line.contains("completion_tokens=5"), "{line}");
    assert!(line.ends_with("finish_reason=length"), "{line}");
    let mut leaves = served.connect();
    leaves.write_all(send("gone-1", json!({"max_tokens": ENDLESS_TOKENS})).as_bytes()).unwrap();
    served.until("it runs", |served| served.metric("anysplit:num_requests_running") > 0.0);
    drop(leaves);
    let line = served.running.says("cmpl-gone-1");
    assert!(line.contains("\" - ") && line.ends_with(", the client left"), "{line}");
    served.get("/health");
    let line = served.running.says("GET \"/health\" 200");
    assert!(!line.contains("left") && !line.contains("tokens"), "{line}");
    served.ends();
}

#[test]
fn command_lines_of_vllm_are_understood() {
    let command = anysplit("serve").arg(golden("llama")).args(
        "--port 0 --enable-auto-tool-choice --enable-chunked-prefill --trust-remote-code --disable-log-requests \
         --no-enable-log-requests --max-model-len 0.1k --max-num-batched-tokens 1K --kv-cache-memory-bytes 16M",
    );
    let served = Served::of(command.env("ANYSPLIT_MODEL", "/nowhere"));
    assert_eq!(served.get("/v1/models").json()["data"][0]["max_model_len"], 100);
    served.ends();
    anysplit("serve a --model b").refused(&["MODEL", "--model", "cannot be used with"]);
    anysplit("serve --max-model-len 1q").refused(&["--max-model-len", "1K (1024)"]);
    anysplit("serve --no-such-thing").refused(&["--no-such-thing", "--help"]);
    anysplit("serve --max-model-length 5").refused(&["--max-model-len'"]);
    anysplit("serve --port 80800000").refused(&["80800000 is not from 0 to 65535"]);
}

#[test]
fn what_could_never_work_is_refused() {
    let serve = || anysplit("serve --port 0");
    serve().args("--allowed-origins foo").refused(&["--allowed-origins", "\"foo\"", "https://"]);
    serve().args("--allowed-origins https://a/b").refused(&["https://a/b"]);
    serve().args("--request-timeout 0").refused(&["--request-timeout", "no limit"]);
    for key in ["a\u{7}b", " zq", "q\n"] {
        let told = serve().arg("--api-key").arg(key).refused(&["--api-key", "header"]);
        assert!(!told.contains(key), "{told}");
    }
}

#[test]
fn requests_without_a_seed_have_one_from_the_servers() {
    let texts = || {
        let served = Served::start("--seed 5");
        let request = json!({"prompt": "The harbor", "max_tokens": 12, "temperature": 1});
        let texts = [(); 2].map(|()| served.completion(&request)["choices"][0]["text"].clone());
        served.ends();
        texts
    };
    let [first, second] = texts();
    assert_ne!(first, second, "each has its own");
    assert_eq!(texts(), [first, second]);
}

#[test]
fn two_signals_at_once_are_one() {
    let served = Served::start("");
    served.running.signal(Signal::TERM);
    let asked = served.running.signal(Signal::TERM);
    let end = served.running.ends(asked);
    assert_eq!(end.status, Some(0), "{:?}", end.stderr);
}

#[test]
fn a_server_that_everybody_can_use_says_so() {
    const OPEN: &str = "warning: anyone who reaches this address can use the server";
    let start = |arguments: &str| {
        let mut running = Running::start(anysplit("serve --port 0").args(arguments).command());
        running.says("listening on http://");
        let asked = running.signal(Signal::TERM);
        running.ends(asked).stderr.join("\n")
    };
    assert!(start("--host 0.0.0.0").contains(OPEN));
    assert!(!start("--host 0.0.0.0 --api-key k").contains(OPEN));
    let local = start("");
    assert!(!local.contains(OPEN) && local.contains("for programs of this machine"), "{local}");
}

#[test]
fn a_drain_that_cuts_requests_off_says_how_many() {
    let served = Served::endless("--shutdown-timeout 0");
    let mut body = endless();
    body["n"] = 2.into();
    let mut running = served.connect();
    running.write_all(post("/v1/completions", &body).as_bytes()).unwrap();
    served.until("both run", |served| served.metric("anysplit:num_requests_running") == 2.0);
    let end = served.ends();
    assert_eq!(end.status, Some(0), "{:?}", end.stderr);
    let last = end.stderr.last().unwrap();
    assert_eq!(last, "1 request was cut off after 0 s (--shutdown-timeout)");
}

#[test]
fn as_many_sequences_as_a_number_can_say_may_run() {
    let served = Served::start("--max-num-seqs 9223372036854775808 --dp 2");
    assert_eq!(served.completion(&greedy("The harbor", 3))["usage"]["completion_tokens"], 3);
    served.ends();
}
