//! A hub of one model on this machine, that can misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has and how it behaves.
#[derive(Default, Clone)]
pub struct Hub {
    /// The model's id.
    pub id: &'static str,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Breaks the connection after so many bytes of a file, once.
    pub breaks: BTreeMap<String, usize>,
    /// Sends nothing more after so many bytes of a file.
    pub stalls: BTreeMap<String, usize>,
    /// Who may read.
    pub token: Option<&'static str>,
    /// Answers requests for a part of these with the whole.
    pub ignores_range: Vec<String>,
    /// Sends clients to this address for these files.
    pub redirects: BTreeMap<String, SocketAddr>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

pub struct Server {
    pub address: SocketAddr,
    pub hub: Arc<Mutex<Hub>>,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (hub, requests) = (Arc::new(Mutex::new(hub)), Arc::default());
        let server = Server { address, hub, requests };
        let (hub, requests) = (server.hub.clone(), server.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (hub, requests) = (hub.clone(), requests.clone());
                std::thread::spawn(move || answer(stream, &hub, &requests));
            }
        });
        server
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests whose path ends so, since the start.
    pub fn requests_of(&self, ending: &str) -> Vec<Request> {
        self.requests.lock().unwrap().iter().filter(|r| r.path.ends_with(ending)).cloned().collect()
    }
}

fn answer(mut stream: TcpStream, hub: &Mutex<Hub>, requests: &Mutex<Vec<Request>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut request = Request { path: path.clone(), range: None, authorization: None };
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    requests.lock().unwrap().push(request.clone());

    let state = hub.lock().unwrap().clone();
    let wanted = state.token.map(|token| format!("Bearer {token}"));
    if wanted.is_some() && request.authorization != wanted {
        return reply(&mut stream, "401 Unauthorized", "", b"");
    }
    if path == format!("/api/models/{}/revision/main", state.id) {
        let files: Vec<String> = state.files.keys().map(|f| format!("{{\"rfilename\":{f:?}}}")).collect();
        let json = format!("{{\"sha\":{COMMIT:?},\"siblings\":[{}]}}", files.join(","));
        return reply(&mut stream, "200 OK", "Content-Type: application/json\r\n", json.as_bytes());
    }
    let prefix = format!("/{}/resolve/{COMMIT}/", state.id);
    let Some((file, bytes)) = path.strip_prefix(&prefix).and_then(|file| state.files.get_key_value(file))
    else {
        return reply(&mut stream, "404 Not Found", "", b"");
    };
    send(&mut stream, &state, hub, file, bytes, request.range.as_deref())
}

fn send(
    stream: &mut TcpStream,
    state: &Hub,
    hub: &Mutex<Hub>,
    file: &str,
    bytes: &[u8],
    range: Option<&str>,
) -> Option<()> {
    let ids = format!("ETag: \"etag-{file}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
    if let Some(other) = state.redirects.get(file) {
        let headers = format!("{ids}Location: http://{other}/{}/resolve/{COMMIT}/{file}\r\n", state.id);
        return reply(stream, "302 Found", &headers, b"");
    }
    let (start, end) = match range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
        Some((start, end)) => {
            let end = end.parse().map_or(bytes.len(), |end: usize| end + 1);
            (start.parse::<usize>().ok()?, end.min(bytes.len()))
        }
        None => (0, bytes.len()),
    };
    if start >= bytes.len() {
        return reply(stream, "416 Range Not Satisfiable", &ids, b"");
    }
    // A question for the first byte is hf-hub's way to ask for the size; it never goes wrong here.
    let is_question = range == Some("bytes=0-0");
    if state.ignores_range.iter().any(|other| other == file) && !is_question {
        return reply(stream, "200 OK", &ids, bytes);
    }
    let body = &bytes[start..end];
    let headers = format!("{ids}Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
    let head = head("206 Partial Content", &headers, body.len());
    let sent = match (is_question, state.breaks.get(file), state.stalls.get(file)) {
        (false, Some(&after), _) => {
            hub.lock().unwrap().breaks.remove(file);
            &body[..after]
        }
        (false, _, Some(&after)) => &body[..after],
        _ => body,
    };
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent)).ok()?;
    if !is_question && state.stalls.contains_key(file) {
        // Held open until the client goes away.
        let _ = std::io::Read::read(stream, &mut [0; 1]);
    }
    Some(())
}

fn head(status: &str, headers: &str, length: usize) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
}

fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> Option<()> {
    stream.write_all(head(status, headers, body.len()).as_bytes()).and_then(|()| stream.write_all(body)).ok()
}
