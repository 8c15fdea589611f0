//! A server's life and end: nothing hangs, nothing is left behind, and who is cut off hears of it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::child::{anysplit, free_port};
use crate::job_child::Running;
use crate::served::{Api, Served, endless, greedy, post};

#[test]
fn two_hundred_clients_that_vanish_leave_no_blocks_behind() {
    let served = Served::start("");
    let before = served.metric("anysplit:kv_cache_usage_perc");
    let mut clients = Vec::new();
    for i in 0..200 {
        let body = json!({
            "prompt": vec!["Once upon a time"; 1 + i % 40].join(", "), "max_tokens": 1500, "temperature": 0,
            "ignore_eos": true, "stream": i % 2 == 0,
        });
        let mut stream = served.connect();
        stream.write_all(post("/v1/completions", &body).as_bytes()).unwrap();
        clients.push(stream);
    }
    served.until("they run", |served| served.metric("anysplit:num_requests_running") > 100.0);
    assert!(served.metric("anysplit:kv_cache_usage_perc") > before);
    drop(clients);
    served.until("all are gone", |served| {
        served.metric("anysplit:num_requests_running") + served.metric("anysplit:num_requests_waiting") == 0.0
    });
    assert_eq!(served.metric("anysplit:kv_cache_usage_perc"), before);
    let answer = served.completion(&greedy("The harbor", 5));
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    served.ends();
}

#[test]
fn a_server_whose_stderr_is_on_a_full_disk_serves() {
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = anysplit("serve --log-level debug --port").arg(address.port().to_string()).command();
    let mut child = command.stdout(Stdio::null()).stderr(full).spawn().unwrap();
    let api = Api { address };
    let answer = std::panic::catch_unwind(|| {
        api.until("it listens", |api| TcpStream::connect(api.address).is_ok());
        api.until("it is ready", |api| api.get("/ready").status == 200);
        api.completion(&greedy("The harbor", 5))
    });
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(answer.unwrap()["usage"]["completion_tokens"], 5);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_server_that_is_asked_to_end_finishes_what_runs_and_refuses_the_rest() {
    let served = Served::start("");
    let body =
        json!({"prompt": "The", "max_tokens": 1200, "temperature": 0, "ignore_eos": true, "stream": true});
    let mut running = served.connect();
    running.write_all(post("/v1/completions", &body).as_bytes()).unwrap();
    let mut first = [0; 64];
    running.read_exact(&mut first).unwrap();
    let asked = served.running.signal(Signal::TERM);
    served.until("new requests are refused", Api::refuses);
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "it was cut off");
    let end = served.running.ends(asked);
    assert_eq!(end.status, Some(0), "{:?}", end.stderr);
}

#[test]
fn who_asks_all_of_its_processes_to_end_gets_no_other_end() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut served = Served::start("");
        let body = json!({"prompt": "The", "max_tokens": 1200, "temperature": 0, "ignore_eos": true, "stream": true});
        let mut running = served.connect();
        running.write_all(post("/v1/completions", &body).as_bytes()).unwrap();
        running.read_exact(&mut [0; 64]).unwrap();
        served.running.signal_child_of_first(signal);
        let asked = served.running.signal(signal);
        let mut rest = String::new();
        running.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
        let end = served.running.ends(asked);
        assert_eq!(end.status, Some(0), "{signal:?}: {:?}", end.stderr);
    }
}

#[test]
fn a_worker_that_dies_while_its_server_ends_is_a_failure() {
    let mut served = Served::endless("");
    let mut running = served.connect();
    running.write_all(post("/v1/completions", &endless()).as_bytes()).unwrap();
    running.read_exact(&mut [0; 64]).unwrap();
    served.running.signal(Signal::TERM);
    served.until("it drains", Api::refuses);
    let killed = served.running.signal_child_of_first(Signal::KILL);
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("engine_failed"), "{rest}");
    let end = served.running.ends(killed);
    assert_eq!(end.status, Some(1), "{:?}", end.stderr);
    assert!(end.line().contains("worker") && end.line().contains("signal: 9"), "{:?}", end.stderr);
}

#[test]
fn with_no_patience_running_requests_are_ended_with_an_error() {
    let served = Served::endless("--shutdown-timeout 0");
    let mut running = served.connect();
    running.write_all(post("/v1/completions", &endless()).as_bytes()).unwrap();
    running.read_exact(&mut [0; 64]).unwrap();
    let end = served.ends();
    assert_eq!(end.status, Some(0), "{:?}", end.stderr);
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"error\""), "{rest}");
}

