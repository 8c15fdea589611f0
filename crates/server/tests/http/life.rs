//! Loading, limits, deadlines, draining, and a worker that dies.

use std::io::BufReader;
use std::io::Write;
use std::time::Duration;

use engine::serving::{EngineInfo, Event, FromEngine, QueueLimits, ToEngine};
use serde_json::json;
use server::{Limits, ServeError, ServerConfig, Timeouts};

use super::client::{chunk, connect, get, head, post, read};
use super::engine::{
    Harness, Script, ids, info, never_ends, never_starts, says_text, until, waits_on_request,
};

const PATH: &str = "/v1/completions";
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

fn timeouts(timeouts: Timeouts) -> ServerConfig {
    ServerConfig { timeouts, ..Default::default() }
}

#[test]
fn a_server_answers_while_its_model_loads() {
    let server = Harness::loading(Default::default(), says_text);
    let body = json!({"prompt": "a"});
    assert_eq!(get(server.address, "/health").json()["status"], "loading");
    assert_eq!(get(server.address, "/ready").error().0, 503);
    let models = get(server.address, "/v1/models");
    assert_eq!(models.error().1, "model_loading");
    assert!(models.header("retry-after").is_some());
    assert_eq!(get(server.address, "/status").json()["state"], "loading");
    server.tell(FromEngine::Loading { done: 30, total: 60 });
    until("the share is told", || post(server.address, PATH, &body).text().contains("50 %"));
    server.tell(FromEngine::Ready(info()));
    until("the model is loaded", || get(server.address, "/ready").status == 200);
    assert_eq!(post(server.address, PATH, &body).status, 200);
}

/// With so many places, all of them free, of which the queue is beside.
fn queue(max_num_seqs: usize, queue: QueueLimits, script: Script) -> Harness {
    let limits = Limits { queue, ..Default::default() };
    let server = Harness::loading(ServerConfig { limits, ..Default::default() }, script);
    server.tell(FromEngine::Ready(EngineInfo { max_num_seqs, ..info() }));
    until("the server is ready", || get(server.address, "/ready").status == 200);
    server
}

#[test]
fn a_full_queue_is_429_with_a_time_and_has_room_again_when_a_client_leaves() {
    // Whether those that came first have begun yet makes no difference.
    for script in [never_starts as Script, never_ends] {
        let server = queue(2, QueueLimits { requests: 2, tokens: 100 }, script);
        let waits = |body: &serde_json::Value| {
            let mut stream = connect(server.address);
            stream.write_all(&head("POST", PATH, JSON, body.to_string().as_bytes())).unwrap();
            (stream, server.submitted().0)
        };
        let body = json!({"prompt": [5, 6], "stream": true});
        let mut four: Vec<_> = (0..4).map(|_| waits(&body)).collect();
        for _ in 0..3 {
            let refused = post(server.address, PATH, &body);
            assert_eq!(refused.error(), (429, "queue_full".into(), String::new()));
            let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=60).contains(&seconds));
        }
        let (first, id) = four.remove(0);
        drop(first);
        server.aborted(id);
        let _fifth = waits(&body);
        assert_eq!(post(server.address, PATH, &body).status, 429);
        let never = post(server.address, PATH, &json!({"prompt": [5], "n": 5}));
        assert_eq!(never.error(), (400, "request_too_large".into(), String::new()), "waiting would not help");
        // Whoever leaves gives back what it had, begun or not.
        for (stream, id) in four {
            drop(stream);
            server.aborted(id);
        }
        let _three = [(); 3].map(|()| waits(&body));
        assert_eq!(post(server.address, PATH, &body).status, 429);
    }
}

#[test]
fn a_server_without_a_queue_takes_what_it_has_places_for_in_one_request_or_several() {
    let server = queue(8, QueueLimits { requests: 0, tokens: 100 }, says_text);
    // They end, so their places are free again.
    for _ in 0..3 {
        assert_eq!(post(server.address, PATH, &json!({"prompt": [5], "n": 8})).status, 200);
    }
    let never = post(server.address, PATH, &json!({"prompt": [5], "n": 9}));
    assert_eq!(never.error(), (400, "request_too_large".into(), String::new()));
}

