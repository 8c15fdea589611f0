//! A server under test: the real binary, and a plain client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::checkpoints::{self, ENDLESS_TOKENS};
use crate::child::{Anysplit, anysplit};
use crate::job_child::{End, LIMIT, Running};

/// `anysplit serve` on a port of its own. It is killed when its test ends.
pub struct Served {
    pub running: Running,
    api: Api,
}

/// What a server answers.
#[derive(Clone, Copy)]
pub struct Api {
    pub address: SocketAddr,
}

impl std::ops::Deref for Served {
    type Target = Api;
    fn deref(&self) -> &Api {
        &self.api
    }
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Served {
    /// One with these arguments, once it is ready.
    #[track_caller]
    pub fn start(arguments: &str) -> Served {
        Served::of(anysplit("serve --port 0").args(arguments))
    }

    /// One of which [`endless`] asks for more than it ever says.
    #[track_caller]
    pub fn endless(arguments: &str) -> Served {
        Served::of(anysplit("serve --port 0").args(arguments).model(checkpoints::endless()))
    }

    /// The same of a whole command.
    #[track_caller]
    pub fn of(command: Anysplit) -> Served {
        let mut running = Running::start(command.command());
        let line = running.says("listening on http://");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next());
        let address = address.and_then(|address| address.parse().ok()).expect("an address is told");
        Served { running, api: Api { address } }
    }

    /// Asks it to end, and waits for that.
    #[track_caller]
    pub fn ends(self) -> End {
        let asked = self.running.signal(Signal::TERM);
        self.running.ends(asked)
    }
}

impl Api {
    /// What a route says.
    pub fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    /// What it says to a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(&post(path, body))
    }

    /// What a request gets that is written as it is. The connection must end with the answer.
    pub fn send(&self, request: &str) -> Answer {
        self.ask(request).expect("the server answers and closes")
    }

    /// Whether new requests are refused, or nobody is there any more to refuse them.
    pub fn refuses(&self) -> bool {
        let answer = self.ask(&post("/v1/completions", &greedy("The", 1)));
        answer.is_ok_and(|answer| answer.status == 503) || TcpStream::connect(self.address).is_err()
    }

    fn ask(&self, request: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let text = String::from_utf8(bytes).expect("answers are UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { unchunked(body) } else { body.to_owned() };
        Ok(Answer { status, head: head.to_owned(), body })
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket has timeouts");
        stream
    }

    /// The completion of a request, which must be one.
    #[track_caller]
    pub fn completion(&self, body: &Value) -> Value {
        let answer = self.post("/v1/completions", body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.json()
    }

    /// The value of a metric without labels of its own.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.split('{').next() == Some(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name}: {text}"))
    }

    /// Waits until something is so.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn(&Api) -> bool) {
        let until = Instant::now() + LIMIT;
        while !is_so(self) {
            assert!(Instant::now() < until, "never: {what}");
            std::thread::yield_now();
        }
    }
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The values of server-sent events, without the last, `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|data| serde_json::from_str(data).expect("an event is JSON")).collect()
    }
}

/// A request with a JSON body.
pub fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A greedy completion of so many tokens.
pub fn greedy(prompt: &str, max_tokens: usize) -> Value {
    json!({ "prompt": prompt, "max_tokens": max_tokens, "temperature": 0 })
}

/// A streamed completion that is never over, of [`Served::endless`].
pub fn endless() -> Value {
    json!({"prompt": "The", "max_tokens": ENDLESS_TOKENS, "temperature": 0, "ignore_eos": true, "stream": true})
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("the length of a chunk");
        text += &rest[..length];
        body = rest[length..].strip_prefix("\r\n").unwrap_or("");
    }
    text
}
