//! Clients that leave, stall, or only sit there.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use engine::serving::Event;
use engine::{GenerateRequest, Logprobs};
use serde_json::json;
use server::{Limits, ServerConfig, Timeouts};

use super::client::{connect, get, head, post, post_bytes, read, send};
use super::engine::{Harness, never_ends, never_starts, says_text, until};

const PATH: &str = "/v1/completions";
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

#[test]
fn a_client_that_leaves_aborts_its_request_whatever_it_waits_for() {
    for (script, body) in [
        (never_starts as super::engine::Script, json!({"prompt": "a"})),
        (never_starts, json!({"prompt": "a", "stream": true})),
        (never_ends, json!({"prompt": "a"})),
        (never_ends, json!({"prompt": "a", "stream": true})),
        (never_ends, json!({"prompt": ["a", "b"], "n": 2, "stream": true})),
    ] {
        let server = Harness::new(Default::default(), script);
        let mut stream = connect(server.address);
        stream.write_all(&head("POST", PATH, JSON, body.to_string().as_bytes())).unwrap();
        let (first, _) = server.submitted();
        if body["n"] == 2 {
            (0..3).for_each(|_| drop(server.submitted()));
        }
        drop(stream);
        server.aborted(first);
        if body["n"] == 2 {
            (first + 1..first + 4).for_each(|id| server.aborted(id));
        }
        let load = || get(server.address, "/status").json()["requests"].clone();
        until("nothing runs", || {
            load().as_array().unwrap().iter().all(|request| request["state"] == "ended")
        });
        assert_eq!(load()[0]["finish_reason"], "abort");
    }
}

#[test]
fn a_client_that_leaves_is_noticed_also_behind_bytes_that_are_not_wanted_yet() {
    let more = head("GET", "/health", &[], b"");
    for behind in [b"\r\n".as_slice(), &more, &[b' '; 100_000]] {
        for script in [never_starts as super::engine::Script, never_ends] {
            let server = Harness::new(Default::default(), script);
            let mut stream = connect(server.address);
            let request = head("POST", PATH, JSON, b"{\"prompt\": \"a\"}");
            stream.write_all(&[&request, behind].concat()).unwrap();
            let (id, _) = server.submitted();
            drop(stream);
            server.aborted(id);
        }
    }
}

#[test]
fn who_is_refused_before_all_is_sent_reads_why() {
    let keys = ServerConfig { api_keys: vec!["secret".into()], ..Default::default() };
    let (guarded, loading) =
        (Harness::loading(keys, says_text), Harness::loading(Default::default(), says_text));
    let open = Harness::new(Default::default(), says_text);
    let plain: &[(&str, &str)] = &[("Content-Type", "text/plain")];
    let body = vec![b' '; 15 << 20];
    for (server, headers, status) in [(&guarded, JSON, 401), (&loading, JSON, 503), (&open, plain, 415)] {
        let mut stream = BufReader::new(connect(server.address));
        stream.get_mut().write_all(&head("POST", PATH, headers, &body)).expect("the server takes all of it");
        assert_eq!(read(&mut stream).expect("an answer").error().0, status);
    }
}

#[test]
fn a_client_that_closes_its_half_has_left() {
    let server = Harness::new(Default::default(), never_ends);
    let mut stream = connect(server.address);
    stream.write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\", \"stream\": true}")).unwrap();
    let (id, _) = server.submitted();
    stream.shutdown(Shutdown::Write).unwrap();
    server.aborted(id);
    // One that says nothing and closes its half gets nothing.
    let mut silent = connect(server.address);
    silent.shutdown(Shutdown::Write).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    let mut half = connect(server.address);
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert!(read(&mut BufReader::new(half)).is_none_or(|answer| answer.status == 400));
    assert_eq!(get(server.address, "/ready").status, 200);
}