#[test]
fn what_never_fits_the_queue_is_refused_before_it_is_built() {
    let limits = Limits { queue: QueueLimits { requests: 1000, tokens: 2000 }, ..Default::default() };
    let server = Harness::new(ServerConfig { limits, ..Default::default() }, never_starts);
    for body in [
        json!({"prompt": vec![[1]; 300_000], "n": 128}),
        json!({"prompt": vec!["a"; 500_000], "n": 2}),
        json!({"prompt": vec![vec![1; 100]; 21]}),
        json!({"prompt": vec!["a b c d e f g h"; 50], "n": 10}),
    ] {
        let refused = post(server.address, PATH, &body).error();
        assert_eq!(refused, (400, "request_too_large".into(), String::new()));
    }
    assert!(server.seen.try_recv().is_err(), "the engine saw nothing");
}

#[test]
fn tokens_of_the_queue_count_too() {
    let limits = Limits { queue: QueueLimits { requests: 100, tokens: 5 }, ..Default::default() };
    let server = Harness::new(ServerConfig { limits, ..Default::default() }, never_starts);
    let mut stream = connect(server.address);
    stream.write_all(&head("POST", PATH, JSON, b"{\"prompt\": [5, 6, 7]}")).unwrap();
    server.submitted();
    assert_eq!(post(server.address, PATH, &json!({"prompt": [5, 6, 7]})).status, 429);
}

#[test]
fn a_request_has_a_deadline() {
    let config = timeouts(Timeouts { request: Some(Duration::from_millis(50)), ..Default::default() });
    let server = Harness::new(config, never_ends);
    // The time of a request may be over before the engine sees it.
    let mut submitted = None;
    until("a request comes to the engine", || {
        let late = post(server.address, PATH, &json!({"prompt": "a"}));
        assert_eq!(late.error(), (504, "request_timeout".into(), String::new()));
        assert_eq!(late.header("x-should-retry"), Some("false"), "the same again would take as long");
        submitted = server.seen.try_iter().find_map(|message| match message {
            ToEngine::Submit { id, .. } => Some(id),
            _ => None,
        });
        submitted.is_some()
    });
    server.aborted(submitted.unwrap());
    // With an event, or with a status if it passed before the first token.
    let streamed = post(server.address, PATH, &json!({"prompt": "a", "stream": true}));
    assert!(streamed.text().contains("request_timeout"));
}

#[test]
fn a_body_that_does_not_come_has_the_deadline_of_its_request() {
    let config = timeouts(Timeouts { request: Some(Duration::from_millis(50)), ..Default::default() });
    let server = Harness::new(config, says_text);
    let mut stream = BufReader::new(connect(server.address));
    let request = head("POST", PATH, JSON, b"{\"prompt\": \"a\"}");
    stream.get_mut().write_all(&request[..request.len() - 1]).unwrap();
    assert_eq!(read(&mut stream).unwrap().error(), (504, "request_timeout".into(), String::new()));
}

