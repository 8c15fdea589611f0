//! A server that speaks as it is told to: OpenAI's API without a model.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

/// What a test waits for comes sooner, or never.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    /// The head's lines after the first.
    pub headers: Vec<String>,
    pub body: Value,
    /// The connection that it came on, from 0.
    pub connection: usize,
}

/// What came, in order, and how many of `POST` are being answered.
#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    running: usize,
    most_running: usize,
}

/// A server on loopback. It lives as long as the tests' process.
pub struct Server {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

/// Where an answer is written to.
pub struct Out {
    stream: Arc<TcpStream>,
}

/// How a `POST` is answered, by its number among them, from 0. An error ends the connection.
pub type Script = dyn Fn(usize, &Seen, &mut Out) -> std::io::Result<()> + Send + Sync;

impl Server {
    /// One with a model named `tiny`.
    pub fn start(
        script: impl Fn(usize, &Seen, &mut Out) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Server::with_models(json!({ "object": "list", "data": [{ "id": "tiny" }] }), script)
    }

    /// One whose `/v1/models` says this.
    pub fn with_models(
        models: Value,
        script: impl Fn(usize, &Seen, &mut Out) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        room_for_connections();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let (state, script): (_, Arc<Script>) = (server.state.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (state, script, models) = (state.clone(), script.clone(), models.clone());
                std::thread::spawn(move || serve(connection, stream.unwrap(), &state, &*script, &models));
            }
        });
        server
    }

    /// What `--base-url` says.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Requests to a path that came so far.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        let state = self.state.0.lock().unwrap();
        state.seen.iter().filter(|seen| seen.path == path).cloned().collect()
    }

    /// Waits until so many came to a path.
    pub fn wait_for(&self, count: usize, path: &str) {
        let (state, changed) = &*self.state;
        let is_missing = |state: &mut State| state.seen.iter().filter(|s| s.path == path).count() < count;
        let (_state, waited) =
            changed.wait_timeout_while(state.lock().unwrap(), PATIENCE, is_missing).unwrap();
        assert!(!waited.timed_out(), "{count} requests to {path}");
    }

    /// The most requests that were answered at a time.
    pub fn most_running(&self) -> usize {
        self.state.0.lock().unwrap().most_running
    }
}

/// A process has room for 1,024 open files unless it asks for more.
fn room_for_connections() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn serve(
    connection: usize,
    stream: TcpStream,
    state: &(Mutex<State>, Condvar),
    script: &Script,
    models: &Value,
) {
    // One open file for both directions: there may be a thousand connections.
    let stream = Arc::new(stream);
    let mut input = BufReader::new(&*stream);
    let mut out = Out { stream: stream.clone() };
    while let Some((is_post, mut seen)) = request(&mut input) {
        seen.connection = connection;
        let (state, changed) = (&state.0, &state.1);
        let index = {
            let mut state = state.lock().unwrap();
            let index = state.seen.iter().filter(|s| s.path == seen.path).count();
            state.seen.push(seen.clone());
            if is_post {
                state.running += 1;
                state.most_running = state.most_running.max(state.running);
            }
            index
        };
        changed.notify_all();
        let answered = match is_post {
            true => script(index, &seen, &mut out),
            false => out.json(200, models),
        };
        if is_post {
            state.lock().unwrap().running -= 1;
        }
        if answered.is_err() {
            break;
        }
    }
}

/// The next request of a connection, and whether it is a `POST`.
fn request(input: &mut impl BufRead) -> Option<(bool, Seen)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let mut first = head.remove(0);
    first.truncate(first.rfind(' ')?);
    let (method, path) = first.split_once(' ')?;
    let length =
        head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    input.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some((method == "POST", Seen { path: path.to_owned(), headers: head, body, connection: 0 }))
}

impl Out {
    /// A whole answer of JSON.
    pub fn json(&mut self, status: u16, body: &Value) -> std::io::Result<()> {
        let body = body.to_string();
        write!(
            &*self.stream,
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// Begins a stream of events.
    pub fn begin(&mut self) -> std::io::Result<()> {
        (&*self.stream).write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
        )
    }

    /// Bytes of a stream.
    pub fn bytes(&mut self, bytes: &str) -> std::io::Result<()> {
        write!(&*self.stream, "{:x}\r\n{bytes}\r\n", bytes.len())
    }

    /// One event.
    pub fn event(&mut self, event: &Value) -> std::io::Result<()> {
        self.bytes(&format!("data: {event}\n\n"))
    }

    /// Ends a stream.
    pub fn end(&mut self) -> std::io::Result<()> {
        self.bytes("data: [DONE]\n\n")?;
        (&*self.stream).write_all(b"0\r\n\r\n")
    }

    /// A whole answer of /v1/completions: so many tokens, one a chunk, with usage.
    pub fn completion(&mut self, prompt_tokens: usize, tokens: usize) -> std::io::Result<()> {
        self.begin()?;
        for _ in 0..tokens {
            self.event(&json!({ "choices": [{ "index": 0, "text": " x", "finish_reason": null }] }))?;
        }
        self.event(&json!({ "choices": [{ "index": 0, "text": "", "finish_reason": "length" }] }))?;
        let usage = json!({ "prompt_tokens": prompt_tokens, "completion_tokens": tokens });
        self.event(&json!({ "choices": [], "usage": usage }))?;
        self.end()
    }

    /// Waits until the other side has gone.
    pub fn wait_for_the_end(&mut self) -> std::io::Result<()> {
        std::io::copy(&mut &*self.stream, &mut std::io::sink()).map(drop)
    }

    /// Bytes as they are, of the head or of the body.
    pub fn raw(&mut self, bytes: &str) -> std::io::Result<()> {
        (&*self.stream).write_all(bytes.as_bytes())
    }
}