#[test]
fn what_cannot_be_served_is_told_in_one_line() {
    anysplit("serve --port 0 --gpu-memory-utilization 1.5")
        .refused(&["--gpu-memory-utilization", "at most 1"]);
    anysplit("serve --port 0 --kv-cache-memory-bytes 100").refused(&["KV cache", "16 tokens", "bytes"]);
    anysplit("serve --port 0 --api-key-file /nowhere").refused(&["--api-key-file", "/nowhere"]);
    anysplit("serve --port 0 --tp 9").refused(&["9", "8"]);
    for flag in ["--max-connections", "--max-body-bytes", "--max-num-queued-tokens"] {
        anysplit("serve --port 0").arg(flag).arg("0").refused(&[flag, "0"]);
    }
    anysplit("serve --port 0 --max-connections 4294967296").refused(&["--max-connections", "4294967295"]);
    anysplit("serve --port 0 --model /nowhere").refused(&["/nowhere"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let line = anysplit(&format!("serve --port {port}")).run().fails_with(1);
    assert!(line.contains(&port.to_string()) && line.contains("--port"), "{line}");
}

#[test]
fn a_worker_that_dies_ends_its_requests_and_the_server() {
    let mut served = Served::endless("--tp 2 --shutdown-timeout 3600");
    let mut running = served.connect();
    running.write_all(post("/v1/completions", &endless()).as_bytes()).unwrap();
    running.read_exact(&mut [0; 64]).unwrap();
    // One that is still being sent is waited for no longer.
    let mut sending = served.connect();
    let request = post("/v1/completions", &endless());
    sending.write_all(&request.as_bytes()[..request.len() - 10]).unwrap();
    let killed = served.running.signal_child_of_first(Signal::KILL);
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"error\"") && rest.contains("engine_failed"), "{rest}");
    let end = served.running.ends(killed);
    assert_eq!(end.status, Some(1), "{:?}", end.stderr);
    assert!(end.line().contains("worker") && end.line().contains("signal: 9"), "{:?}", end.stderr);
}

#[test]
fn a_front_that_is_killed_leaves_no_worker_behind() {
    let served = Served::start("--tp 2");
    let killed = served.running.signal(Signal::KILL);
    let end = served.running.ends(killed);
    assert_eq!(end.status, None);
}

#[test]
fn rank_0_of_a_job_serves() {
    let want = Served::start("");
    let request = greedy("Once upon a time", 20);
    let text = want.completion(&request)["choices"][0]["text"].clone();
    want.ends();
    for split in ["--tp 2", "--pp 2", "--dp 2"] {
        let command = anysplit(&format!("launch --nproc-per-node 2 --master-port {}", free_port()));
        let binary = env!("CARGO_BIN_EXE_anysplit");
        let served = Served::of(command.arg("--").arg(binary).args(&format!("serve --port 0 {split}")));
        for _ in 0..3 {
            assert_eq!(served.completion(&request)["choices"][0]["text"], text, "{split}");
        }
        // The launcher was asked to end, which is how it says so.
        assert_eq!(served.ends().line(), "error: ended by SIGTERM", "{split}");
    }
}

#[test]
fn a_job_that_is_asked_to_end_finishes_what_runs() {
    let command =
        anysplit(&format!("launch --nproc-per-node 2 --shutdown-timeout 40 --master-port {}", free_port()));
    let binary = env!("CARGO_BIN_EXE_anysplit");
    let served = Served::of(command.arg("--").arg(binary).args("serve --port 0 --tp 2"));
    let body =
        json!({"prompt": "The", "max_tokens": 1500, "temperature": 0, "ignore_eos": true, "stream": true});
    let mut running = served.connect();
    running.write_all(post("/v1/completions", &body).as_bytes()).unwrap();
    running.read_exact(&mut [0; 64]).unwrap();
    assert_eq!(served.ends().line(), "error: ended by SIGTERM");
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"),
        "it was cut off: {rest}"
    );
}

#[test]
fn a_json_schema_is_kept_to() {
    let served = Served::start("--dp 2");
    let schema = json!({
        "type": "object", "required": ["kind", "age"], "additionalProperties": false,
        "properties": {"kind": {"enum": ["cat", "ship"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    });
    for seed in 0..4 {
        let answer = served.post(
            "/v1/chat/completions",
            &json!({
                "messages": [{"role": "user", "content": "Tell me of one."}], "seed": seed, "max_tokens": 60,
                "response_format": {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}},
            }),
        );
        assert_eq!(answer.status, 200, "{}", answer.body);
        let content = answer.json()["choices"][0]["message"]["content"].clone();
        let value: serde_json::Value = serde_json::from_str(content.as_str().unwrap()).unwrap();
        assert!(["cat", "ship"].contains(&value["kind"].as_str().unwrap()), "{content}");
        assert!((1..100).contains(&value["age"].as_i64().unwrap()), "{content}");
    }
    served.ends();
}

#[test]
fn as_many_clients_connect_as_it_may_have_whatever_limit_of_open_files_it_began_with() {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""]);
    let served = Served::of(anysplit("serve --port 0 --max-connections 500").by_way_of(limited));
    let mut clients: Vec<_> = (0..500).map(|_| served.connect()).collect();
    // Each is answered while all the others are there.
    for client in &mut clients {
        client.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut status = [0; 12];
        client.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    }
    // Where there can't be as many, that is told.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""]);
    let mut running = Running::start(anysplit("serve --port 0").by_way_of(limited).command());
    assert!(running.says("warning: --max-connections").contains("room for 192"));
}