#[test]
fn a_stream_that_waits_begins_and_says_that_it_lives() {
    let short = Duration::from_millis(10);
    let config = timeouts(Timeouts { first: short, quiet: short, ..Default::default() });
    let server = Harness::new(config, never_starts);
    for (path, body) in [
        (PATH, json!({"prompt": "a", "stream": true})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}], "stream": true})),
    ] {
        let mut stream = BufReader::new(connect(server.address));
        stream.get_mut().write_all(&head("POST", path, JSON, body.to_string().as_bytes())).unwrap();
        let (id, _) = server.submitted();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            std::io::BufRead::read_line(&mut stream, &mut line).unwrap();
        }
        // A chat begins with a role.
        while chunk(&mut stream).unwrap() != b": waiting\n\n" {}
        // What goes wrong now is an event.
        server.tell(FromEngine::Events(vec![Event::Refused { id, message: "no".into() }]));
        let mut text = String::new();
        while let Some(bytes) = chunk(&mut stream) {
            text += &String::from_utf8(bytes).unwrap();
        }
        assert!(text.contains("\"message\":\"no\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}

#[test]
fn ready_fails_while_work_waits_and_no_step_comes() {
    let config = timeouts(Timeouts { step: Duration::from_millis(20), ..Default::default() });
    let server = Harness::new(config, never_ends);
    let mut stream = connect(server.address);
    stream.write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\"}")).unwrap();
    let (id, _) = server.submitted();
    // Once it is, the news of the first step may still come.
    until("it is not ready", || {
        let answer = get(server.address, "/ready");
        let is_ready = answer.status == 200;
        assert!(is_ready || answer.error() == (503, "engine_stalled".into(), String::new()));
        !is_ready
    });
    assert_eq!(get(server.address, "/health").status, 200);
    let token = Event::Token { id, token: 9, logprobs: None, end: Some(engine::FinishReason::Length) };
    server.tell(FromEngine::Events(vec![token]));
    until("it is ready again", || get(server.address, "/ready").status == 200);
}

#[test]
fn a_worker_that_dies_ends_what_runs_with_errors() {
    let mut server = Harness::new(Default::default(), never_ends);
    let mut whole = BufReader::new(connect(server.address));
    whole.get_mut().write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\"}")).unwrap();
    let mut streamed = BufReader::new(connect(server.address));
    streamed
        .get_mut()
        .write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\", \"stream\": true}"))
        .unwrap();
    server.submitted();
    server.submitted();
    server.tell(FromEngine::Failed { message: "rank 1 was killed".into(), is_usage: false });
    let whole = read(&mut whole).unwrap();
    assert_eq!(whole.error().0, 500);
    assert!(whole.text().contains("rank 1 was killed"));
    let streamed = read(&mut streamed).unwrap();
    match streamed.status {
        200 => {
            assert!(streamed.text().contains("rank 1 was killed") && streamed.text().ends_with("[DONE]\n\n"))
        }
        // It died before the first token was told of.
        status => assert_eq!(status, 500),
    }
    assert_eq!(get(server.address, "/health").error().0, 503);
    assert_eq!(get(server.address, "/ready").error().0, 503);
    assert_eq!(post(server.address, PATH, &json!({"prompt": "a"})).error().1, "engine_failed");
    // A new worker of the same link is welcome.
    server.tell(FromEngine::Ready(info()));
    until("it is ready again", || get(server.address, "/ready").status == 200);
    server.shut_down();
    server.sees("its end", |message| matches!(message, ToEngine::Stop).then_some(()));
    server.ends().unwrap();
}

