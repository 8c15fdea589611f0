//! One connection: HTTP/1.1 with a deadline for whatever a client does slowly, and an end that clients can see coming.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::arrival::Arrival;
use crate::config::{Limits, Timeouts};
use crate::patient::Patient;

/// For a client that still sends to end, so that it reads what it was told.
const LINGER: Duration = Duration::from_secs(2);
/// What it sends is thrown away by so many bytes.
const LINGER_BYTES: usize = 16 << 10;

/// How a server is, to its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serves.
    Serve,
    /// No further request on a connection.
    Finish,
    /// No connection any more.
    Close,
}

/// Serves a connection to its end.
pub async fn serve(
    stream: TcpStream,
    router: Router,
    limits: &Limits,
    timeouts: &Timeouts,
    mut phase: watch::Receiver<Phase>,
) {
    // Events are small, and each is wanted at once. A socket that can't is slower.
    let _ = stream.set_nodelay(true);
    let stream = Arc::new(stream);
    tokio::select! {
        // What can be answered at once is, before it is seen that the client closed its half.
        biased;
        () = answer(stream.clone(), router, limits, timeouts, phase.clone()) => {}
        () = left(&stream) => {}
    }
    tokio::select! {
        () = linger(stream) => {}
        _ = phase.wait_for(|phase| *phase != Phase::Serve) => {}
    }
}

/// HTTP, until nothing more is to be said.
async fn answer(
    stream: Arc<TcpStream>,
    router: Router,
    limits: &Limits,
    timeouts: &Timeouts,
    mut phase: watch::Receiver<Phase>,
) {
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        // Beyond these hyper answers by itself, without a body; the guard's limits are half of them.
        .max_headers(2 * limits.headers)
        .max_buf_size((2 * limits.head_bytes).max(16 << 10));
    let io = Patient::new(stream, timeouts.write);
    let (until, limit, router) = (io.until(), timeouts.request, TowerToHyperService::new(router));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let arrival = Arrival::now(limit);
        until.set(arrival.until);
        request.extensions_mut().insert(arrival);
        router.call(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    loop {
        tokio::select! {
            // What is wrong with a connection concerns its client only.
            _ = connection.as_mut() => return,
            changed = phase.changed() => match (changed, *phase.borrow()) {
                (Ok(()), Phase::Serve) => {}
                (Ok(()), Phase::Finish) => connection.as_mut().graceful_shutdown(),
                (Ok(()), Phase::Close) | (Err(_), _) => return,
            },
        }
    }
}

/// Waits until the client has closed its half. Who reads the connection does not see that behind bytes that are not wanted
/// yet, such as a next request.
async fn left(stream: &TcpStream) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Of all that can be waited for, this one is not ready while there are bytes to read.
        let closed = tokio::io::Interest::PRIORITY;
        while stream.ready(closed).await.is_ok_and(|ready| !ready.is_read_closed()) {}
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    std::future::pending::<()>().await;
}

/// Closes in a way that lets a client that still sends read what it was told: one end that closes while bytes come resets
/// the connection.
async fn linger(stream: Arc<TcpStream>) {
    let Some(mut stream) = Arc::into_inner(stream) else { return };
    if poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await.is_err() {
        return;
    }
    let mut bytes = Vec::new();
    let drain = async {
        while stream.readable().await.is_ok() {
            bytes.resize(LINGER_BYTES, 0);
            match stream.try_read(&mut bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    // Who does not end is cut off.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
