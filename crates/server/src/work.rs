//! Where text is worked on: templates, tokenizing and parsing take milliseconds, detokenizing some microseconds per token, and
//! threads that serve connections have time for neither.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::wire::errors::ApiError;

/// Threads on which answers are made of tokens. A token costs some microseconds, so two are enough for any engine.
const ANSWERING: usize = 2;

/// The threads for text. Dropped, they end, and what they do is dropped.
pub struct TextThreads(Option<Runtime>);

impl TextThreads {
    /// Starts them.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(ANSWERING)
            .thread_name("text")
            .enable_time()
            .build()?;
        Ok(TextThreads(Some(runtime)))
    }

    /// What gives them work: so much of requests at a time; more waits.
    pub fn work(&self, requests: usize) -> TextWork {
        let runtime = self.0.as_ref().expect("they run until they are dropped");
        TextWork { permits: Arc::new(Semaphore::new(requests)), threads: runtime.handle().clone() }
    }
}

impl Drop for TextThreads {
    fn drop(&mut self) {
        // Whoever drops them may serve connections, and does not wait.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Gives work to the threads for text.
#[derive(Clone)]
pub struct TextWork {
    permits: Arc<Semaphore>,
    threads: Handle,
}

impl TextWork {
    /// Reads a request: runs `function` once it is its turn.
    ///
    /// # Errors
    /// Its own; 500 if it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::internal("the server has ended"))?;
        let result = self.threads.spawn_blocking(move || {
            // Held to the end, also if whoever asked is gone.
            let _permit = permit;
            function()
        });
        result.await.unwrap_or_else(|_| Err(failed()))
    }

    /// Makes an answer of tokens as they come; no request that is being read is in its way. Dropped, it ends.
    ///
    /// # Errors
    /// Its own; 500 if it panics.
    pub async fn answer<T: Send + 'static>(
        &self,
        answer: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        // A set ends its tasks when it is dropped.
        let mut tasks = JoinSet::new();
        tasks.spawn_on(answer, &self.threads);
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(failed()),
        }
    }
}

/// What takes long, on a thread for answers: the others' tokens go on meanwhile.
pub fn at_length<T>(function: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(function)
}

fn failed() -> ApiError {
    ApiError::internal("the server failed on this request")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_made_on_threads_of_their_own_whatever_is_being_read() {
        let threads = TextThreads::start().unwrap();
        let work = threads.work(1);
        let runtime = Builder::new_current_thread().build().unwrap();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let name = || std::thread::current().name().map(str::to_owned);
        runtime.block_on(async {
            let reading = work.run(move || Ok(released.recv().is_err()));
            let mut reading = std::pin::pin!(reading);
            let answering = async {
                let named = work.answer(async move { Ok(at_length(name)) }).await.unwrap();
                drop(release);
                named
            };
            let mut answering = std::pin::pin!(answering);
            // The request that is read waits until the answer is there.
            let named = tokio::select! {
                _ = reading.as_mut() => unreachable!("nobody has released it"),
                named = answering.as_mut() => named,
            };
            assert_eq!(named.as_deref(), Some("text"));
            assert_eq!(reading.await, Ok(true));
        });
    }

    #[test]
    fn an_answer_that_panics_is_an_error() {
        let threads = TextThreads::start().unwrap();
        let runtime = Builder::new_current_thread().build().unwrap();
        let work = threads.work(1);
        let answer = work.answer(async { if true { panic!("a bug") } else { Ok(()) } });
        assert_eq!(runtime.block_on(answer).unwrap_err().status, 500);
    }
}