#[test]
fn a_server_can_end_with_its_worker() {
    let mut server =
        Harness::loading(ServerConfig { ends_with_worker: true, ..Default::default() }, never_ends);
    server.tell(FromEngine::Failed { message: "config.json is malformed".into(), is_usage: true });
    match server.ends() {
        Err(ServeError::Worker { message, is_usage: true }) => {
            assert_eq!(message, "config.json is malformed")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_that_dies_ends_the_server_at_once_whoever_still_sends() {
    // The time to drain is longer than a test waits, and has nothing to do with it.
    for is_draining in [false, true] {
        let hour = Timeouts { shutdown: Duration::from_secs(3600), ..Default::default() };
        let config = ServerConfig { ends_with_worker: true, ..timeouts(hour) };
        let mut server = Harness::new(config, never_ends);
        let mut running = BufReader::new(connect(server.address));
        running.get_mut().write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\"}")).unwrap();
        server.submitted();
        let mut sending = BufReader::new(connect(server.address));
        let headers = [JSON, &[("Expect", "100-continue")]].concat();
        let request = head("POST", PATH, &headers, b"{\"prompt\": \"a\"}");
        sending.get_mut().write_all(&request[..request.len() - 10]).unwrap();
        // Whoever reads the body says so.
        assert_eq!(read(&mut sending).unwrap().status, 100);
        if is_draining {
            server.shut_down();
            until("it drains", || get(server.address, "/ready").status == 503);
        }
        server.tell(FromEngine::Failed { message: "rank 1 was killed".into(), is_usage: false });
        assert_eq!(read(&mut running).unwrap().error().1, "engine_failed");
        assert!(matches!(server.ends(), Err(ServeError::Worker { is_usage: false, .. })));
        assert!(std::net::TcpStream::connect(server.address).is_err(), "nobody listens");
        assert!(read(&mut sending).is_none(), "its connection is closed");
    }
}

#[test]
fn a_drain_finishes_what_runs_and_refuses_what_comes() {
    let mut server = Harness::new(Default::default(), waits_on_request);
    let mut running = BufReader::new(connect(server.address));
    let body = json!({"prompt": "please wait", "stream": true}).to_string();
    running.get_mut().write_all(&head("POST", PATH, JSON, body.as_bytes())).unwrap();
    let (id, _) = server.submitted();
    server.shut_down();
    until("it drains", || get(server.address, "/ready").status == 503);
    let refused = post(server.address, PATH, &json!({"prompt": "a"}));
    assert_eq!(refused.error(), (503, "shutting_down".into(), String::new()));
    assert_eq!(refused.header("connection"), Some("close"));
    let health = get(server.address, "/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("live")));
    let last =
        Event::Token { id, token: ids(" b")[0], logprobs: None, end: Some(engine::FinishReason::Length) };
    server.tell(FromEngine::Events(vec![last]));
    let answer = read(&mut running).unwrap();
    let text: String = answer.events().iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, " a b");
    server.ends().unwrap();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn a_request_that_came_before_the_end_is_answered_however_long_its_body_takes() {
    let mut server = Harness::new(Default::default(), says_text);
    let mut early = BufReader::new(connect(server.address));
    let headers = [JSON, &[("Expect", "100-continue")]].concat();
    let request = head("POST", PATH, &headers, b"{\"prompt\": \"a\"}");
    let (first, last) = request.split_at(request.len() - 10);
    early.get_mut().write_all(first).unwrap();
    // Whoever reads the body says so.
    assert_eq!(read(&mut early).unwrap().status, 100);
    server.shut_down();
    until("it drains", || get(server.address, "/ready").status == 503);
    early.get_mut().write_all(last).unwrap();
    assert_eq!(read(&mut early).unwrap().status, 200);
    server.ends().unwrap();
}

#[test]
fn a_drain_has_an_end() {
    let config = timeouts(Timeouts { shutdown: Duration::from_millis(50), ..Default::default() });
    let mut server = Harness::new(config, never_ends);
    let mut running = BufReader::new(connect(server.address));
    running.get_mut().write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\", \"stream\": true}")).unwrap();
    let (id, _) = server.submitted();
    until("its stream begins", || get(server.address, "/status").json()["requests"][0]["state"] == "decode");
    server.shut_down();
    server.aborted(id);
    server.ends().unwrap();
    let answer = read(&mut running).unwrap();
    assert!(answer.text().contains("shutting_down"), "{}", answer.text());
}

#[test]
fn tokens_come_one_by_one() {
    let server = Harness::new(Default::default(), never_ends);
    let mut stream = BufReader::new(connect(server.address));
    stream.get_mut().write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\", \"stream\": true}")).unwrap();
    let (id, _) = server.submitted();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        std::io::BufRead::read_line(&mut stream, &mut line).unwrap();
    }
    let token = |word: &str| ids(word)[0];
    for word in [" a", " b", " c"] {
        // The engine has said the first one; the others it says once the one before was read.
        if word != " a" {
            let event = Event::Token { id, token: token(word), logprobs: None, end: None };
            server.tell(FromEngine::Events(vec![event]));
        }
        let event = String::from_utf8(chunk(&mut stream).unwrap()).unwrap();
        assert!(event.contains(&format!("\"text\":\"{word}\"")), "{event}");
    }
    drop(stream);
    server.aborted(id);
}
