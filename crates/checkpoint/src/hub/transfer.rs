//! One attempt at a request, watched from outside: hf-hub sets no timeouts, and a panic in it must not be ours.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hf_hub::api::sync::ApiError;

/// Why an attempt failed.
pub(super) enum Failure {
    /// The hub's answer.
    Status(u16),
    /// The connection broke, or could not be made.
    Broken(String),
    /// Nothing came for too long.
    Stalled(Duration),
    /// Another process is downloading the same file.
    Locked,
    /// The partial file is longer than the file.
    Overlong,
    /// The cache can't be written.
    Cache(io::Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(status) => Failure::Status(status),
                ureq::Error::Io(error) => Failure::Broken(error.to_string()),
                error => Failure::Broken(error.to_string()),
            },
            ApiError::IoError(error) if is_local(&error) => Failure::Cache(error),
            ApiError::IoError(error) => Failure::Broken(error.to_string()),
            ApiError::LockAcquisition(_) => Failure::Locked,
            ApiError::InvalidResume => Failure::Overlong,
            error => Failure::Broken(error.to_string()),
        }
    }
}

/// Whether an error is the disk's: the same variant carries the network's, read while the file is written.
fn is_local(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        StorageFull
            | QuotaExceeded
            | FileTooLarge
            | PermissionDenied
            | ReadOnlyFilesystem
            | NotADirectory
            | NotFound
    )
}

/// What a download reports while it runs.
pub(super) enum Event {
    /// It begins; the file has this many bytes.
    Begin(u64),
    /// This many more are there.
    Advance(u64),
}

/// hf-hub's own progress, sent to the thread that waits.
pub(super) struct Relay(Sender<Report<std::path::PathBuf>>);

impl hf_hub::api::Progress for Relay {
    fn init(&mut self, size: usize, _filename: &str) {
        let _ = self.0.send(Report::Event(Event::Begin(size as u64)));
    }
    fn update(&mut self, size: usize) {
        let _ = self.0.send(Report::Event(Event::Advance(size as u64)));
    }
    fn finish(&mut self) {}
}

enum Report<T> {
    Event(Event),
    Done(Result<T, ApiError>),
}

/// Runs a request.
pub(super) fn request<T: Send + 'static>(
    stall: Duration,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, Failure> {
    watch(stall, |_| {}, move |_| work())
}

/// Runs a download, telling what it reports.
pub(super) fn download(
    stall: Duration,
    tell: impl FnMut(Event),
    work: impl FnOnce(Relay) -> Result<std::path::PathBuf, ApiError> + Send + 'static,
) -> Result<std::path::PathBuf, Failure> {
    watch(stall, tell, move |sender| work(Relay(sender)))
}

/// Runs `work` on its own thread, for as long as it reports something every `stall`.
fn watch<T: Send + 'static>(
    stall: Duration,
    mut tell: impl FnMut(Event),
    work: impl FnOnce(Sender<Report<T>>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = channel();
    let done = sender.clone();
    // Not joined: one that is stuck in a read would never end.
    let spawned = std::thread::Builder::new().name("hub".to_owned()).spawn(move || {
        let result = work(sender);
        let _ = done.send(Report::Done(result));
    });
    spawned.map_err(Failure::Cache)?;
    loop {
        match receiver.recv_timeout(stall) {
            Ok(Report::Event(event)) => tell(event),
            Ok(Report::Done(result)) => return result.map_err(Failure::from),
            Err(RecvTimeoutError::Timeout) => return Err(Failure::Stalled(stall)),
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::Broken("hf-hub panicked".to_owned())),
        }
    }
}
