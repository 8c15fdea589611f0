//! As little of an HTTP client as the tests need, so that they can also send what no client would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::engine::DEADLINE;

/// An answer.
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The error's parts: status, code, param. All errors have OpenAI's shape and one line.
    pub fn error(&self) -> (u16, String, String) {
        let error = self.json()["error"].clone();
        let message = error["message"].as_str().unwrap_or_else(|| panic!("no message in {error}"));
        assert!(!message.is_empty() && !message.contains('\n') && message.len() < 500, "{message}");
        assert!(error["type"].is_string() && error.as_object().unwrap().len() == 4, "{error}");
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("code"), text("param"))
    }

    /// The events of a stream; the last one must be `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"), "{}", self.text());
        let text = self.text();
        let mut events: Vec<&str> = text.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""), "events end with an empty line");
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let json = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.into_iter().map(json).collect()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A request's text.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text += "Host: localhost\r\n";
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    [format!("{text}\r\n").as_bytes(), body].concat()
}

pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut stream = connect(address);
    let headers = [headers, &[("Connection", "close")]].concat();
    // A server that refuses early may not read all.
    let _ = stream.write_all(&head(method, path, &headers, body));
    read(&mut BufReader::new(stream)).expect("an answer")
}

pub fn get(address: SocketAddr, path: &str) -> Response {
    send(address, "GET", path, &[], b"")
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    post_bytes(address, path, body.to_string().as_bytes())
}

pub fn post_bytes(address: SocketAddr, path: &str, body: &[u8]) -> Response {
    send(address, "POST", path, &[("Content-Type", "application/json")], body)
}

/// The next answer of a connection; none if it ended.
pub fn read(stream: &mut impl BufRead) -> Option<Response> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let mut response = Response { status, headers, body: Vec::new() };
    if response.header("transfer-encoding") == Some("chunked") {
        while let Some(chunk) = chunk(stream) {
            response.body.extend(chunk);
        }
    } else if let Some(length) = response.header("content-length") {
        let length = length.parse().unwrap();
        stream.take(length).read_to_end(&mut response.body).ok()?;
    }
    Some(response)
}

/// The next chunk of a body; none at its end.
pub fn chunk(stream: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let length = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut bytes = vec![0; length + 2];
    stream.read_exact(&mut bytes).ok()?;
    bytes.truncate(length);
    (length > 0).then_some(bytes)
}