#[test]
fn a_thousand_idle_connections_are_in_nobodys_way() {
    let server = Harness::new(Default::default(), says_text);
    let idle: Vec<_> = (0..1000).map(|_| connect(server.address)).collect();
    let answer = post(server.address, PATH, &json!({"prompt": "a"}));
    assert_eq!(answer.status, 200);
    drop(idle);
}

#[test]
fn more_connections_than_allowed_wait_for_one_to_end() {
    let limits = Limits { connections: 2, ..Default::default() };
    let server = Harness::new(ServerConfig { limits, ..Default::default() }, says_text);
    let idle = [connect(server.address), connect(server.address)];
    let mut third = BufReader::new(connect(server.address));
    third.get_mut().write_all(&head("GET", "/health", &[], b"")).unwrap();
    third.get_mut().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(third.get_mut().read(&mut [0]).is_err(), "nobody answers yet");
    drop(idle);
    third.get_mut().set_read_timeout(Some(super::engine::DEADLINE)).unwrap();
    assert_eq!(read(&mut third).unwrap().status, 200);
}

/// So short that a test can wait for it. A busy machine may hold up a client for longer.
const SHORT: Duration = Duration::from_millis(100);

fn timeouts(timeouts: Timeouts) -> ServerConfig {
    ServerConfig { timeouts, ..Default::default() }
}

#[test]
fn who_sends_a_head_too_slowly_is_cut_off() {
    // Nobody asks whether it is ready: who does may be too slow too.
    let config = timeouts(Timeouts { head: SHORT, ..Default::default() });
    let server = Harness::loading(config, says_text);
    let mut slow = connect(server.address);
    let _ = slow.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: loc");
    // The end of the connection, with or without an answer.
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    let mut idle = connect(server.address);
    assert_eq!(idle.read_to_end(&mut rest).unwrap(), 0, "who says nothing is cut off too");
    let mut done = None;
    until("somebody is fast enough", || {
        let mut stream = BufReader::new(connect(server.address));
        let _ = stream.get_mut().write_all(&head("GET", "/health", &[], b""));
        let answer = read(&mut stream);
        done = answer.is_some().then_some(stream);
        answer.is_some_and(|answer| answer.status == 200)
    });
    assert_eq!(done.unwrap().read_to_end(&mut rest).unwrap(), 0, "and who has nothing more to say");
}

#[test]
fn who_sends_a_body_too_slowly_is_cut_off() {
    let config = timeouts(Timeouts { body: SHORT, ..Default::default() });
    let server = Harness::new(config, says_text);
    let mut slow = BufReader::new(connect(server.address));
    let text = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    slow.get_mut().write_all(text).unwrap();
    assert_eq!(read(&mut slow).unwrap().error(), (408, "body_timeout".into(), String::new()));
}

/// More than what lies between server and client has room for, in few events. It never ends.
fn says_much(id: u64, request: &GenerateRequest) -> Vec<Event> {
    let logprobs = Logprobs { logprob: -1.0, rank: 321, top: (300..320).map(|id| (id, -1.0)).collect() };
    let token = |_| Event::Token { id, token: 300, logprobs: Some(logprobs.clone()), end: None };
    never_ends(id, request).into_iter().chain((0..20_000).map(token)).collect()
}

/// Asks for what [`says_much`] says.
fn asks_for_much(server: &Harness) -> TcpStream {
    let mut stream = connect(server.address);
    let body = b"{\"prompt\": \"a\", \"stream\": true, \"logprobs\": 20}";
    let headers = [JSON, &[("Connection", "close")]].concat();
    stream.write_all(&head("POST", PATH, &headers, body)).unwrap();
    stream
}

#[test]
fn who_reads_nothing_is_cut_off_and_its_request_aborted() {
    let server = Harness::new(timeouts(Timeouts { write: SHORT, ..Default::default() }), says_much);
    let stream = asks_for_much(&server);
    let (id, _) = server.submitted();
    server.aborted(id);
    drop(stream);
}

