//! One connection: HTTP/1.1 with a deadline for whatever a client does slowly.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::config::{Limits, Timeouts};

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
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        // Beyond these hyper answers by itself, without a body; the guard's limits are half of them.
        .max_headers(2 * limits.headers)
        .max_buf_size((2 * limits.head_bytes).max(16 << 10));
    let io = TokioIo::new(Patient::new(stream, timeouts.write));
    let mut connection = pin!(builder.serve_connection(io, TowerToHyperService::new(router)));
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

/// A stream whose writes fail if nothing of them is taken for some time.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Patient { stream, patience, stalled: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let sleep = || Box::pin(tokio::time::sleep_until(Instant::now() + patience));
        let stalled = self.stalled.get_or_insert_with(sleep);
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
