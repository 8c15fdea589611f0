//! API keys, hosts and origins.

use server::ServerConfig;

use super::client::{Response, send};
use super::engine::{Harness, says_text};

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn locked() -> ServerConfig {
    ServerConfig { api_keys: vec!["Sesame-1".into(), "Sesame-2".into()], ..Default::default() }
}

#[test]
fn every_route_needs_a_right_key_but_the_two_for_load_balancers() {
    let server = Harness::new(locked(), says_text);
    let mut paths = server::routes();
    // Also what does not exist, and methods that nobody takes.
    paths.extend([
        ("GET", "/nothing"),
        ("POST", "/v1/nothing"),
        ("DELETE", "/v1/models"),
        ("OPTIONS", "/"),
        ("GET", "/health/"),
    ]);
    assert!(paths.len() > 15, "the routes are enumerated");
    for (method, path) in paths {
        let path = path.replace("{id}", "model").replace("{file}", "docs.js");
        let ask = |key: Option<&str>| -> Response {
            let key = key.map(|key| ("Authorization", key));
            let headers: Vec<(&str, &str)> = key.into_iter().chain([JSON]).collect();
            send(server.address, method, &path, &headers, b"{}")
        };
        let is_open = ["/health", "/ready"].contains(&path.as_str());
        for wrong in [
            None,
            Some("Bearer sesame-1"),
            Some("Bearer SESAME-1"),
            Some("Bearer Sesame"),
            Some("Bearer "),
            Some("Basic Sesame-1"),
            Some("Sesame-1"),
        ] {
            let response = ask(wrong);
            if is_open {
                assert_eq!(response.status, 200, "{method} {path}");
            } else {
                assert_eq!(
                    response.error(),
                    (401, "invalid_api_key".into(), String::new()),
                    "{method} {path} {wrong:?}"
                );
                assert!(!response.text().contains("esame"), "{}", response.text());
                let scheme = response.header("www-authenticate").and_then(|value| value.split(' ').next());
                // Browsers may ask their users for the key.
                let is_page = path == "/" || path == "/docs" || path.starts_with("/page/");
                assert_eq!(scheme, Some(if is_page { "Basic" } else { "Bearer" }), "{method} {path}");
            }
        }
        for right in ["Bearer Sesame-1", "bearer Sesame-2"] {
            assert_ne!(ask(Some(right)).status, 401, "{method} {path}");
        }
    }
}

#[test]
fn a_server_on_the_loopback_answers_to_its_own_names_only() {
    let config = ServerConfig { allowed_hosts: vec!["box.lan".into()], ..Default::default() };
    let server = Harness::new(config, says_text);
    let status = |host: &str| send(server.address, "GET", "/v1/models", &[("Host", host)], b"").status;
    for good in ["localhost:80", "127.0.0.1:8000", "[::1]", "box.lan"] {
        assert_eq!(status(good), 200, "{good}");
    }
    for bad in ["rebind.example", "localhost.example"] {
        assert_eq!(status(bad), 403, "{bad}");
    }
}

#[test]
fn pages_of_other_origins_read_nothing_unless_allowed() {
    let preflight = [
        ("Origin", "https://a.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let closed = Harness::new(locked(), says_text);
    let response = send(closed.address, "OPTIONS", "/v1/completions", &preflight, b"");
    assert_eq!((response.status, response.header("access-control-allow-origin")), (401, None));

    let config = ServerConfig { allowed_origins: vec!["https://a.example".into()], ..locked() };
    let open = Harness::new(config, says_text);
    let response = send(open.address, "OPTIONS", "/v1/completions", &preflight, b"");
    assert_eq!(
        (response.status, response.header("access-control-allow-origin")),
        (204, Some("https://a.example"))
    );
    let headers = [("Origin", "https://b.example"), ("Authorization", "Bearer Sesame-1")];
    let response = send(open.address, "GET", "/v1/models", &headers, b"");
    assert_eq!((response.status, response.header("access-control-allow-origin")), (200, None));
    assert_eq!(
        send(open.address, "GET", "/v1/models", &preflight[..1], b"").status,
        401,
        "an origin is no key"
    );
}

#[test]
fn every_answer_has_a_request_id_the_clients_own_if_it_is_plain() {
    let server = Harness::new(locked(), says_text);
    let id = |given: &str| {
        let response = send(server.address, "GET", "/health", &[("X-Request-Id", given)], b"");
        response.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("mine-1"), "mine-1");
    let is_new = |id: String| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_new(id("has blanks")) && is_new(id(&"x".repeat(65))));
    let body = br#"{"prompt": "a", "max_tokens": 1}"#;
    let headers = [("X-Request-Id", "mine-1"), ("Authorization", "Bearer Sesame-1")];
    let headers = [&headers[..], &[("Content-Type", "application/json")]].concat();
    let response = send(server.address, "POST", "/v1/completions", &headers, body);
    assert_eq!(response.json()["id"], "cmpl-mine-1", "so has the answer's own id");
    assert!(send(server.address, "GET", "/nothing", &[], b"").header("x-request-id").is_some());
}