#[test]
fn who_reads_slowly_has_no_more_time_than_the_request() {
    let limits = Limits { connections: 1, ..Default::default() };
    let timeouts = Timeouts { request: Some(3 * SHORT), ..Default::default() };
    // That time may be over before the answer begins.
    let mut begun = None;
    until("an answer begins", || {
        let config =
            ServerConfig { limits: limits.clone(), timeouts: timeouts.clone(), ..Default::default() };
        let server = Harness::new(config, says_much);
        let stream = asks_for_much(&server);
        // It is only looked at.
        let mut status = [0; 12];
        let has_begun = stream.peek(&mut status).is_ok() && status == *b"HTTP/1.1 200";
        begun = has_begun.then_some((server, stream));
        begun.is_some()
    });
    let (server, stream) = begun.unwrap();
    let (id, _) = server.submitted();
    server.aborted(id);
    // Its connection is the only one that there may be.
    assert_eq!(get(server.address, "/health").status, 200);
    drop(stream);
}

#[test]
fn heads_and_bodies_have_limits() {
    let limits = Limits { body_bytes: 1000, ..Default::default() };
    let server = Harness::new(ServerConfig { limits, ..Default::default() }, says_text);
    let long = "x".repeat(70 << 10);
    assert_eq!(send(server.address, "GET", "/health", &[("X-Long", &long)], b"").error().0, 431);
    let many: Vec<(String, &str)> = (0..150).map(|i| (format!("X-{i}"), "y")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(send(server.address, "GET", "/health", &many, b"").error().0, 431);
    // Far beyond, the connection ends while the client still sends.
    let mut huge = BufReader::new(connect(server.address));
    let _ = huge.get_mut().write_all(&head("GET", "/health", &[("X-Long", &long.repeat(10))], b""));
    assert!(read(&mut huge).is_none_or(|answer| answer.status == 431));
    assert_eq!(
        send(server.address, "POST", PATH, JSON, &[b' '; 1001]).error(),
        (413, "body_too_large".into(), String::new())
    );
    // Nobody says beforehand how long a body in chunks is.
    let mut chunked = BufReader::new(connect(server.address));
    let text = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    chunked.get_mut().write_all(text.as_bytes()).unwrap();
    for _ in 0..11 {
        chunked.get_mut().write_all(format!("64\r\n{}\r\n", " ".repeat(100)).as_bytes()).unwrap();
    }
    chunked.get_mut().write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(read(&mut chunked).unwrap().error().0, 413);
    assert_eq!(get(server.address, "/ready").status, 200);
}

#[test]
fn a_body_takes_as_much_room_as_it_has_bytes_however_it_is_cut() {
    let limits = Limits { body_bytes_total: 8 << 10, ..Default::default() };
    let server = Harness::new(ServerConfig { limits, ..Default::default() }, says_text);
    let mut chunked = BufReader::new(connect(server.address));
    let text = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks: String = "{\"prompt\": \"a\"}".chars().map(|byte| format!("1\r\n{byte}\r\n")).collect();
    chunked.get_mut().write_all(format!("{text}{chunks}0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(read(&mut chunked).unwrap().status, 200);
    let large = format!("{{\"prompt\": \"{}\"}}", "a".repeat(9 << 10));
    assert_eq!(post_bytes(server.address, PATH, large.as_bytes()).error().1, "too_many_bytes");
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = Harness::new(Default::default(), says_text);
    let mut stream = BufReader::new(connect(server.address));
    for _ in 0..3 {
        stream.get_mut().write_all(&head("POST", PATH, JSON, b"{\"prompt\": \"a\"}")).unwrap();
        assert_eq!(read(&mut stream).unwrap().status, 200);
    }
    stream.get_mut().write_all(b"this is no HTTP\r\n\r\n").unwrap();
    assert!(read(&mut stream).is_none_or(|answer| answer.status == 400));
}
