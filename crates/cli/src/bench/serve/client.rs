//! HTTP/1.1 to one server: connections that are kept, answers that are read as they come.
//!
//! Requests of a benchmark share cores with the server that they measure, so there is one thread for all of them, addresses are
//! looked up once, and connections are used again while the server keeps them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::address::Address;
use crate::error::{CliError, one_line};

/// Servers end connections that are idle, most of them after 5 s or more. One that was idle for less than this is used again.
const IDLE: Duration = Duration::from_secs(2);
/// Of an answer that is no stream, no more than this is read.
const BODY_BYTES: usize = 4 << 20;
/// Of what a server says of an error, no more is shown.
const SHOWN_CHARS: usize = 300;

type Sender = SendRequest<Full<Bytes>>;

/// A server, and the connections to it that nobody uses.
pub struct Client {
    address: Address,
    resolved: Vec<SocketAddr>,
    tls: Option<TlsConnector>,
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

/// An answer whose head has come. Once its body has been read to the end the connection can serve the next request.
pub struct Answer {
    pub response: Response<Incoming>,
    sender: Sender,
}

impl Client {
    /// # Errors
    /// Nobody knows the host, or the key can't stand in a header.
    pub fn new(address: Address, api_key: Option<&str>) -> Result<Self, CliError> {
        let authorization = api_key.map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| {
                CliError::Usage("--api-key has characters that no HTTP header can have".into())
            })?;
            value.set_sensitive(true);
            Ok::<_, CliError>(value)
        });
        let tls = address.is_https.then(tls).transpose()?;
        Ok(Client {
            resolved: address.resolve()?,
            tls,
            authorization: authorization.transpose()?,
            address,
            idle: Mutex::default(),
        })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request, with a body of JSON if it has one, and gives the answer's head.
    ///
    /// # Errors
    /// There is no connection, or it ended before an answer came. One line.
    pub async fn send(&self, path: &str, body: Option<Bytes>) -> Result<Answer, String> {
        while let Some(sender) = self.idle_connection() {
            // Servers end connections that they said they would keep, llama-server each: a new one shows what is wrong, if anything is.
            if let Ok(answer) = exchange(sender, self.request(path, body.clone())?).await {
                return Ok(answer);
            }
        }
        let sender = self.connect().await?;
        exchange(sender, self.request(path, body)?).await.map_err(|error| told(&error))
    }

    /// Keeps the connection of an answer that has been read to its end.
    pub fn keep(&self, answer: Answer) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((answer.sender, Instant::now()));
    }

    fn idle_connection(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The latest one is last: where it was idle for too long, all were.
        let (sender, since) = idle.pop()?;
        if since.elapsed() < IDLE {
            return Some(sender);
        }
        idle.clear();
        None
    }

    fn request(&self, path: &str, body: Option<Bytes>) -> Result<Request<Full<Bytes>>, String> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address.authority)
            .header(USER_AGENT, concat!("anysplit/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body.unwrap_or_default())).map_err(|e| e.to_string())
    }

    async fn connect(&self) -> Result<Sender, String> {
        let failed = |error: std::io::Error| format!("cannot connect to {}: {error}", self.address.authority);
        let stream = TcpStream::connect(&self.resolved[..]).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else { return driven(stream).await };
        let name = ServerName::try_from(self.address.host.clone())
            .map_err(|_| format!("{} is no name that a certificate can have", self.address.host))?;
        driven(tls.connect(name, stream).await.map_err(failed)?).await
    }
}

/// A connection that a task of its own reads and writes.
async fn driven<S>(stream: S) -> Result<Sender, String>
where
    TokioIo<S>: Read + Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    // Whoever waits for an answer is told of its errors.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn exchange(mut sender: Sender, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    Ok(Answer { response, sender })
}

impl Answer {
    /// The whole body, as far as anyone would show it.
    ///
    /// # Errors
    /// The connection broke. One line.
    pub async fn body(&mut self) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        while let Some(frame) = self.response.body_mut().frame().await {
            let frame = frame.map_err(|error| told(&error))?;
            body.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            if body.len() > BODY_BYTES {
                return Err(format!("the answer has more than {BODY_BYTES} bytes"));
            }
        }
        Ok(body)
    }
}

/// Certificate authorities are Mozilla's, as for downloads.
fn tls() -> Result<TlsConnector, CliError> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| CliError::failed(format!("TLS cannot be set up: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// An error of the connection with its cause, which hyper leaves out.
pub fn told(error: &hyper::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |told, cause| match cause.to_string() {
        cause if told.contains(&cause) => told,
        cause => format!("{told}: {cause}"),
    })
}

/// What a server says of an error: OpenAI's message if there is one, and else the beginning of what it sent, on one line.
pub fn message(body: &[u8]) -> String {
    let said = serde_json::from_slice::<serde_json::Value>(body).ok();
    let said = said.as_ref().and_then(|value| {
        let error = value.get("error").unwrap_or(value);
        error.get("message").or(Some(error)).and_then(|text| text.as_str()).map(str::to_owned)
    });
    shown(&said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned()))
}

/// The beginning of a text of others, fit for one line of a terminal.
pub fn shown(text: &str) -> String {
    let line = one_line(text);
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let shown: String = line.chars().take(SHOWN_CHARS).map(clean).collect();
    if line.chars().count() > SHOWN_CHARS { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_an_error_is_one_clean_line() {
        let cases: [(&str, &str); 6] = [
            (r#"{"error":{"message":"too long","code":400}}"#, "too long"),
            (r#"{"error":"busy"}"#, "busy"),
            (r#"{"message":"no","object":"error"}"#, "no"),
            (r#"{"detail":"x"}"#, r#"{"detail":"x"}"#),
            ("<h1>\n  502\u{1b}[2J\n</h1>", "<h1> 502\u{fffd}[2J </h1>"),
            ("", ""),
        ];
        for (body, expected) in cases {
            assert_eq!(message(body.as_bytes()), expected);
        }
        let long = message("é".repeat(1000).as_bytes());
        assert!(long.ends_with('…') && long.chars().count() == SHOWN_CHARS + 1, "{long}");
    }
}
